"""A person's taste, learned from choices between replies."""
