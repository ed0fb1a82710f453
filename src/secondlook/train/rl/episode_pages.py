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
    page_title = f"step {step}: best and worst episodes of a group"
    write_text(folder / f"step-{step}.html", filmstrip(episodes, page_title))
    return episodes


def best_and_worst(trajectories: list[Trajectory]) -> list[Episode]:
    """Two episodes of each of the groups that vary most."""
    groups_by_spread: list[tuple[float, Trajectory, Trajectory]] = []
    for group in groups_of(trajectories):
        final_scores = np.array([trajectory.image_scores[trajectory.final] for trajectory in group])
        if not np.isfinite(final_scores).any():  # nanargmax of nothing but NaN would fail
            continue
        # NaN, a missing score, is neither the best nor the worst
        best_index = int(np.nanargmax(final_scores))
        worst_index = int(np.nanargmin(final_scores))
        spread = float(final_scores[best_index] - final_scores[worst_index])
        groups_by_spread.append((spread, group[best_index], group[worst_index]))
    groups_by_spread.sort(key=lambda entry: -entry[0])  # the widest first
    shown_episodes = []
    for _, best, worst in groups_by_spread[:MAX_GROUPS]:
        for trajectory in (best, worst):
            if trajectory.episode is not None:
                shown_episodes.append(trajectory.episode)
    return shown_episodes
