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
    """S is the model's P(Yes); the reason is what it writes after the verdict (greedy), of at most
    ``max_tokens`` tokens together (0: as the checkpoint says)."""

    def __init__(self, engine: Engine, max_tokens: int = 0):
        self.engine = engine
        self.max_tokens = max_tokens or engine.janus.reason_tokens
        self.missing = Missing("the checkpoint as judge")

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        template = self.engine.template
        # []: no reasons of earlier rounds, for each picture is judged by itself
        return self._judge([template.judge(prompt, [image], []) for prompt, image in items])

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit). The model's one P(Yes) stands for
        following and for preserving."""
        template = self.engine.template
        question_segments = []
        for instruction, source, image in items:
            question_segments.append(template.judge(instruction, [image], [], source))
        edit_scores: list[Score | None] = []
        for score in self._judge(question_segments):
            if score is None:
                edit_scores.append(None)
                continue
            p_yes = score.value
            edit_scores.append(Score.of_edit(p_yes, p_yes, score.correct, score.reason))
        return edit_scores

    def why_not(self, prompt: Prompt) -> str:
        """Why no picture of a prompt gets a score: words that this checkpoint's tokenizer cannot
        read."""
        try:
            self.engine.template.judge(prompt.text, [], [], prompt.source)
        except InputError as error:
            return str(error)
        return ""

    def _judge(self, question_segments: Sequence[tuple[Segment, ...]]) -> list[Score | None]:
        """One score for each question about a picture; None where P(Yes) is not finite."""
        template = self.engine.template
        # the first token is Yes or No and nothing else, so that P(Yes) + P(No) = 1
        sampling_params = SamplingParams("text", temperature=0.0, first=(template.yes, template.no))
        requests = [Request("judge", segments, 0) for segments in question_segments]
        self.missing.begin()
        scores: list[Score | None] = []
        for turn in self.engine.write(requests, sampling_params, self.max_tokens):
            assert turn.p_yes is not None
            if not math.isfinite(turn.p_yes):
                self.missing.add(f"P(yes) is {turn.p_yes}")
                scores.append(None)
                continue
            # "Yes, there is a red star." without its first token and its stop
            reason = template.words(turn.tokens[1:]).lstrip(", ").removesuffix(".")
            scores.append(Score(turn.p_yes, turn.p_yes >= 0.5, reason))
        return scores


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
        dtype = torch.bfloat16 if on_gpu else torch.float32  # half precision is slow on most CPUs
        super().__init__(Engine(Janus.load(config.model, device, dtype)))
