"""THE loop: draw, judge; while the verdict is No and rounds are left, redraw and judge again. With
a source: edit, judge the edit, and edit the source again.

Source: the introspection loop of arXiv 2506.01480 (T = 3 images). Departures from the public code:
T rounds instead of one redraw; only what was judged No is redrawn; the history of a redraw is what
the checkpoint was trained with: the sampled codes, or as in the public code the picture encoded
again (``history``), of all rounds before or of the last one (``redraw_sees``). The paper's model
edits without a second look; here the loop is the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from secondlook.engine.capacity import Need
from secondlook.errors import InputError
from secondlook.models.janus.model import REASON_TOKENS
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
    Segment,
    TokenIds,
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
    """Classifier-free guidance s of a drawing; 1 is none."""
    temperature: float = 1.0
    """Of images and verdicts."""
    code_top_k: int = 4096
    """Codes, of 16384, that may be sampled; 0: all."""
    text_top_k: int = 50
    """Ids of a reason that may be sampled; 0: all."""
    reason_tokens: int = REASON_TOKENS
    """Tokens of a verdict with its reason, at most."""
    edit_guidance: float = 4.0
    """Classifier-free guidance s of an edit."""

    @staticmethod
    def of(generation_config) -> SamplingConfig:
        """The checkpoint's own guidance scales and length of reasons where it states them, else the
        paper's."""
        stated = {
            "guidance": getattr(generation_config, "guidance_scale", None),
            "edit_guidance": getattr(generation_config, "edit_guidance_scale", None),
            "reason_tokens": getattr(generation_config, "reason_tokens", None),
        }
        return SamplingConfig(**{name: value for name, value in stated.items() if value})

    def draw_params(self, editing: bool = False) -> SamplingParams:
        """Of a drawing, or of an edit."""
        guidance = self.edit_guidance if editing else self.guidance
        return SamplingParams("code", guidance, self.temperature, self.code_top_k)

    def judge_params(self, yes: int, no: int) -> SamplingParams:
        """Of a verdict, whose first token is one of the ids ``yes`` and ``no``."""
        return SamplingParams("text", 1.0, self.temperature, self.text_top_k, first=(yes, no))


def turn_seed(seed: int, turn: int) -> int:
    """The seed of an episode's n-th turn, so that episodes with neighbouring seeds share
    nothing. 56 bits, which torch's generators take."""
    digest = sha256(f"{seed}/{turn}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


async def run_episode(
    engine: Engine,
    prompt: Prompt,
    seed: int,
    max_rounds: int,
    sampling: SamplingConfig,
    on_round: Callable[[int, Round], None] | None = None,
    first_turn: Turn | None = None,
) -> Episode:
    """One episode: a task for the engine. ``on_round(round_index, round)`` is called after each
    verdict. ``first_turn`` drew the first image already, for several episodes that share it."""
    template, text, source = engine.template, prompt.text, prompt.source
    draw_params = sampling.draw_params(editing=source is not None)
    redraw_is_edit = source is not None or template.redraw_sees == "edit"
    redraw_params = sampling.draw_params(editing=redraw_is_edit)
    judge_params = sampling.judge_params(template.yes, template.no)
    is_reencoded = template.history == "reencode"  # what a redraw has as the images before it
    sees_chain = template.redraw_sees == "chain"
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
        # no later sequence begins like this one where codes are encoded again, nor where a redraw
        # has other images before it than all of them (but the second image follows the first)
        begins_next = sees_chain or (template.redraw_sees == "last" and round_index == 0)
        keep_prefix = not is_last and not is_reencoded and begins_next
        if first_turn is not None and round_index == 0:
            drawn_turn = first_turn
        else:
            drawn_turn = await engine.generate(
                request,
                redraw_params if round_index > 0 else draw_params,
                engine.janus.n_codes,
                keep_prefix=keep_prefix,
            )
        turns.append(drawn_turn)
        image = await engine.decode_image(drawn_turn.tokens)

        # judge: the same model says Yes or No, and why
        images = [*(earlier.image for earlier in rounds), image]
        segments = template.judge(text, images, answers, source)
        request = Request("judge", segments, turn_seed(seed, len(turns)))
        judge_turn = await engine.generate(
            request, judge_params, sampling.reason_tokens, keep_prefix=not is_last and sees_chain
        )
        turns.append(judge_turn)
        rounds.append(_round(image, drawn_turn, judge_turn, template))
        if on_round is not None:
            on_round(round_index, rounds[-1])
        if rounds[-1].yes or is_last:
            break

        # what the next round has of this one
        answers.append(judge_turn.tokens)
        history.append(await engine.encode_image(image) if is_reencoded else drawn_turn.tokens)
    return Episode(prompt, seed, tuple(rounds), tuple(turns))


def _round(image: Image, drawn_turn: Turn, judge_turn: Turn, template: ChatTemplate) -> Round:
    assert judge_turn.p_yes is not None
    says_yes = judge_turn.tokens[0] == template.yes
    reason = template.words(judge_turn.tokens[1:]).lstrip(", ")  # "No, there is …"
    return Round(image, drawn_turn.tokens, says_yes, judge_turn.p_yes, reason)


def run_episodes(
    engine: Engine,
    prompts: list[Prompt],
    seeds: list[int],
    rounds: int = 3,
    sampling: SamplingConfig | None = None,
    first_turns: Sequence[Turn] = (),
) -> list[Episode]:
    """One episode per (prompt, seed), all decoded together. ``first_turns``, one for each, drew
    their first images already. Raises InputError when ``rounds`` is below 1."""
    _check(prompts, seeds, rounds)
    sampling = sampling or SamplingConfig.of(engine.janus.net.generation_config)
    need = _need(engine, prompts, rounds, sampling)
    tasks = []
    turns: Sequence[Turn | None] = first_turns or [None] * len(prompts)
    for prompt, seed, first_turn in zip(prompts, seeds, turns, strict=True):
        tasks.append(run_episode(engine, prompt, seed, rounds, sampling, first_turn=first_turn))
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
        """``tokens`` are all of the sequence so far."""
        if request.kind == "judge":
            return
        rows = len(tokens) // self.row_length  # that are finished
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
    segments_of_text: dict[str, tuple[Segment, ...]] = {}
    for prompt in prompts:
        if prompt.source:
            no_codes = (0,) * n_codes  # only their number matters
            segments_of_text[prompt.text] = template.edit(no_codes, prompt.text)
        else:
            segments_of_text[prompt.text] = template.draw(prompt.text)
    longest_prompt = longest_text = 0  # with the source's image, and without
    for segments in segments_of_text.values():
        longest_prompt = max(longest_prompt, length(segments, n_patches))
        for segment in segments:
            if isinstance(segment, TokenIds) and segment.droppable:
                longest_text = max(longest_text, len(segment.ids))
    longest_image = max(n_codes, n_patches)  # drawn or seen
    is_reencoded = template.history == "reencode"
    # a redraw that sees the last image alone is as long as the second one
    longest_chain = rounds if template.redraw_sees == "chain" else min(rounds, 2)
    return Need.of(
        longest_prompt,
        longest_image,
        longest_chain,
        sampling.reason_tokens,
        is_reencoded,
        reread=longest_text if template.judge_rereads else 0,
    )
