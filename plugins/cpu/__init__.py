"""The ops as one C++17 library, ONNX Runtime's and sampling; `cpu_library.py` finds and checks it."""
