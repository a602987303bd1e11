"""Tests of `experiments.networks`."""
