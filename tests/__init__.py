"""The tests mirror the package; commands, configurations and pages have their own."""
