"""The ops as one C++17 library: ONNX Runtime's custom ops, and sampling; `cpu_library.py` finds and checks it."""
