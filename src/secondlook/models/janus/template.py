"""The protocol: its strings, and its turns as segments.

A turn's first segments, before what the model continues::

    draw    BOS | <|User|>: prompt <|Assistant|>: | BOI
    judge   …drawn image | EOI Let me think …
    redraw  …drawn image | EOI Let me think … | No, reason | EOS Next, I will draw … BOI

With ``judge_rereads`` a judge's turn says EOI prompt Let me think …

Source: Janus-Pro-R1 (arXiv 2506.01480) and its published checkpoint. Nothing else in the package
knows a template. Which path a past image takes depends on what comes next: before text it is seen,
before an image it is drawn; so a judge's prompt is no prefix of a redraw's, and each turn is a
sequence of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.io import check_unicode
from secondlook.models.janus.config_files import HISTORIES, REDRAW_SEES
from secondlook.types import ImageCodes, ImageInput, PositionSkip, Segment, TokenIds

if TYPE_CHECKING:
    from secondlook.models.janus.model import Janus

END = "<｜end▁of▁sentence｜>"
BOI, EOI = "<begin_of_image>", "<end_of_image>"
USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
# what a judge is asked
THINK = "\nLet me think Does this image match the prompt..."
MATCH = f"{EOI}{THINK}"
"""Follows an image that is judged; the verdict's first token comes next. (A judge that rereads has
the prompt between the two.)"""
AGAIN = f"{END}\nNext, I will draw a new image{BOI}"
"""Follows a verdict; the next image's first code comes next."""
EDIT = " Please generate an image."
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
SPECIALS = (
    "<｜begin▁of▁sentence｜>",
    END,
    "<｜▁pad▁｜>",
    "<image_placeholder>",
    BOI,
    EOI,
    "<|User|>",
    "<|Assistant|>",
)
MAX_PROMPT = 512
"""Tokens of a prompt with its template. The authors' script cuts at 200; DPG-Bench's longest (160
words) may have more."""
MAX_REASON = 512
"""Tokens of a verdict with its reason that is given in words. Sampled ones have at most
``SamplingConfig.reason_tokens`` (48), those of a judge behind an endpoint 256."""

Answer = str | tuple[int, ...]
"""A verdict with its reason: words, or the sampled ids (the end of sentence last, unless it was cut
off)."""


class ChatTemplate:
    """Turns of the protocol for one tokenizer.

    With ``history`` "reencode", as the public code has it, a reason's end of sentence keeps a
    position before a redraw, and the one that opens AGAIN follows as a second one (a reason that
    was cut off has none); with "codes" it is one and the same. ``redraw_sees`` says which of the
    earlier images stand before a redraw and a verdict (``Janus.redraw_sees``). With
    ``judge_rereads`` the prompt is said again behind the image that is judged
    (``Janus.judge_rereads``).
    """

    def __init__(
        self,
        tokenizer,
        history: str = "codes",
        redraw_sees: str = "chain",
        judge_rereads: bool = False,
    ):
        for name, value, known in (
            ("history", history, HISTORIES),
            ("redraw_sees", redraw_sees, REDRAW_SEES),
        ):
            if value not in known:
                raise InputError(
                    f"{name}: {value!r} is unknown; it must be one of {', '.join(known)}"
                )
        self.tokenizer, self.history, self.redraw_sees = tokenizer, history, redraw_sees
        self.judge_rereads = judge_rereads
        self.bos = tokenizer.bos_token_id
        self.eos = tokenizer.eos_token_id
        self.pad = tokenizer.pad_token_id
        # many episodes share prompts and fixed strings
        self._ids = lru_cache(4096)(
            lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        )
        self.yes, self.no = self._ids("Yes")[0], self._ids("No")[0]
        self._special = _special_tokens(tokenizer)
        """Ids of the special tokens, by their text."""
        longest_first = sorted(self._special, key=len, reverse=True)
        any_special = "|".join(map(re.escape, longest_first))
        self._special_text = re.compile(any_special or r"(?!)")  # (?!) matches nothing

    @staticmethod
    def of(janus: Janus) -> ChatTemplate:
        """The turns that a model was trained with."""
        return ChatTemplate(janus.tokenizer, janus.history, janus.redraw_sees, janus.judge_rereads)

    def _user_ids(self, before: str, text: str, after: str) -> tuple[int, ...]:
        """Ids of a user's ``text`` between two fixed strings. A special token's text in it is
        spelled out, character by character, so that a prompt cannot close its own turn, open an
        image or stand in an image's place.

        Raises InputError where ``text`` is no Unicode, or becomes a special token nevertheless (by
        normalisation).
        """
        check_unicode(text, "prompt")
        ids: list[int] = []
        start = 0  # of what has not been tokenized yet
        prefix = before  # of the first piece
        for special in self._special_text.finditer(text):
            ids += self._ids(prefix + text[start : special.start()])
            prefix = ""
            for character in special.group():
                ids += self._ids(character)
            start = special.end()
        # all in one call, for a tokenizer may join letters across the strings' borders
        ids += self._ids(prefix + text[start:] + after)
        users_ids = Counter(ids) - Counter(self._ids(before + after))
        for token, token_id in self._special.items():
            if users_ids[token_id]:
                raise InputError(f"prompt: {text!r} holds the special token {token}; leave it out")
        return tuple(ids)

    def _prompt(self, text: str) -> list[Segment]:
        """BOS, the filled template, <begin_of_image>. The unconditional branch keeps
        the first and the last of these tokens."""
        if not text.strip():
            raise InputError("prompt: it is empty; say what to draw")
        users_text = self._droppable(USER, text, ASSISTANT)
        return [TokenIds((self.bos,)), users_text, TokenIds(self._ids(BOI))]

    def _droppable(
        self, before: str, text: str, after: str, max_tokens: int = MAX_PROMPT
    ) -> TokenIds:
        """A user's text with its surroundings, which the unconditional branch pads. Raises
        InputError where it is longer than ``max_tokens``."""
        ids = self._user_ids(before, text.strip(), after)
        if len(ids) > max_tokens:
            raise InputError(f"prompt: it has {len(ids)} tokens; at most {max_tokens} are read")
        return TokenIds(ids, droppable=True)

    def _instruction(
        self, source: ImageInput | ImageCodes, text: str, max_tokens: int = MAX_PROMPT
    ) -> list[Segment]:
        """BOS, the source, the instruction, <begin_of_image>. The unconditional branch
        keeps all but the instruction."""
        if not text.strip():
            raise InputError("instruction: it is empty; say what to change")
        return [
            TokenIds((self.bos,)),
            TokenIds(self._ids(f"{USER}{BOI}")),
            source,
            TokenIds(self._ids(EOI)),
            self._droppable("", text, f"{EDIT}{ASSISTANT}", max_tokens),
            TokenIds(self._ids(BOI)),
        ]

    def draw(self, prompt: str) -> tuple[Segment, ...]:
        """The first image of a prompt."""
        return tuple(self._prompt(prompt))

    def edit(self, source: tuple[int, ...], instruction: str) -> tuple[Segment, ...]:
        """The first edit of a source."""
        return tuple(self._instruction(ImageCodes(source), instruction))

    def judge(
        self,
        prompt: str,
        images: Sequence[Image],
        reasons: Sequence[Answer],
        source: Image | None = None,
    ) -> tuple[Segment, ...]:
        """The verdict on the last of ``images``; ``reasons`` are the earlier verdicts ("No, …"),
        one fewer. Unless redraws see the chain, the earlier ones are left out. With a ``source``
        ``prompt`` is an instruction, and the images are edits of it: the same strings then ask
        whether it was followed and the rest left as it was (ours; the paper's model does not judge
        its edits). With ``judge_rereads`` the prompt stands behind each image once more, where its
        words can look at that image: attention is causal, and those before it cannot (ours)."""
        opening = self._instruction(ImageInput(source), prompt) if source else self._prompt(prompt)
        if self.redraw_sees != "chain":
            images, reasons = images[-1:], ()
        # before text, images are seen
        seen_images = [ImageInput(image) for image in images]
        match = self._ids(MATCH)
        if self.judge_rereads:
            match = self._user_ids(f"{EOI}\n", prompt.strip(), THINK)
        return self._chain(opening, seen_images, reasons, match, open_image=False)

    def redraw(
        self,
        prompt: str,
        codes: Sequence[tuple[int, ...]],
        reasons: Sequence[Answer],
        source: tuple[int, ...] = (),
    ) -> tuple[Segment, ...]:
        """The next image after as many verdicts as images; with a ``source`` the next edit of
        it. With ``redraw_sees`` "last" only the last ones are kept; with "edit" the next image is
        an edit of the last one, by the prompt and the reason, and has no other source."""
        if self.redraw_sees == "edit":
            return self.repair(codes[-1], prompt, reasons[-1])
        if self.redraw_sees == "last":
            codes, reasons = codes[-1:], reasons[-1:]
        opening = self._instruction(ImageCodes(source), prompt) if source else self._prompt(prompt)
        # before an image, images are drawn
        drawn_images = [ImageCodes(image_codes) for image_codes in codes]
        return self._chain(opening, drawn_images, reasons, self._ids(MATCH), open_image=True)

    def repair(self, wrong: tuple[int, ...], prompt: str, reason: Answer) -> tuple[Segment, ...]:
        """An edit of a wrong picture into a right one. It may be as long as a prompt and a
        reason."""
        instruction = self._repair_instruction(prompt, reason)
        longest = MAX_PROMPT + MAX_REASON
        return tuple(self._instruction(ImageCodes(wrong), instruction, longest))

    def _repair_instruction(self, prompt: str, reason: Answer) -> str:
        """The prompt and what is wrong, "a photo of a red cat; there is a blue cat"."""
        words = reason if isinstance(reason, str) else self.words(reason)
        fault = re.sub(r"^(yes|no)\b[,.]?\s*", "", words, flags=re.IGNORECASE).rstrip(". ")
        return f"{prompt.strip()}; {fault}" if fault else prompt

    def _chain(
        self,
        opening: list[Segment],
        images: Sequence[ImageInput | ImageCodes],
        reasons: Sequence[Answer],
        match: tuple[int, ...],
        open_image: bool,
    ) -> tuple[Segment, ...]:
        """``opening``, then each image, ``match`` and its verdict. It ends where the next image
        begins (``open_image``), or where the verdict on the last image does."""
        segments = [*opening]
        for i, image in enumerate(images):
            segments += [image, TokenIds(match)]
            is_judged = i < len(images) - 1 or open_image
            if not is_judged:
                break
            reason = reasons[i]
            ids = self.answer(reason) if isinstance(reason, str) else reason
            has_ended = ids[-1:] == (self.eos,)
            # AGAIN begins with the end of sentence, so it is not said twice
            segments.append(TokenIds(ids[:-1] if has_ended else ids))
            if has_ended and open_image and self.history == "reencode":
                segments.append(PositionSkip())
            segments.append(TokenIds(self._ids(AGAIN)))
        return tuple(segments)

    def ask(self, image: Image, question: str) -> tuple[Segment, ...]:
        """Plain visual question answering, with Janus's default system prompt."""
        if not question.strip():
            raise InputError("question: it is empty; ask something about the image")
        opening_ids = (self.bos, *self._ids(f"{SYSTEM}\n\n{USER}{BOI}"))
        question_ids = self._user_ids(f"{EOI}\n", question.strip(), ASSISTANT)
        if len(question_ids) > MAX_PROMPT:
            raise InputError(
                f"question: it has {len(question_ids)} tokens; at most {MAX_PROMPT} are read"
            )
        return (TokenIds(opening_ids), ImageInput(image), TokenIds(question_ids))

    def answer(self, text: str) -> tuple[int, ...]:
        """A completion's ids with the end of sentence. Raises InputError where it is longer than
        ``MAX_REASON``."""
        ids = self._user_ids("", text, "")
        if len(ids) > MAX_REASON:
            raise InputError(f"reason: it has {len(ids)} tokens; at most {MAX_REASON} are read")
        return (*ids, self.eos)

    def words(self, tokens: tuple[int, ...]) -> str:
        """Sampled text ids as text, without special tokens."""
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True).strip()

    def unconditional(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """The unconditional branch of guidance: only the prompt's own tokens become pads; images,
        verdicts and fixed strings stay."""
        branch: list[Segment] = []
        for segment in segments:
            if isinstance(segment, TokenIds) and segment.droppable:
                segment = TokenIds((self.pad,) * len(segment.ids))
            branch.append(segment)
        return tuple(branch)


def _special_tokens(tokenizer) -> dict[str, int]:
    """Added tokens, by their text, that must not come from a user: those that the tokenizer calls
    special, the protocol's own, and whatever looks like one, <…>."""
    special_ids = {}
    for token_id, added_token in tokenizer.added_tokens_decoder.items():
        text = str(added_token)
        if added_token.special or text in SPECIALS or re.fullmatch("<.+>", text):
            special_ids[text] = token_id
    return special_ids
