"""A server under load, under hostile clients, and what it costs over the same call in Python."""
