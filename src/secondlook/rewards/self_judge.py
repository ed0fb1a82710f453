"""A checkpoint of this package as judge: its own P(Yes) of "does this image match the prompt"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL.Image import Image

from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.llm.missing import Missing
from secondlook.registry import register_reward
from secondlook.rewards.reward import Edited, Score
from secondlook.types import Prompt, Request, SamplingParams, Segment


class SelfJudge:
    """S is the model's P(Yes); the reason is what it writes after the verdict (greedy)."""

    def __init__(self, engine: Engine, tokens: int = 48):
        self.engine, self.tokens = engine, tokens
        self.missing = Missing("the checkpoint as judge")

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        template = self.engine.template
        return self._asked([template.judge(prompt, [image], []) for prompt, image in items])

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit). The model's one P(Yes) stands for
        following and for preserving."""
        template = self.engine.template
        scores = self._asked(
            [template.judge(text, [image], [], source) for text, source, image in items]
        )
        return [s and Score.of_edit(s.value, s.value, s.correct, s.reason) for s in scores]

    def why_not(self, prompt: Prompt) -> str:
        """Why no picture of a prompt gets a score: words that this checkpoint's tokenizer cannot
        read."""
        try:
            self.engine.template.judge(prompt.text, [], [], prompt.source)
        except InputError as error:
            return str(error)
        return ""

    def _asked(self, sequences: Sequence[tuple[Segment, ...]]) -> list[Score | None]:
        template = self.engine.template
        sampling_params = SamplingParams("text", temperature=0.0, first=(template.yes, template.no))
        self.missing.begin()
        found: list[Score | None] = []
        for turn in self.engine.write(
            [Request("judge", s, 0) for s in sequences], sampling_params, self.tokens
        ):
            assert turn.p_yes is not None
            if not math.isfinite(turn.p_yes):
                self.missing.add(f"P(yes) is {turn.p_yes}")
                found.append(None)
                continue
            reason = template.words(turn.tokens[1:]).lstrip(", ").removesuffix(".")
            found.append(Score(turn.p_yes, turn.p_yes >= 0.5, reason))
        return found


@dataclass(frozen=True)
class SelfJudgeConfig:
    """``[[rewards]] kind = "self_judge"``."""

    model: str = ""
    """A shipped model, a folder or a hub id; it stays as it is while another is trained."""

    def __post_init__(self) -> None:
        if not self.model:
            raise InputError(
                "config: rewards: model is empty; a reward of kind 'self_judge' needs it"
            )


@register_reward("self_judge")
class LoadedSelfJudge(SelfJudge):
    """A checkpoint of this package, loaded on the job's device."""

    Config = SelfJudgeConfig

    def __init__(self, config: SelfJudgeConfig, device: str):
        import torch

        from secondlook.models.janus.model import Janus

        on_gpu = torch.device(device).type == "cuda"
        dtype = torch.bfloat16 if on_gpu else torch.float32  # half precision is slow on a CPU
        super().__init__(Engine(Janus.load(config.model, device, dtype)))
