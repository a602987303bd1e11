"""The one training function, and what single runs add to it.

`experiments.training.training` has the function.
"""
