"""What commands share: flags and errors, several hosts, progress."""
