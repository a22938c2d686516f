"""A machine with a GPU."""
