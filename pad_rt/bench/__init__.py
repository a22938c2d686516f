"""The measurements of pad bench."""
