"""Replies that are given are scored: log-probabilities and phi of every token, with no decoding."""
