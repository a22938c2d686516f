"""The engine: one decoder for the requests of all threads, side by side."""
