"""Read a pretrained model: config, weights and tokenizer of a folder, a hub id or a GGUF file."""
