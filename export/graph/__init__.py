"""Decoder -> ONNX, target-neutral, then lowered for a target by small passes."""
