"""Random load at full batch for as long as one likes."""
