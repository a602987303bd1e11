"""Tests of `lars`."""
