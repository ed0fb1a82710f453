"""THE loop: draw, judge; while the verdict is No and rounds are left, redraw and judge again. With
a source: edit, judge the edit, and edit the source again.

Source: the introspection loop of arXiv 2506.01480 (T = 3 images). Departures from the public code:
T rounds instead of one redraw; only what was judged No is redrawn; the history of a redraw is what
the checkpoint was trained with (``history``): the sampled codes, or as in the public code the
picture encoded again. The paper's model edits without a second look; here the loop is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from secondlook.engine.capacity import Need
from secondlook.errors import InputError
from secondlook.models.janus.template import length
from secondlook.types import (
    DecodeImage,
    EncodeImage,
    Episode,
    GenerateRequest,
    Prompt,
    Request,
    Round,
    SamplingParams,
    Turn,
)

if TYPE_CHECKING:
    from secondlook.engine.engine import Engine, Task


@dataclass(frozen=True)
class SamplingConfig:
    """How episodes are sampled. Defaults are the paper's; a checkpoint's generation config may say
    otherwise."""

    guidance: float = 5.0
    temperature: float = 1.0
    code_top_k: int = 4096
    text_top_k: int = 50
    reason_tokens: int = 48
    edit_guidance: float = 4.0

    @staticmethod
    def of(generation_config) -> SamplingConfig:
        """The checkpoint's own guidance scales where it states them, else the paper's."""
        own = {
            n: getattr(generation_config, f"{n}_scale", None) for n in ("guidance", "edit_guidance")
        }
        return SamplingConfig(**{n: value for n, value in own.items() if value})

    def draw_params(self, editing: bool = False) -> SamplingParams:
        return SamplingParams(
            "code",
            self.edit_guidance if editing else self.guidance,
            self.temperature,
            self.code_top_k,
        )

    def judge_params(self, yes: int, no: int) -> SamplingParams:
        return SamplingParams("text", 1.0, self.temperature, self.text_top_k, first=(yes, no))


def turn_seed(seed: int, turn: int) -> int:
    """The seed of an episode's n-th turn, so that episodes with neighbouring seeds share
    nothing."""
    return int.from_bytes(sha256(f"{seed}/{turn}".encode()).digest()[:7], "big")


def run_episodes(
    engine: Engine,
    prompts: list[Prompt],
    seeds: list[int],
    rounds: int = 3,
    sampling: SamplingConfig | None = None,
) -> list[Episode]:
    """One episode per (prompt, seed), all decoded together. Raises InputError when ``rounds`` is
    below 1."""
    if rounds < 1:
        raise InputError(f"rounds: {rounds} is too few; draw at least 1")
    if len(prompts) != len(seeds):
        raise InputError(f"seeds: {len(seeds)} given for {len(prompts)} prompts; give one each")
    sampling = sampling or SamplingConfig.of(engine.janus.net.generation_config)
    tasks = (_episode(engine, p, s, rounds, sampling) for p, s in zip(prompts, seeds, strict=True))
    return engine.serve(tasks, _need(engine, prompts, rounds, sampling))


def _need(engine: Engine, prompts: list[Prompt], rounds: int, sampling: SamplingConfig) -> Need:
    """What an episode of these holds at the most."""
    template, codes, patches = engine.template, engine.janus.n_codes, engine.janus.n_patches
    asked = {
        p.text: template.edit((0,) * codes, p.text) if p.source else template.draw(p.text)
        for p in prompts
    }
    longest = max((length(segments, patches) for segments in asked.values()), default=0)
    return Need.of(
        longest, max(codes, patches), rounds, sampling.reason_tokens, template.history == "reencode"
    )


def _episode(
    engine: Engine, prompt: Prompt, seed: int, rounds: int, sampling: SamplingConfig
) -> Task:
    """One episode, step by step: yields what it needs of the engine and returns the Episode."""
    template, text, source = engine.template, prompt.text, prompt.source
    draw_params = sampling.draw_params(source is not None)
    judge_params = sampling.judge_params(template.yes, template.no)
    given = prompt.codes or ((yield EncodeImage(source)) if source else ())
    episode = Episode(prompt, seed, (), ())
    history: list[tuple[int, ...]] = []
    answers: list[tuple[int, ...]] = []
    encoded = template.history == "reencode"
    for left in reversed(range(rounds)):
        kind = "redraw" if history else "edit" if source else "draw"
        if history:
            segments = template.redraw(text, history, answers, given)
        else:
            segments = template.edit(given, text) if source else template.draw(text)
        request = Request(kind, segments, turn_seed(seed, len(episode.turns)))
        drawn = yield GenerateRequest(
            request, draw_params, engine.janus.n_codes, keep=left > 0 and not encoded
        )
        image = yield DecodeImage(drawn.tokens)
        segments = template.judge(
            text, [*(r.image for r in episode.rounds), image], answers, source
        )
        request = Request("judge", segments, turn_seed(seed, len(episode.turns) + 1))
        judged = yield GenerateRequest(request, judge_params, sampling.reason_tokens, keep=left > 0)
        episode = _with_round(episode, image, drawn, judged, template)
        if episode.rounds[-1].yes or not left:
            break
        answers.append(judged.tokens)
        history.append((yield EncodeImage(image)) if encoded else drawn.tokens)
    return episode


def _with_round(episode: Episode, image, drawn: Turn, judged: Turn, template) -> Episode:
    assert judged.p_yes is not None
    reason = template.words(judged.tokens[1:]).lstrip(", ")
    latest = Round(image, drawn.tokens, judged.tokens[0] == template.yes, judged.p_yes, reason)
    return replace(episode, rounds=(*episode.rounds, latest), turns=(*episode.turns, drawn, judged))
