"""Pages that show a step's best and worst episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from secondlook.io import write_text
from secondlook.report import filmstrip
from secondlook.train.rl.trajectory import Trajectory, groups_of
from secondlook.types import Episode

MAX_GROUPS = 4


def write_page(out: Path, trajectories: list[Trajectory], step: int) -> list[Episode]:
    """Write ``out``/episodes/step-N.html: the best and the worst episode of the groups whose final
    images vary most. ``trajectories`` were drawn by this rank; groups without any score are passed
    over, and without any group there is no page. Returns the episodes on it."""
    episodes = best_and_worst(trajectories)
    if not episodes:
        return []
    folder = out / "episodes"
    folder.mkdir(parents=True, exist_ok=True)
    title = f"step {step}: best and worst episodes of a group"
    write_text(folder / f"step-{step}.html", filmstrip(episodes, title))
    return episodes


def best_and_worst(trajectories: list[Trajectory]) -> list[Episode]:
    """Two episodes of each of the groups that vary most."""
    scored: list[tuple[float, Trajectory, Trajectory]] = []
    for group in groups_of(trajectories):
        final_scores = np.array([t.image_scores[t.final] for t in group])
        if np.isfinite(final_scores).any():
            best, worst = int(np.nanargmax(final_scores)), int(np.nanargmin(final_scores))
            spread = float(final_scores[best] - final_scores[worst])
            scored.append((spread, group[best], group[worst]))
    scored.sort(key=lambda entry: -entry[0])
    episodes = []
    for _, *pair in scored[:MAX_GROUPS]:
        episodes += [t.episode for t in pair if t.episode is not None]
    return episodes
