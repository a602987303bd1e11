"""Tests of `experiments.speed`."""
