"""Export to ONNX, and lowering."""
