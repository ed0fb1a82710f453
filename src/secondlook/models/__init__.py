"""What the network is: transformers' Janus, the protocol's sequences, and the one policy rule."""
