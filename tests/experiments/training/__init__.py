"""Tests of `experiments.training`."""
