"""Several people at once, here and elsewhere; what runs in the peers' environments needs NumPy alone."""
