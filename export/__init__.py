"""Turn a pretrained checkpoint into a folded, calibrated ONNX graph. torch lives here only."""
