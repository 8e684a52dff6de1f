"""The ops as one C++17 ONNX Runtime custom-op library; `cpu_library.py` finds, checks and registers it."""
