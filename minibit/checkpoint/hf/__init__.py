"""Hugging Face directories: configuration, shards, linear layers, reading, writing."""
