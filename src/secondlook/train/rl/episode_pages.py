"""Pages that show a step's best and worst episodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secondlook.io import write_text
from secondlook.report import page, strip_of
from secondlook.train.rl.trajectory import Trajectory, TrajectoryTurn, groups_of
from secondlook.types import Episode

MAX_GROUPS = 4


@dataclass(frozen=True)
class ShownGroup:
    """A group of which a page shows the best and the worst episode, by their final images'
    scores."""

    best: Trajectory
    worst: Trajectory
    lowest: float
    """Score of the worst final image."""
    highest: float
    n_scored: int
    """Episodes whose final image has a score."""
    n_episodes: int

    @property
    def is_flat(self) -> bool:
        """All final images have one score: none is better than another."""
        return self.lowest == self.highest

    @property
    def shown(self) -> dict[str, Trajectory]:
        """Trajectories by their labels; of a flat group any one."""
        if self.is_flat:
            return {"one of them": self.best}
        return {"best": self.best, "worst": self.worst}

    @property
    def summary(self) -> str:
        """A line on its scores."""
        of_them = f"{self.n_scored} of {self.n_episodes} episodes have a score"
        if self.n_scored == 1:
            return f"{of_them}: {self.highest:.3f}"
        if self.is_flat:
            return f"flat group: all final images score {self.highest:.3f} ({of_them})"
        return f"final images score from {self.lowest:.3f} to {self.highest:.3f} ({of_them})"


def write_page(out: Path, trajectories: list[Trajectory], step: int) -> list[Episode]:
    """Write ``out``/episodes/step-N.html: the best and the worst episode of the groups whose final
    images vary most, with scores, rewards and advantages. ``trajectories`` were drawn by this rank;
    groups without any score are passed over, and without any group there is no page. Returns the
    episodes on it."""
    groups = widest_groups(trajectories)
    if not groups:
        return []
    shown_groups: list[dict[str, Any]] = []
    shown_episodes: list[Episode] = []
    for group in groups:
        strips = []
        for label, trajectory in group.shown.items():
            assert trajectory.episode is not None, "this trajectory was drawn by another rank"
            shown_episodes.append(trajectory.episode)
            strips.append(_strip(trajectory, trajectory.episode) | {"label": label})
        shown_groups.append({"summary": group.summary, "strips": strips})
    folder = out / "episodes"
    folder.mkdir(parents=True, exist_ok=True)
    html = page("best_and_worst.html", step=step, groups=shown_groups)
    write_text(folder / f"step-{step}.html", html)
    return shown_episodes


def widest_groups(trajectories: list[Trajectory]) -> list[ShownGroup]:
    """At most ``MAX_GROUPS`` groups, those whose final images' scores differ most first."""
    groups = []
    for group in groups_of(trajectories):
        final_scores = np.array([trajectory.image_scores[trajectory.final] for trajectory in group])
        n_scored = int(np.isfinite(final_scores).sum())
        if n_scored == 0:  # nanargmax of nothing but NaN would fail
            continue
        # NaN, a missing score, is neither the best nor the worst
        best_index = int(np.nanargmax(final_scores))
        worst_index = int(np.nanargmin(final_scores))
        shown_group = ShownGroup(
            best=group[best_index],
            worst=group[worst_index],
            lowest=float(final_scores[worst_index]),
            highest=float(final_scores[best_index]),
            n_scored=n_scored,
            n_episodes=len(group),
        )
        groups.append(shown_group)
    groups.sort(key=lambda group: group.lowest - group.highest)  # the widest first
    return groups[:MAX_GROUPS]


def _strip(trajectory: Trajectory, episode: Episode) -> dict[str, Any]:
    """What the page shows of an episode."""
    strip = strip_of(episode)
    for i, round_row in enumerate(strip["rounds"]):
        score = trajectory.scores[i]
        round_row["score"] = None if score is None else score.value
        round_row["correct"] = None if score is None else score.correct
        round_row["earned"] = []
        # a drawing and the verdict on it; rewards and advantages as the step has learned from them
        round_turns = trajectory.turns[2 * i : 2 * i + 2]
        for name, turn in zip(("drawing", "verdict"), round_turns, strict=False):
            is_shared = trajectory.is_repair and turn is trajectory.turns[0]
            earned = "shared, not learned from" if is_shared else _earned(turn)
            round_row["earned"].append(f"{name}: {earned}")
    return strip


def _earned(turn: TrajectoryTurn) -> str:
    """A turn's reward, where its algorithm gives one, and its advantage, the mean over tokens,
    times the factor that it was learned from with."""
    if turn.is_masked:
        return "masked, for want of a score"
    advantage = round(float(np.mean(turn.advantage)) * turn.advantage_scale, 2)
    text = f"advantage {advantage + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0
    if math.isfinite(turn.reason_advantage):
        text += f", of its reason {turn.reason_advantage * turn.advantage_scale + 0.0:+.2f}"
    if math.isfinite(turn.reward):
        text = f"reward {turn.reward:.2f}, {text}"
    return text
