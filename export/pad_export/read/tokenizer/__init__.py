"""Tokenizers as checkpoints hold them."""
