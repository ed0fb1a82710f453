"""Judges from a config's ``[[judges]]``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from secondlook.errors import InputError
from secondlook.llm.client import Answers, Asker, Endpoint
from secondlook.mini.verifier import Verifier
from secondlook.rewards.reward import Reward, Weighted
from secondlook.rewards.vlm import EndpointJudge


@dataclass(frozen=True)
class JudgeConfig:
    """One judge. Which fields it needs depends on ``kind``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    kind: Literal["verifier", "endpoint", "local", "policy"] = "verifier"
    """The miniature's reader, a vision-language model behind an OpenAI-compatible endpoint, one
    that transformers loads here, or a checkpoint of this package."""
    weight: float = 1.0
    """Of the weighted mean of several."""
    model: str = ""
    """Endpoint: the served model's name. Local: a folder or a hub id. Policy: a shipped model, a
    folder or a hub id."""
    url: str = ""
    """Endpoint: the base address, as http://localhost:8000/v1."""
    decomposer_model: str = ""
    """Endpoint: the language model that splits long prompts into questions; empty: they are asked
    whole."""
    decomposer_thinking: bool = False
    """Whether it may think before it answers."""
    decomposer_url: str = ""
    """Default: the same as ``url``."""
    long: int = 20
    """Words from which on, exclusively, a prompt is long."""
    answers: str = ""
    """A file where answers are kept from run to run; empty: in memory."""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 32
    timeout: float = 60.0
    attempts: int = 6
    patience: float = 20.0
    """Minutes that a server is waited for which has answered before."""
    start_patience: float = 0.1
    """Minutes that one is waited for which has never answered, as where it is started together with
    the job."""
    thinking: bool = False
    """These seven: ``rewards.ask.Endpoint``. Local: ``concurrency`` questions are answered
    together."""

    def __post_init__(self) -> None:
        for name in {"endpoint": ("url", "model"), "policy": ("model",), "local": ("model",)}.get(
            self.kind, ()
        ):
            if not getattr(self, name):
                raise InputError(
                    f"config: judges: {name} is empty; a judge of kind {self.kind!r} needs it"
                )
        if self.kind == "endpoint":
            try:
                self.endpoint()
                self.decomposer()
            except InputError as error:
                raise InputError(f"config: {error}".replace("judge: ", "judges: ", 1)) from error

    def endpoint(self) -> Endpoint:
        """Where the judge is served. Raises InputError for settings that cannot be used."""
        how = self.key_variable, self.concurrency, self.timeout, self.attempts
        return Endpoint(
            self.url,
            self.model,
            *how,
            patience=self.patience,
            start_patience=self.start_patience,
            thinking=self.thinking,
        )

    def decomposer(self) -> Endpoint | None:
        """Where the model that splits long prompts is served."""
        if not self.decomposer_model:
            return None
        url = self.decomposer_url or self.url
        return replace(
            self.endpoint(), url=url, model=self.decomposer_model, thinking=self.decomposer_thinking
        )


def make(configs: list[JudgeConfig], device: str = "cpu", reasons: bool = False) -> Reward:
    """The judge, or the weighted mean of several; without any, the verifier. ``reasons``: they are
    needed (a model is taught to say them), so an endpoint is asked for them as well."""
    parts = [(c.weight, _one(c, device, reasons)) for c in configs]
    return Verifier() if not parts else parts[0][1] if len(parts) == 1 else Weighted(parts)


def of_this_rank(path: Path) -> Path:
    """A file that only this process of several writes to (torchrun tells each its number)."""
    rank = os.environ.get("RANK", "0")
    return path if rank == "0" else path.with_stem(f"{path.stem}.rank-{rank}")


def _one(config: JudgeConfig, device: str, reasons: bool) -> Reward:
    if config.kind == "verifier":
        return Verifier()
    if config.kind == "policy":
        import torch

        from secondlook.engine.engine import Engine
        from secondlook.models.janus.model import Janus
        from secondlook.rewards.self_judge import PolicyJudge

        dtype = (
            torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
        )  # half precision is slow on a CPU
        return PolicyJudge(Engine(Janus.load(config.model, device, dtype)))
    c = config
    answers = Answers(of_this_rank(Path(c.answers)) if c.answers else None)
    if config.kind == "local":
        from secondlook.llm.local import LocalModel

        return EndpointJudge(
            LocalModel(c.model, device, c.concurrency, answers, thinking=c.thinking),
            None,
            c.long,
            reasons,
        )
    splitter = c.decomposer()
    return EndpointJudge(
        Asker(c.endpoint(), answers),
        Asker(splitter, answers) if splitter else None,
        c.long,
        reasons,
    )
