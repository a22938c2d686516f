"""Generalised policy improvement beside the linear mix, in plain torch."""
