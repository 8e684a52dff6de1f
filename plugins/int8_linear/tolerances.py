"""How close a backend must come to the reference: relative to the output's largest magnitude."""

OUTPUT = 1e-6
