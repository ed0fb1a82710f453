"""Janus-Pro: the network of transformers, its chat template, and its checkpoints."""
