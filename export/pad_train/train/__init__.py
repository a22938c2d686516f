"""Training a PersRM."""
