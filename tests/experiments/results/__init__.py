"""Tests of `experiments.results`."""
