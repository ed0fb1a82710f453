"""THE loop: draw, judge; while the verdict is No and rounds are left, redraw and judge again.

Source: the introspection loop of arXiv 2506.01480 (T = 3 images).
Departures from the public code: T rounds instead of one redraw; only what was
judged No is redrawn; the history of a redraw is what the checkpoint was trained with (``history``): the sampled codes, or as in
the public code the picture encoded again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING

from secondlook.types import Episode, InputError, Prompt, Request, Round, Rule, Turn

if TYPE_CHECKING:
    from secondlook.engine.decode import Engine


@dataclass(frozen=True)
class Sampling:
    """How episodes are sampled. Defaults are the paper's; a checkpoint's generation config may say otherwise."""

    guidance: float = 5.0
    temperature: float = 1.0
    code_top_k: int = 4096
    text_top_k: int = 50
    reason_tokens: int = 48

    @staticmethod
    def of(generation_config) -> Sampling:
        """The checkpoint's own guidance scale where it states one, else the paper's."""
        return Sampling(guidance=getattr(generation_config, "guidance_scale", None) or 5.0)

    def draw_rule(self) -> Rule:
        return Rule("code", self.guidance, self.temperature, self.code_top_k)

    def judge_rule(self, yes: int, no: int) -> Rule:
        return Rule("text", 1.0, self.temperature, self.text_top_k, first=(yes, no))


def turn_seed(seed: int, turn: int) -> int:
    """The seed of an episode's n-th turn, so that episodes with neighbouring seeds share nothing."""
    return int.from_bytes(sha256(f"{seed}/{turn}".encode()).digest()[:7], "big")


def introspect(
    engine: Engine, prompts: list[Prompt], seeds: list[int], rounds: int = 3, sampling: Sampling | None = None
) -> list[Episode]:
    """One episode per (prompt, seed), all decoded together. Raises InputError when ``rounds`` is below 1."""
    if rounds < 1:
        raise InputError(f"rounds: {rounds} is too few; draw at least 1")
    if len(prompts) != len(seeds):
        raise InputError(f"seeds: {len(seeds)} given for {len(prompts)} prompts; give one each")
    protocol = engine.protocol
    sampling = sampling or Sampling.of(engine.janus.net.generation_config)
    draw_rule, judge_rule = sampling.draw_rule(), sampling.judge_rule(protocol.yes, protocol.no)
    episodes = [Episode(p, s, (), ()) for p, s in zip(prompts, seeds, strict=True)]
    answers: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    drawn_codes: list[list[tuple[int, ...]]] = [[] for _ in prompts]
    active = list(range(len(prompts)))
    for _ in range(rounds):
        asked = []
        for i in active:
            e = episodes[i]
            if e.rounds:
                kind, segments = "redraw", protocol.redraw(e.prompt.text, drawn_codes[i], answers[i])
            else:
                kind, segments = "draw", protocol.draw(e.prompt.text)
            asked.append(Request(kind, segments, turn_seed(e.seed, len(e.turns))))
        drawn = engine.draw(asked, draw_rule)
        images = engine.pictures([t.tokens for t in drawn])
        asked = []
        for i, image in zip(active, images, strict=True):
            e = episodes[i]
            segments = protocol.judge(e.prompt.text, [*(r.image for r in e.rounds), image], answers[i])
            asked.append(Request("judge", segments, turn_seed(e.seed, len(e.turns) + 1)))
        judged = engine.write(asked, judge_rule, sampling.reason_tokens)
        for i, image, d, j in zip(active, images, drawn, judged, strict=True):
            answers[i].append(j.tokens)
            episodes[i] = _with_round(episodes[i], image, d, j, protocol)
        active = [i for i in active if not episodes[i].rounds[-1].yes]
        if not active:
            break
        latest = [episodes[i].rounds[-1] for i in active]
        codes = engine.codes([r.image for r in latest]) if protocol.history == "reencode" else [r.codes for r in latest]
        for i, code in zip(active, codes, strict=True):
            drawn_codes[i].append(code)
    return episodes


def _with_round(episode: Episode, image, drawn: Turn, judged: Turn, protocol) -> Episode:
    assert judged.p_yes is not None
    reason = protocol.words(judged.tokens[1:]).lstrip(", ")
    latest = Round(image, drawn.tokens, judged.tokens[0] == protocol.yes, judged.p_yes, reason)
    return replace(episode, rounds=(*episode.rounds, latest), turns=(*episode.turns, drawn, judged))
