"""How close a backend must come to the reference."""

# Without a fused activation every operation is IEEE and in the same order: the same bits.
OUTPUT = 0.0
# A backend's exp may differ from torch's in the last bit, so that a rounding tie falls the other way, with
# geglu as with swiglu: activations of a token that may be one integer off, and the mean error relative to the
# largest output.
SWIGLU_STEPS = 1
SWIGLU_MEAN = 1e-5
