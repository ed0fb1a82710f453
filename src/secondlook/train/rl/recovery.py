"""Automatic recovery of a run whose reward falls: what the authors of arXiv 2506.01480 did by hand,
by fixed rules.

On a sharp drop of the reward the rate is cut to 1/2 to 2/3 and the run goes back to its last good
state; on a slow decline beta is lowered, or the reference becomes the current policy. Each action
is written to acts.jsonl.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from secondlook.errors import Stopped
from secondlook.io import write_text
from secondlook.train.rl.config import RecoveryConfig
from secondlook.train.state_files import saved_steps
from secondlook.train.trainer import Trainer

if TYPE_CHECKING:
    from secondlook.train.reference import Reference
    from secondlook.train.sharding import ShardedModel

Finding = Literal["", "drop", "decline"]


@dataclass
class AutoRecovery:
    """Watches a run's reward. Everything but ``config`` is part of the run's state, and survives
    going back."""

    config: RecoveryConfig | None = None
    lr_factor: float = 1.0
    """Of the learning rate."""
    beta_factor: float = 1.0
    """Of the KL's weight."""
    best_average: float = -1.0
    """The best moving average so far."""
    good_step: int = 0
    """The step of the last good state, which has the best average of those saved; 0: none yet."""
    good_average: float = -1.0
    """The average at that state."""
    steps_in_decline: int = 0
    """Steps in a row."""
    actions: list[dict[str, Any]] = field(default_factory=list)
    """What was done so far."""
    recent_rewards: list[float] = field(default_factory=list)
    """Of the last ``window`` steps."""

    @property
    def average(self) -> float | None:
        """Of the last steps; None until there are enough."""
        if self.config is None or len(self.recent_rewards) < self.config.window:
            return None
        return float(np.mean(self.recent_rewards))

    def observe(self, reward: float | None) -> Finding:
        """Take one step's reward (None: there was none); returns whether the average dropped, is in
        a decline, or neither ("")."""
        config = self.config
        if config is None or reward is None:
            return ""
        self.recent_rewards = [*self.recent_rewards, reward][-config.window :]
        average = self.average
        if average is None:
            return ""
        self.best_average = max(self.best_average, average)
        in_decline = average < self.best_average - config.decline
        self.steps_in_decline = self.steps_in_decline + 1 if in_decline else 0
        if average < self.best_average - config.drop:  # a drop goes before a decline
            return "drop"
        return "decline" if self.steps_in_decline >= config.patience else ""

    def note_saving(self, step: int) -> None:
        """The state of that step is about to be written; it may be the best one so far."""
        average = self.average
        if average is not None and average >= self.good_average:
            self.good_step, self.good_average = step, average

    def act(
        self,
        finding: Finding,
        trainer: Trainer,
        reference: Reference | None = None,
        policy: ShardedModel | None = None,
    ) -> None:
        """Act on a finding, write it down, and save the run's state. ``reference`` and ``policy``
        are needed where the reference may be moved.

        Raises Stopped after too many actions.
        """
        config = self.config
        assert config is not None
        if len(self.actions) >= config.max_actions:
            raise Stopped(
                f"policy: the reward fell again after {config.max_actions} actions "
                "(auto_recovery.max_actions); see acts.jsonl"
            )
        action: dict[str, Any] = {
            "step": trainer.step,
            "average": self.average,
            "best": self.best_average,
        }
        # what was seen before the action says nothing of the run after it
        self.recent_rewards, self.steps_in_decline = [], 0
        if finding == "drop":
            self.lr_factor *= config.lr_cut
            went_back = self._go_back(trainer)
            act_name = "lower the rate and go back" if went_back else "lower the rate"
            action |= {"act": act_name, "to": trainer.step}
        elif config.on_decline == "lower_beta":
            self.beta_factor *= config.beta_cut
            action |= {"act": "lower beta"}
        else:
            assert reference is not None and policy is not None
            reference.become(policy)
            action |= {"act": "move the reference"}
        action |= {"lr_factor": self.lr_factor, "beta_factor": self.beta_factor}
        self.actions = [*self.actions, action]
        if trainer.ranks.is_main:
            # the whole file anew: what an interrupted run wrote after its last state goes
            action_lines = [json.dumps(each) + "\n" for each in self.actions]
            write_text(trainer.out / "acts.jsonl", "".join(action_lines))
        trainer.save()
        trainer.forget_later_steps()

    def _go_back(self, trainer: Trainer) -> bool:
        """Load the last good state into the run, but for this object's own; False where there is
        none."""
        if self.good_step not in saved_steps(trainer.out):
            return False
        own_state = self.state_dict()
        trainer.load(self.good_step)
        self.load_state_dict(own_state)  # loading took the earlier one: factors and actions go on
        return True

    def state_dict(self) -> dict[str, Any]:
        # one text: torch looks for the items of a list of tables one by one, and an earlier state
        # has fewer of them
        fields = {name: value for name, value in vars(self).items() if name != "config"}
        return fields | {"actions": json.dumps(self.actions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state | {"actions": json.loads(state["actions"])})
