"""What an accelerator does with this package, measured in minutes by one command.

A part is a module with ``COLUMNS`` and a generator ``rows(small)``, which yields each
row of its table as soon as it is measured. Parts need only jax, flax (with its Orbax),
optax, NumPy and this package.
"""
