"""What users of Python call: a model that draws, edits, judges and answers; ``training`` trains it.

The command line does everything through these functions too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from secondlook.arguments import (
    Picture,
    as_list,
    as_path,
    as_prompt,
    at_least,
    check_sampling,
    check_text,
    check_threshold,
    one_each,
    open_picture,
)
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError
from secondlook.io import whole_folder, writable_folder
from secondlook.models.janus.model import Janus
from secondlook.streaming import StreamEvent, stream_events
from secondlook.types import Episode, Prompt, Request, SamplingParams, Verdict

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


def load(
    model: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 64,
    attention: str = "sdpa",
) -> Model:
    """Load a model to draw, edit, judge and answer with.

    Args:
        model: A shipped model's name (``mini``, ``mini-edit``, ``mini-base``), a checkpoint's
            folder, or an id of the Hugging Face hub.
        device: ``auto`` (CUDA, else MPS, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        dtype: ``auto`` (float32 on the CPU, half precision on CUDA), ``float32``, ``bfloat16``,
            ``float16``, or ``int8`` (weights of the language model in 8 bits, by torchao).
        batch_size: The most episodes that are decoded together; fewer where memory is short.
        attention: ``sdpa`` or ``eager``.

    Raises:
        InputError: The model, the device or one of the words cannot be used.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    batch_size = at_least("batch_size", batch_size)
    # int8 begins with the device's own dtype: what is not in 8 bits stays in it
    loaded_dtype: Any = "auto" if dtype in ("auto", "int8") else getattr(torch, dtype)
    janus = Janus.load(model, device, loaded_dtype, attention)
    if dtype == "int8":
        janus.in_8_bits()
    return Model(Engine(janus, batch_size), str(model), in_8_bits=dtype == "int8")


class Model:
    """A model that draws an image, looks at it, and draws again. ``secondlook.load`` makes it.

    Nothing here may be called from several threads at the same time. It may be called inside a
    running event loop, which waits for it.
    """

    def __init__(self, engine: Engine, name: str = "", in_8_bits: bool = False):
        self.engine = engine
        self.name = name
        """What it was loaded from."""
        self.in_8_bits = in_8_bits

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"<secondlook.Model {self.name!r}: {self.image_size} x {self.image_size} pixels of "
            f"{self.codes_per_image} codes, {self.parameters / 1e6:.1f} M parameters, "
            f"{dtype} on {self.device}>"
        )

    @property
    def janus(self) -> Janus:
        """The network with its tokenizer and image paths, a torch module."""
        return self.engine.janus

    @property
    def device(self) -> torch.device:
        """Where its weights are and its images are drawn."""
        return self.janus.device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of its weights; of a model in 8 bits, of those that are not."""
        return self.janus.dtype

    @property
    def image_size(self) -> int:
        """Width and height of its images in pixels."""
        return self.janus.image_size

    @property
    def codes_per_image(self) -> int:
        """Codes of one drawn image (576 of Janus-Pro)."""
        return self.janus.n_codes

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        return sum(weight.numel() for weight in self.janus.parameters())

    def sampling(self, guidance: float | None = None, temperature: float = 1.0) -> SamplingConfig:
        """How episodes are sampled; ``guidance`` is that of drawing and of editing, None the
        checkpoint's own of each. Raises InputError for numbers out of range."""
        check_sampling(guidance, temperature)
        checkpoint_sampling = SamplingConfig.of(self.janus.net.generation_config)
        sampling = replace(checkpoint_sampling, temperature=temperature)
        if guidance is None:
            return sampling
        return replace(sampling, guidance=guidance, edit_guidance=guidance)

    @overload
    def draw(  # type: ignore[overload-overlap]
        self,
        prompt: str | Prompt,
        n: Literal[1] = 1,
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Episode: ...

    @overload
    def draw(
        self,
        prompt: str | Prompt | Sequence[str | Prompt],
        n: int = 1,
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> list[Episode]: ...

    def draw(
        self,
        prompt: str | Prompt | Sequence[str | Prompt],
        n: int = 1,
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Episode | list[Episode]:
        """Draw prompts: each image is looked at and judged, and drawn again while the verdict is
        No. All are decoded together.

        Args:
            prompt: One prompt or several. A ``Prompt`` with a source is an edit of it.
            n: Episodes of each prompt. Sample j of prompt i has the seed ``seed + i * n + j``.
            rounds: The most images of an episode.
            seed: From 0 on. Equal seeds give equal episodes, whatever is decoded beside them.
            guidance: Classifier-free guidance of drawing; default: the checkpoint's own.
            temperature: Of codes, verdicts and reasons; 0 is greedy.

        Returns:
            One episode for one prompt and ``n = 1``, else a list: the first prompt's ``n``, then
            the second's …; of an empty list an empty one.

        Raises:
            InputError: A prompt cannot be read by the model, or a number is out of range.
        """
        n, rounds, seed = at_least("n", n), at_least("rounds", rounds), at_least("seed", seed, 0)
        sampling = self.sampling(guidance, temperature)
        is_single = isinstance(prompt, str | Prompt)
        repeated_prompts: list[Prompt] = []  # samples of a prompt side by side
        for each in as_list(prompt, str | Prompt):
            repeated_prompts += [as_prompt(each, self.janus)] * n
        seeds = list(range(seed, seed + len(repeated_prompts)))
        episodes = run_episodes(self.engine, repeated_prompts, seeds, rounds, sampling)
        return episodes[0] if is_single and n == 1 else episodes

    @overload
    def edit(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        instruction: str,
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Episode: ...

    @overload
    def edit(
        self,
        image: Picture,
        instruction: Sequence[str],
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> list[Episode]: ...

    def edit(
        self,
        image: Picture,
        instruction: str | Sequence[str],
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Episode | list[Episode]:
        """Edit an image: each edit is looked at and judged, and made again while the verdict is No.

        Several instructions are carried out one after another, each on the final image of the one
        before; the i-th has the seed ``seed + i``. The shipped model that was trained to edit is
        ``mini-edit``. Edits of several images are drawn together by ``draw`` with
        ``Prompt(instruction, source=image)``.

        Args:
            image: The image to edit, or its path.
            instruction: What to change, or a list of it; an empty list gives an empty list.
            rounds: The most images of an instruction.
            seed: From 0 on. Equal seeds give equal episodes.
            guidance: Classifier-free guidance of editing; default: the checkpoint's own.
            temperature: Of codes, verdicts and reasons; 0 is greedy.

        Returns:
            An episode, or one of each instruction where they are a list.

        Raises:
            InputError: The image or an instruction cannot be read, or a number is out of range.
        """
        rounds, seed = at_least("rounds", rounds), at_least("seed", seed, 0)
        sampling = self.sampling(guidance, temperature)
        instructions = as_list(instruction, str)
        for text in instructions:
            check_text("instruction", text, "say what to change")
        source_image = open_picture(image)
        source_codes: tuple[int, ...] = ()  # of a picture that was not drawn: it is encoded
        episodes: list[Episode] = []
        for i, text in enumerate(instructions):
            prompt = Prompt(text, source_image, source_codes)
            [episode] = run_episodes(self.engine, [prompt], [seed + i], rounds, sampling)
            episodes.append(episode)
            final_round = episode.rounds[episode.final]
            source_image, source_codes = final_round.image, final_round.codes
        return episodes[0] if isinstance(instruction, str) else episodes

    @overload
    def judge(  # type: ignore[overload-overlap]
        self,
        image: Picture,
        prompt: str,
        source: Picture | None = None,
        threshold: float = 0.5,
    ) -> Verdict: ...

    @overload
    def judge(
        self,
        image: Sequence[Picture],
        prompt: str | Sequence[str],
        source: Picture | Sequence[Picture] | None = None,
        threshold: float = 0.5,
    ) -> list[Verdict]: ...

    def judge(
        self,
        image: Picture | Sequence[Picture],
        prompt: str | Sequence[str],
        source: Picture | Sequence[Picture] | None = None,
        threshold: float = 0.5,
    ) -> Verdict | list[Verdict]:
        """Ask the model whether images match their prompts (greedy).

        Args:
            image: An image or its path, or a list of them; an empty list gives an empty list.
            prompt: What the image should show; of several images one for all, or one each.
            source: What the image is an edit of; the prompt is then the instruction.
            threshold: P(Yes) above which the verdict is Yes.

        Returns:
            A verdict, or a list of them for a list of images. The reason is what the model writes
            after its own verdict, which is Yes from 0.5 on.

        Raises:
            InputError: An image or a prompt cannot be read, or the lists have different lengths.
        """
        check_threshold(threshold)
        images = as_list(image, Picture)
        prompts = one_each("prompt", prompt, len(images), str)
        sources = one_each("source", source, len(images), Picture | None)
        template, requests = self.engine.template, []
        for judged, text, edited in zip(images, prompts, sources, strict=True):
            check_text("prompt", text, "say what the image should show, or how it was edited")
            source_image = None if edited is None else open_picture(edited, "source")
            segments = template.judge(text, [open_picture(judged)], [], source_image)
            requests.append(Request("judge", segments, seed=0))  # greedy: no seed matters
        greedy = SamplingParams("text", temperature=0.0, first=(template.yes, template.no))
        verdicts = []
        for turn in self.engine.write(requests, greedy, self.engine.janus.reason_tokens):
            assert turn.p_yes is not None
            # the first token is Yes or No, and ", " stands between it and the reason
            reason = template.words(turn.tokens[1:]).lstrip(", ")
            verdicts.append(Verdict(turn.p_yes > threshold, turn.p_yes, reason))
        return verdicts[0] if isinstance(image, Picture) else verdicts

    @overload
    def ask(self, image: Picture, question: str, max_tokens: int = 64) -> str: ...  # type: ignore[overload-overlap]

    @overload
    def ask(
        self, image: Sequence[Picture], question: str | Sequence[str], max_tokens: int = 64
    ) -> list[str]: ...

    def ask(
        self,
        image: Picture | Sequence[Picture],
        question: str | Sequence[str],
        max_tokens: int = 64,
    ) -> str | list[str]:
        """Ask the model a question about an image (greedy).

        Args:
            image: An image or its path, or a list of them; an empty list gives an empty list.
            question: The question; of several images one for all, or one each.
            max_tokens: The longest answer.

        Returns:
            The answer, or a list of answers for a list of images.

        Raises:
            InputError: An image or a question cannot be read, or the lists have different lengths.
        """
        max_tokens = at_least("max_tokens", max_tokens)
        images = as_list(image, Picture)
        questions = one_each("question", question, len(images), str)
        template, requests = self.engine.template, []
        for shown, text in zip(images, questions, strict=True):
            check_text("question", text, "ask something about the image")
            requests.append(Request("ask", template.ask(open_picture(shown), text), seed=0))
        turns = self.engine.write(requests, SamplingParams("text", temperature=0.0), max_tokens)
        answers = [template.words(turn.tokens) for turn in turns]
        return answers[0] if isinstance(image, Picture) else answers

    def stream(
        self,
        prompt: str | Prompt,
        *,
        rounds: int = 3,
        seed: int = 0,
        guidance: float | None = None,
        temperature: float = 1.0,
    ) -> Iterator[StreamEvent]:
        """Draw one prompt as ``draw`` does, and tell what happens meanwhile: a ``PartialImage``
        after each row of codes, ``VerdictGiven`` (with ``round``) after each look, and at the end
        ``EpisodeFinished`` (with ``episode``, the same one that ``draw`` returns).

        Ending the loop early ends the drawing. Raises InputError as ``draw`` does.
        """
        rounds, seed = at_least("rounds", rounds), at_least("seed", seed, 0)
        sampling = self.sampling(guidance, temperature)
        return stream_events(self.engine, as_prompt(prompt, self.janus), seed, rounds, sampling)

    def save(self, folder: str | Path) -> Path:
        """Write the checkpoint to a new folder, in transformers' layout and in the number type that
        it was loaded in. ``load`` and the command line read it. Raises InputError where the folder
        exists, cannot be written, or the weights are in 8 bits."""
        folder = as_path("out", folder)
        if self.in_8_bits:
            raise InputError(
                "dtype: weights in 8 bits are for drawing only; load the model in another dtype"
            )
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise InputError(f"out: {str(folder)!r} is not empty; name a new folder")
        writable_folder(folder.parent, claimed=False)
        with whole_folder(folder) as temporary_folder:
            self.janus.save(temporary_folder)
        return folder

    def push_to_hub(self, repo_id: str, **options: Any) -> Any:
        """Upload the checkpoint with a generated model card, as ``secondlook.hub.push`` does."""
        from secondlook import hub

        return hub.push(self, repo_id, **options)
