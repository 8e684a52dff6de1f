"""What every other package shares: the FoldPlan, the step contract, the ops and their kernels.

Importing this package loads neither torch nor onnxruntime; the reference implementations
(`*/reference.py`) import torch when they are imported themselves.
"""
