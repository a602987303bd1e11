"""Commands: flags in, files out."""
