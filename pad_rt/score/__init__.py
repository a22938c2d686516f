"""Replies that are given, scored by token, with text around the runtime's scorer."""
