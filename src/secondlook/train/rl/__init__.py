"""Stage 2: reinforcement learning on whole episodes."""
