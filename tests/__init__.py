"""The tests mirror the package: `lars/x.py` is tested in `tests/x_test.py`."""
