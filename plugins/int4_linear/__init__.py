"""Int4Linear: y = x W^T + b with weights of 4-bit blocks and int8 activations in the same blocks."""
