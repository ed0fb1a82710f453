"""What the authors of arXiv 2506.01480 did by hand to keep RL going, as a stated policy.

On a sharp drop of the reward the rate is cut to 1/2 to 2/3 and the run goes back to its last good
state; on a slow decline beta is lowered, or the reference becomes the current policy. Each act is
written to acts.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from secondlook.errors import InputError, Stopped
from secondlook.io import write_text
from secondlook.train.trainer import Trainer, saved_steps


@dataclass(frozen=True)
class RecoveryConfig:
    """When the nurse acts, and how. Rewards are the mean S of a step's final images, averaged over
    ``window`` steps."""

    window: int = 10
    drop: float = 0.1
    """So far below the best average: a sharp drop."""
    lr_cut: float = 0.6
    decline: float = 0.03
    patience: int = 50
    """So far below the best average in so many steps in a row: a slow decline."""
    ease: Literal["beta", "reference"] = "beta"
    beta_cut: float = 0.5
    most: int = 5
    """More acts than these stop the run."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("lr_cut", 0, 1),
            ("beta_cut", 0, 1),
            ("drop", 0, 1),
            ("decline", 0, 1),
        ):
            if not low < getattr(self, name) < high:
                raise InputError(
                    f"config: nurse.{name} is {getattr(self, name)}; it must lie between {low} "
                    f"and {high}"
                )
        for name in ("window", "patience", "most"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"config: nurse.{name} is {getattr(self, name)}; it must be at least 1"
                )


@dataclass
class AutoRecovery:
    """Watches a run. Everything but ``config`` is part of the run's state, and survives going
    back."""

    config: RecoveryConfig | None = None
    lr: float = 1.0
    beta: float = 1.0
    """Factors of the rate and of beta."""
    best: float = -1.0
    """The best average so far."""
    good: int = 0
    """The step of the last good state: the best average of those saved; 0: none yet."""
    good_average: float = -1.0
    low: int = 0
    """Steps in a row in a slow decline."""
    acts: list[dict[str, Any]] = field(default_factory=list)
    """What was done so far."""
    recent: list[float] = field(default_factory=list)

    @property
    def average(self) -> float | None:
        """Of the last steps; None until there are enough."""
        c = self.config
        return float(np.mean(self.recent)) if c and len(self.recent) == c.window else None

    def see(self, reward: float | None) -> Literal["", "back", "ease"]:
        """One step's reward; says what is to be done."""
        c = self.config
        if c is None or reward is None:
            return ""
        self.recent = [*self.recent, reward][-c.window :]
        average = self.average
        if average is None:
            return ""
        self.best = max(self.best, average)
        self.low = self.low + 1 if average < self.best - c.decline else 0
        if average < self.best - c.drop:
            return "back"
        return "ease" if self.low >= c.patience else ""

    def watch(
        self,
        run: Trainer,
        move_reference: Callable[[], None],
        metrics: dict[str, float],
        saving: bool,
    ) -> bool:
        """What ``Run.loop`` asks after a step: looks at its reward, acts where that is needed, and
        says whether it did."""
        what = self.see(metrics.get("score"))
        if not what and saving:
            self.saving(run.step)
        self.act(run, what, move_reference)
        return bool(what)

    def saving(self, step: int) -> None:
        """A state of that step is about to be written."""
        average = self.average
        if average is not None and average >= self.good_average:
            self.good, self.good_average = step, average

    def act(
        self, run: Trainer, what: Literal["", "back", "ease"], move_reference: Callable[[], None]
    ) -> None:
        """Do it, and write it down. Raises Stopped after too many acts."""
        c = self.config
        if not what or c is None:
            return
        if len(self.acts) >= c.most:
            raise Stopped(
                f"policy: the reward fell again after {c.most} acts of the nurse (nurse.most); "
                "see acts.jsonl"
            )
        said: dict[str, Any] = {"step": run.step, "average": self.average, "best": self.best}
        self.recent, self.low = [], 0
        if what == "back":
            self.lr *= c.lr_cut
            kept, known = self.state_dict(), self.good in saved_steps(run.out)
            if known:
                run.resume(self.good)
                self.load_state_dict(kept)
            said |= {
                "act": "lower the rate and go back" if known else "lower the rate",
                "to": run.step,
            }
        elif c.ease == "beta":
            self.beta *= c.beta_cut
            said |= {"act": "lower beta"}
        else:
            move_reference()
            said |= {"act": "move the reference"}
        self.acts = [*self.acts, said | {"lr_factor": self.lr, "beta_factor": self.beta}]
        if run.ranks.first:
            write_text(run.out / "acts.jsonl", "".join(json.dumps(act) + "\n" for act in self.acts))
        run.save()
        run.forget_later()

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "config"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
