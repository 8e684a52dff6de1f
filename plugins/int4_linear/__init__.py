"""Int4Linear: y = x W^T + b with weights of 4-bit blocks and per-token int8 activations, one fused op."""
