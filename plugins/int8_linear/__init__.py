"""Int8Linear: y = x W^T + b with int8 weights and per-token int8 activations, one fused op."""
