"""How close a backend must come to the reference: relative to the output's largest magnitude."""

OUTPUT = 1e-6
# A backend's exp may differ from torch's in the last bit, which turns a rounding tie into a neighbouring
# integer: a few activations in 10,000 are one step (1/127 of the token's largest) off.
SWIGLU_OUTPUT = 1e-2
SWIGLU_MEAN = 1e-4
