"""Building TensorRT plans."""
