"""How close a backend must come to the reference.

Mask, bias and penalties are IEEE operations in one order: greedy tokens are the same, and so are the order
of tokens and which are the likeliest. Weights are float32 powers, and their sums take other orders: a border
between two tokens may lie elsewhere, and a draw between both places gives the other token.
"""

OUTPUT = {
    # Where a border lies, as a share of the sum of weights, top_p's own among them, and relative, of min_p.
    # Up to 1.3e-7 was measured.
    "share": 5e-7,
    # Absolute, of a natural logarithm. Up to 1.5e-7 was measured.
    "logprob": 5e-7,
}
