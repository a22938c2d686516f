"""Exports: time, memory, and a real model."""
