"""Time of a step, here and elsewhere."""
