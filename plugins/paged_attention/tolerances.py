"""How close a backend must come to the reference.

Cache bytes are moved and quantised exactly: zero difference on every backend. Attention output is
compared as max |difference| relative to the reference output's largest magnitude.

On a CPU the key is the type of the caches; everything else is float32. On a GPU it is the type of the
activations, whatever the caches are.
"""

OUTPUT = {
    "float32": 2e-6,
    # The query, and each split's softmax weights, are rounded to 15 bits (two int8 planes) before the
    # integer dot products: up to 5e-4 was measured. One int8 plane gave 1e-2 (median) to 3e-1.
    "int8": 2e-3,
    # 11 bits, rounding by up to 2**-12 of a number: the rotated query, softmax weights and the output. Up
    # to 1.2e-3 was measured (median 4e-4).
    "float16": 2e-3,
    # 8 bits, 2**-9: eight times float16's. Up to 7.8e-3 was measured (median 3e-3).
    "bfloat16": 1.6e-2,
}
