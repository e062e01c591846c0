"""GGUF files: container, metadata, tensors, tokenizer, reading models, writing."""
