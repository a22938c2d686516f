"""Training a personalized reward model (PersRM)."""
