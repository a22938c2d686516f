"""The same guided decoding in PAD-RT and in other systems; what runs in their environments needs NumPy alone."""
