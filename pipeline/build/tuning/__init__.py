"""`kvfold tune`: the attention kernels compiled in many ways and timed on the GPU that is here."""
