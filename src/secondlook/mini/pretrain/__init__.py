"""Training the miniature's base model from nothing."""
