"""Reinforcement learning with a reward of one's own: any function of a prompt and a picture.

This one likes dark pictures, which no prompt asks for. A reward is what the model will do: check it
on pictures first (``sanity_pairs``).
"""

import numpy as np

import secondlook


def darkness(prompt: str, image) -> float | None:
    """1 minus the mean brightness; None would mean "no score", which is never the same as 0."""
    return 1 - np.asarray(image.convert("L")).mean() / 255


def mean_darkness(model) -> float:
    episodes = model.draw("a photo of a star", n=16, rounds=1, seed=7)
    return sum(darkness("", episode.image) for episode in episodes) / len(episodes)


print(f"before: {mean_darkness(secondlook.load('mini')):.3f}")
trained = secondlook.train_rl(
    "mini/rl",  # a shipped recipe; the rest overrules it
    out="out/dark",
    reward=darkness,
    model="mini",
    steps=2,  # some hundred to see it happen
    sanity_pairs="",
    rollout={"prompts_per_step": 2, "group_size": 4, "rounds": 1},
)
print(f"after:  {mean_darkness(trained):.3f}")
