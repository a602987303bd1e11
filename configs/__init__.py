"""Configurations: the only home of the experiments' defaults."""
