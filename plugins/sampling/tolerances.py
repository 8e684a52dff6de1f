"""How close a backend must come to the reference.

Mask, bias and penalties are IEEE operations in one order: greedy tokens are the same, and so are the order
of tokens and which are the likeliest. Weights are float32 powers, and their sums take other orders: a border
between two tokens may lie elsewhere, and a draw between both places gives the other token.
"""

OUTPUT = {
    # Where a border lies, as a share of the sum of weights, and top_p's own.
    "share": 1e-6,
    # Absolute, of a natural logarithm.
    "logprob": 1e-6,
}
