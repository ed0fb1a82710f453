"""Group relative policy optimisation (arXiv 2402.03300) on whole episodes, as in arXiv
2506.01480."""

from __future__ import annotations

from secondlook.train.rl.algorithms import register_algorithm
from secondlook.train.rl.algorithms.base import Algorithm
from secondlook.train.rl.trajectory import Trajectory


@register_algorithm("grpo")
class GRPO(Algorithm):
    """A turn's advantage is how much better it did than the other episodes of its prompt; settings
    are those of ``[advantage]``. The loss is the base class's."""

    def advantages(self, trajectories: list[Trajectory]) -> None:
        self.compare_in_groups(trajectories, self.config.advantage.credit)
