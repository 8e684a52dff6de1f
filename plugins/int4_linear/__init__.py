"""Int4Linear: y = x W^T + b with weights of 4-bit blocks and int8 activations by the same blocks, one fused op."""
