"""The vocabularies of GGUF files as tokenizers of the tokenizers library."""
