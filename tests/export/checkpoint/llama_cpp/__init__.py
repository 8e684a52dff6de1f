"""GGUF files against llama.cpp itself: `make check-gguf`."""
