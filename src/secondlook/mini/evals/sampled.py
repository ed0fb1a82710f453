"""What the miniature's benchmarks that draw have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.evals.benchmark import MODEL_HELP, SEED_HELP, Benchmark
from secondlook.evals.intervals import interval_text
from secondlook.io import counted
from secondlook.report import embed
from secondlook.types import Episode

Measured = TypeVar("Measured")


class SampledMiniBenchmark(Benchmark):
    """Every row of a split is drawn or edited ``samples`` times, each with a seed of its own."""

    suite = "mini"
    default_batch = 96
    guidance_scale: ClassVar[Literal["guidance", "edit_guidance"]] = "guidance"
    """Which of the checkpoint's guidance scales counts."""

    model: str = Field("mini", description=MODEL_HELP)
    samples: int = Field(4, ge=1, le=1000, description="Images a prompt.")
    seed: int = Field(0, ge=0, description=SEED_HELP)
    split: Literal["held-out", "seen"] = Field(
        "held-out", description="held-out or seen compositions."
    )
    guidance: float | None = Field(None, description="Default: the checkpoint's own.")

    def folder_settings(self, name: str) -> dict[str, Any]:
        from secondlook.evals.runner import checkpoint_sampling

        sampling = self._guided(checkpoint_sampling(self.model))
        stated = self.with_guidance(sampling).settings()
        return {"benchmark": name} | stated | {"sampling": asdict(sampling)}

    def sampling(self, engine: Engine) -> SamplingConfig:
        """As the checkpoint says, or with the guidance that is asked for."""
        return self._guided(SamplingConfig.of(engine.janus.net.generation_config))

    def _guided(self, sampling: SamplingConfig) -> SamplingConfig:
        if self.guidance is None:
            return sampling
        if self.guidance_scale == "edit_guidance":
            return replace(sampling, edit_guidance=self.guidance)
        return replace(sampling, guidance=self.guidance)

    def with_guidance(self, sampling: SamplingConfig) -> Self:
        """These settings with the guidance that is used, as a result states them."""
        return self.model_copy(update={"guidance": getattr(sampling, self.guidance_scale)})

    def seeds_of(self, row: int) -> list[int]:
        """The seed of each of a row's samples."""
        first_seed = self.seed * 10**6 + row * 1000  # of at most 1000 samples
        return list(range(first_seed, first_seed + self.samples))


class HeadlineBenchmark(SampledMiniBenchmark):
    """One whose result has its own ``headline``: intervals by name."""

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        return [f"  {name}: {interval_text(value)}" for name, value in result["headline"].items()]

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return dict(result["headline"])


def strips_of_groups(
    groups: Mapping[str, Sequence[Measured]],
    strip: Callable[[Measured], dict[str, Any]],
    num_shown: int,
) -> dict[str, list[dict[str, Any]]]:
    """At most ``num_shown`` episodes of each group, spread over the whole of it, as the page's
    template shows them. Groups without an episode are left out."""
    strips: dict[str, list[dict[str, Any]]] = {}
    for group_name, of_group in groups.items():
        if of_group:
            step = max(1, len(of_group) // num_shown)
            strips[group_name] = [
                strip(chosen_episode) for chosen_episode in of_group[::step][:num_shown]
            ]
    return strips


def redraws_text(redraws: Mapping[str, Any], verb: str = "drawn") -> str:
    """What became of the episodes that were redrawn (``redraws`` of a result), as a sentence."""
    num_redrawn = redraws["wrong"] + redraws["right"]
    if not num_redrawn:
        return f"No image was {verb} again."
    outcomes = []
    for is_now, num_images, share, becomes in (
        ("wrong", redraws["wrong"], redraws["fixed"], "right"),
        ("right", redraws["right"], redraws["broken"], "wrong"),
    ):
        if num_images:
            first_images = counted(num_images, f"{is_now} first image")
            outcomes.append(f"{100 * share:.1f} % of {first_images} ended {becomes}")
        else:
            outcomes.append(f"no {is_now} first image was among them")
    were = "was" if num_redrawn == 1 else "were"
    return f"{counted(num_redrawn, 'image')} {were} {verb} again after a No: {', '.join(outcomes)}."


def shown_rounds(episode: Episode, right: Sequence[bool]) -> list[dict[str, Any]]:
    """An episode's rounds as the page's template shows them; ``right`` says the truth of each."""
    rounds = []
    for episode_round, is_right in zip(episode.rounds, right, strict=True):
        rounds.append(
            {
                "src": embed(episode_round.image),
                "yes": episode_round.yes,
                "p_yes": episode_round.p_yes,
                "reason": episode_round.reason,
                "right": is_right,
            }
        )
    return rounds
