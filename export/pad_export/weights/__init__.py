"""A bundle's weights: blocks, calibration, and the files that hold them."""
