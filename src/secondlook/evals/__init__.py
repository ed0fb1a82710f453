"""How good a model is: it loads checkpoints and never imports train."""
