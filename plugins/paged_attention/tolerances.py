"""How close a backend must come to the reference, per cache type.

Cache bytes are moved and quantised exactly: zero difference on every backend. Attention output is
compared as max |difference| relative to the reference output's largest magnitude.
"""

OUTPUT = {
    "float32": 2e-6,
    "int8": 2e-2,  # the query is rounded to int8 per head before the integer dot product
}
