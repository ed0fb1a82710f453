"""THE loop: draw, judge; while the verdict is No and rounds are left, redraw and judge again. With
a source: edit, judge the edit, and edit the source again.

Source: the introspection loop of arXiv 2506.01480 (T = 3 images). Departures from the public code:
T rounds instead of one redraw; only what was judged No is redrawn; the history of a redraw is what
the checkpoint was trained with (``history``): the sampled codes, or as in the public code the
picture encoded again. The paper's model edits without a second look; here the loop is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from secondlook.engine.capacity import Need
from secondlook.errors import InputError
from secondlook.models.janus.segments import length
from secondlook.models.janus.template import ChatTemplate
from secondlook.types import (
    Episode,
    EpisodeFinished,
    Event,
    Prompt,
    Request,
    Round,
    RowDrawn,
    SamplingParams,
    Turn,
    VerdictGiven,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from secondlook.engine.engine import Engine
    from secondlook.engine.handle import Handle


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
        stated = {}
        for name in ("guidance", "edit_guidance"):
            value = getattr(generation_config, f"{name}_scale", None)
            if value:
                stated[name] = value
        return SamplingConfig(**stated)

    def draw_params(self, editing: bool = False) -> SamplingParams:
        guidance = self.edit_guidance if editing else self.guidance
        return SamplingParams("code", guidance, self.temperature, self.code_top_k)

    def judge_params(self, yes: int, no: int) -> SamplingParams:
        return SamplingParams("text", 1.0, self.temperature, self.text_top_k, first=(yes, no))


def turn_seed(seed: int, turn: int) -> int:
    """The seed of an episode's n-th turn, so that episodes with neighbouring seeds share
    nothing."""
    return int.from_bytes(sha256(f"{seed}/{turn}".encode()).digest()[:7], "big")


async def run_episode(
    engine: Engine,
    prompt: Prompt,
    seed: int,
    max_rounds: int,
    sampling: SamplingConfig,
    on_round: Callable[[int, Round], None] | None = None,
) -> Episode:
    """One episode: a task for the engine. ``on_round(round_index, round)`` is called after each
    verdict."""
    template, text, source = engine.template, prompt.text, prompt.source
    draw_params = sampling.draw_params(editing=source is not None)
    judge_params = sampling.judge_params(template.yes, template.no)
    reencode = template.history == "reencode"  # what a redraw has as the images before it
    turns: list[Turn] = []
    rounds: list[Round] = []
    history: list[tuple[int, ...]] = []  # codes of the images before, as a redraw sees them
    answers: list[tuple[int, ...]] = []  # the verdicts on them
    source_codes = prompt.codes
    if source is not None and not source_codes:
        source_codes = await engine.encode_image(source)

    for round_index in range(max_rounds):
        is_last = round_index == max_rounds - 1

        # draw: the first image, or the next one with what was said of those before
        if round_index > 0:
            kind, segments = "redraw", template.redraw(text, history, answers, source_codes)
        elif source is not None:
            kind, segments = "edit", template.edit(source_codes, text)
        else:
            kind, segments = "draw", template.draw(text)
        request = Request(kind, segments, turn_seed(seed, len(turns)))
        keep = not is_last and not reencode  # else no later sequence begins like this one
        drawn = await engine.generate(request, draw_params, engine.janus.n_codes, keep_prefix=keep)
        turns.append(drawn)
        image = await engine.decode_image(drawn.tokens)

        # judge: the same model says Yes or No, and why
        images = [*(r.image for r in rounds), image]
        segments = template.judge(text, images, answers, source)
        request = Request("judge", segments, turn_seed(seed, len(turns)))
        judged = await engine.generate(
            request, judge_params, sampling.reason_tokens, keep_prefix=not is_last
        )
        turns.append(judged)
        rounds.append(_round(image, drawn, judged, template))
        if on_round is not None:
            on_round(round_index, rounds[-1])
        if rounds[-1].yes or is_last:
            break

        answers.append(judged.tokens)
        history.append(await engine.encode_image(image) if reencode else drawn.tokens)
    return Episode(prompt, seed, tuple(rounds), tuple(turns))


def _round(image: Image, drawn: Turn, judged: Turn, template: ChatTemplate) -> Round:
    assert judged.p_yes is not None
    said_yes = judged.tokens[0] == template.yes
    reason = template.words(judged.tokens[1:]).lstrip(", ")
    return Round(image, drawn.tokens, said_yes, judged.p_yes, reason)


def run_episodes(
    engine: Engine,
    prompts: list[Prompt],
    seeds: list[int],
    rounds: int = 3,
    sampling: SamplingConfig | None = None,
) -> list[Episode]:
    """One episode per (prompt, seed), all decoded together. Raises InputError when ``rounds`` is
    below 1."""
    _check(prompts, seeds, rounds)
    sampling = sampling or SamplingConfig.of(engine.janus.net.generation_config)
    need = _need(engine, prompts, rounds, sampling)
    tasks = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        tasks.append(run_episode(engine, prompt, seed, rounds, sampling))
    return engine.run(tasks, need)


def stream_episodes(
    engine: Engine,
    prompts: list[Prompt],
    seeds: list[int],
    rounds: int = 3,
    sampling: SamplingConfig | None = None,
) -> Iterator[Event]:
    """``run_episodes``, told as it happens: each row of each image, each verdict, each episode.

    The engine works while the iterator is advanced; closing the iterator cancels the episodes that
    are not finished. Raises as ``run_episodes`` does, at once.
    """
    _check(prompts, seeds, rounds)
    sampling = sampling or SamplingConfig.of(engine.janus.net.generation_config)
    return _events(engine, prompts, seeds, rounds, sampling)


def _events(
    engine: Engine, prompts: list[Prompt], seeds: list[int], rounds: int, sampling: SamplingConfig
) -> Iterator[Event]:
    need = _need(engine, prompts, rounds, sampling)
    events: deque[Event] = deque()
    unfinished: dict[Handle[Episode], int] = {}  # with the index of its prompt
    try:
        for index, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
            progress = _Progress(index, round(engine.janus.n_codes**0.5), events)
            task = run_episode(engine, prompt, seed, rounds, sampling, progress.on_round)
            unfinished[engine.submit(task, progress.on_tokens, need)] = index
        while unfinished:
            engine.step()
            for handle, index in list(unfinished.items()):
                if handle.done:
                    events.append(EpisodeFinished(index, handle.result()))
                    del unfinished[handle]
            while events:
                yield events.popleft()
    finally:
        for handle in unfinished:
            engine.cancel(handle)
        engine.release()


class _Progress:
    """Turns what the engine reports of one episode into events."""

    def __init__(self, prompt_index: int, row_length: int, events: deque[Event]):
        self.prompt_index, self.row_length, self.events = prompt_index, row_length, events
        self.round_index = 0

    def on_tokens(self, request: Request, tokens: tuple[int, ...]) -> None:
        if request.kind == "judge":
            return
        rows = len(tokens) // self.row_length
        self.events.append(RowDrawn(self.prompt_index, self.round_index, tokens, rows))

    def on_round(self, round_index: int, latest: Round) -> None:
        self.events.append(VerdictGiven(self.prompt_index, round_index, latest))
        self.round_index = round_index + 1


def _check(prompts: list[Prompt], seeds: list[int], rounds: int) -> None:
    if rounds < 1:
        raise InputError(f"rounds: {rounds} is too few; draw at least 1")
    if len(prompts) != len(seeds):
        raise InputError(f"seeds: {len(seeds)} given for {len(prompts)} prompts; give one each")


def _need(engine: Engine, prompts: list[Prompt], rounds: int, sampling: SamplingConfig) -> Need:
    """What an episode of these holds at the most."""
    template, n_codes, n_patches = engine.template, engine.janus.n_codes, engine.janus.n_patches
    first_turns = {}
    for prompt in prompts:
        if prompt.source:
            first_turns[prompt.text] = template.edit((0,) * n_codes, prompt.text)
        else:
            first_turns[prompt.text] = template.draw(prompt.text)
    longest = max((length(segments, n_patches) for segments in first_turns.values()), default=0)
    reencoded = template.history == "reencode"
    return Need.of(longest, max(n_codes, n_patches), rounds, sampling.reason_tokens, reencoded)
