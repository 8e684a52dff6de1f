"""GPU attention kernels: written in Triton, compiled ahead of time, launched without Triton or torch."""
