"""TensorRT-RTX engines, built with no GPU."""
