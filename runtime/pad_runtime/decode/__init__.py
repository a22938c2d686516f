"""Decoding on a graph."""
