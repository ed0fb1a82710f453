"""How it is run: a static cache, and batched drawing and writing."""
