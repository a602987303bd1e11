"""The examples in the docstrings print what they show."""

import doctest
import importlib
import pkgutil

import pytest

import lars

MODULES = [m.name for m in pkgutil.walk_packages(lars.__path__, "lars.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in ("l2_norm", "lars", "scale_by_lars"):
        tests = finder.find(getattr(lars, name), name)
        assert any(test.examples for test in tests), name
