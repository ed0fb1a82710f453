"""The protocol: its strings, its turns as segments, and segments as positions, embeddings and
masks.

Source: Janus-Pro-R1 (arXiv 2506.01480) and its published checkpoint. Nothing else in the package
knows a template. Which path a past image takes depends on what comes next: before text it is seen,
before an image it is drawn; so a judge's prompt is no prefix of a redraw's, and each turn is a
sequence of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from secondlook.errors import InputError
from secondlook.io import check_unicode
from secondlook.models.janus.model import Janus
from secondlook.types import ImageCodes, ImageInput, PositionSkip, Segment, TokenIds

END = "<｜end▁of▁sentence｜>"
BOI, EOI = "<begin_of_image>", "<end_of_image>"
USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
MATCH = f"{EOI}\nLet me think Does this image match the prompt..."
AGAIN = f"{END}\nNext, I will draw a new image{BOI}"
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
``Sampling.reason_tokens`` (48), those of a judge behind an endpoint 256."""


Answer = str | tuple[int, ...]
"""A verdict with its reason: words, or the sampled ids (the end of sentence last, unless it was cut
off)."""
HISTORIES = ("codes", "reencode")


class ChatTemplate:
    """Turns of the protocol for one tokenizer.

    With ``history`` "reencode", as the public code has it, a reason's end of sentence keeps a
    position before a redraw, and the one that opens AGAIN follows as a second one (a reason that
    was cut off has none); with "codes" it is one and the same.
    """

    def __init__(self, tokenizer, history: str = "codes"):
        if history not in HISTORIES:
            raise InputError(
                f"history: {history!r} is unknown; it must be one of {', '.join(HISTORIES)}"
            )
        self.tokenizer, self.history = tokenizer, history
        self.bos, self.eos, self.pad = (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )
        self._ids = lru_cache(4096)(
            lambda text: tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        )
        self.yes, self.no = (self._ids(word)[0] for word in ("Yes", "No"))
        added = tokenizer.added_tokens_decoder.items()
        self._special = {
            str(t): i
            for i, t in added
            if t.special or str(t) in SPECIALS or re.fullmatch("<.+>", str(t))
        }
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _user_ids(self, before: str, text: str, after: str) -> tuple[int, ...]:
        """Ids of a user's ``text`` between two fixed strings. A special token's text in it is
        spelled out, character by character, so that a prompt cannot close its own turn, open an
        image or stand in an image's place.

        Raises InputError where ``text`` is no Unicode, or becomes a special token nevertheless (by
        normalisation).
        """
        check_unicode(text, "prompt")
        ids: list[int] = []
        start = 0
        for found in self._special_text.finditer(text):
            ids += self._ids(("" if start else before) + text[start : found.start()])
            for character in found.group():
                ids += self._ids(character)
            start = found.end()
        ids += self._ids(("" if start else before) + text[start:] + after)
        beyond = Counter(ids) - Counter(self._ids(before + after))
        for token, i in self._special.items():
            if beyond[i]:
                raise InputError(f"prompt: {text!r} holds the special token {token}; leave it out")
        return tuple(ids)

    def _prompt(self, text: str) -> list[Segment]:
        """BOS, the filled template, <begin_of_image>. The unconditional branch keeps
        the first and the last of these tokens."""
        if not text.strip():
            raise InputError("prompt: it is empty; say what to draw")
        return [TokenIds((self.bos,)), self._asked(USER, text, ASSISTANT), TokenIds(self._ids(BOI))]

    def _asked(self, before: str, text: str, after: str) -> TokenIds:
        ids = self._user_ids(before, text.strip(), after)
        if len(ids) > MAX_PROMPT:
            raise InputError(f"prompt: it has {len(ids)} tokens; at most {MAX_PROMPT} are read")
        return TokenIds(ids, droppable=True)

    def _instruction(self, source: ImageInput | ImageCodes, text: str) -> list[Segment]:
        """BOS, the source, the instruction, <begin_of_image>. The unconditional branch
        keeps all but the instruction."""
        if not text.strip():
            raise InputError("instruction: it is empty; say what to change")
        opened = [
            TokenIds((self.bos,)),
            TokenIds(self._ids(f"{USER}{BOI}")),
            source,
            TokenIds(self._ids(EOI)),
        ]
        return [*opened, self._asked("", text, f"{EDIT}{ASSISTANT}"), TokenIds(self._ids(BOI))]

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
        one fewer. With a ``source`` ``prompt`` is an instruction, and the images are edits of it:
        the same strings then ask whether it was followed and the rest left as it was (ours; the
        paper's model does not judge its edits)."""
        opened = self._instruction(ImageInput(source), prompt) if source else self._prompt(prompt)
        return self._chain(opened, [ImageInput(i) for i in images], reasons, open_image=False)

    def redraw(
        self,
        prompt: str,
        codes: Sequence[tuple[int, ...]],
        reasons: Sequence[Answer],
        source: tuple[int, ...] = (),
    ) -> tuple[Segment, ...]:
        """The next image after as many verdicts as images; with a ``source`` the next edit of
        it."""
        opened = self._instruction(ImageCodes(source), prompt) if source else self._prompt(prompt)
        return self._chain(opened, [ImageCodes(c) for c in codes], reasons, open_image=True)

    def _chain(self, opened, images, reasons, open_image) -> tuple[Segment, ...]:
        segments = [*opened]
        for i, image in enumerate(images):
            segments += [image, TokenIds(self._ids(MATCH))]
            if i < len(images) - 1 or open_image:
                ids = self.answer(reasons[i]) if isinstance(reasons[i], str) else reasons[i]
                ended = ids[-1:] == (self.eos,)
                segments.append(TokenIds(ids[:-1] if ended else ids))
                if ended and open_image and self.history == "reencode":
                    segments.append(PositionSkip())
                segments.append(TokenIds(self._ids(AGAIN)))
        return tuple(segments)

    def ask(self, image: Image, question: str) -> tuple[Segment, ...]:
        """Plain visual question answering, with Janus's default system prompt."""
        if not question.strip():
            raise InputError("question: it is empty; ask something about the image")
        opened = (self.bos, *self._ids(f"{SYSTEM}\n\n{USER}{BOI}"))
        asked = self._user_ids(f"{EOI}\n", question.strip(), ASSISTANT)
        if len(asked) > MAX_PROMPT:
            raise InputError(f"question: it has {len(asked)} tokens; at most {MAX_PROMPT} are read")
        return (TokenIds(opened), ImageInput(image), TokenIds(asked))

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
        return tuple(
            TokenIds((self.pad,) * len(s.ids)) if isinstance(s, TokenIds) and s.droppable else s
            for s in segments
        )


@dataclass
class Batch:
    """Sequences as tensors. Rows are padded on the right to one length."""

    embeds: Tensor
    """(B, T, D)."""
    lengths: Tensor
    """(B,) real columns of each row."""
    positions: Tensor
    """(B, T) the column's number within its row, moved on by the gaps before it; 0 where the row is
    padded."""


def length(segments: tuple[Segment, ...], n_patches: int) -> int:
    """Columns that segments take."""
    sizes = (
        0
        if isinstance(s, PositionSkip)
        else n_patches
        if isinstance(s, ImageInput)
        else len(s.ids if isinstance(s, TokenIds) else s.codes)
        for s in segments
    )
    return sum(sizes)


Column = tuple[int, str, int]
"""One column of a sequence: its position, and what stands there (kind and value)."""


def columns_of(segments: tuple[Segment, ...], n_patches: int) -> list[Column]:
    """Segments column by column. A seen image is known by its identity, so keep the segments as
    long as the columns."""
    found: list[Column] = []
    gaps = 0
    for s in segments:
        if isinstance(s, PositionSkip):
            gaps += s.size
            continue
        if isinstance(s, ImageInput):
            kind, values = f"look {id(s.image)}", tuple(range(n_patches))
        else:
            kind, values = ("text", s.ids) if isinstance(s, TokenIds) else ("code", s.codes)
        found += [
            (position, kind, value) for position, value in enumerate(values, len(found) + gaps)
        ]
    return found


def in_common(columns: list[Column], earlier: list[Column]) -> int:
    """How many columns at the beginning need not be computed again: not all, for the last one's
    hidden state is wanted, and no part of a seen image."""
    most = min(len(columns) - 1, len(earlier))
    n = next((i for i in range(most) if columns[i] != earlier[i]), most)
    _, kind, value = columns[n]
    return n - value if kind.startswith("look") else n


def rest(
    segments: tuple[Segment, ...], start: int, n_patches: int
) -> tuple[tuple[Segment, ...], int]:
    """The segments from column ``start`` on, and the position of their first column."""
    left, position = start, start
    for i, s in enumerate(segments):
        size = length((s,), n_patches)
        if left < size:
            if left and isinstance(s, TokenIds):
                s = replace(s, ids=s.ids[left:])
            elif left and isinstance(s, ImageCodes):
                s = ImageCodes(s.codes[left:])
            return (s, *segments[i + 1 :]), position
        left -= size
        position += s.size if isinstance(s, PositionSkip) else 0
    raise ValueError(f"start: {start} is beyond the last column")


def flat(janus: Janus, rows: list[tuple[Segment, ...]]) -> tuple[Tensor, Tensor]:
    """Embed rows of segments one behind another: text by the token table, drawn images by the
    generation path, seen ones by the seeing path.

    Returns embeddings (N, D) and positions (N,): the column's number in its row, moved on by the
    gaps before it.
    """
    device, pad = janus.device, janus.tokenizer.pad_token_id
    ids: list[int] = []
    positions: list[int] = []
    spans: dict[str, list[tuple[int, int]]] = {"drawn": [], "seen": []}
    images: list[Image] = []
    for row in rows:
        position = 0
        for s in row:
            if isinstance(s, PositionSkip):
                position += s.size
                continue
            tokens = (
                (pad,) * janus.n_patches
                if isinstance(s, ImageInput)
                else s.ids
                if isinstance(s, TokenIds)
                else s.codes
            )
            if not isinstance(s, TokenIds):
                spans["seen" if isinstance(s, ImageInput) else "drawn"].append(
                    (len(ids), len(ids) + len(tokens))
                )
            if isinstance(s, ImageInput):
                images.append(s.image)
            ids += tokens
            positions += range(position, position + len(tokens))
            position += len(tokens)
    given = torch.tensor(ids, device=device)
    drawn, seen = (torch.zeros(len(ids), dtype=torch.bool) for _ in spans)
    for mask, name in ((drawn, "drawn"), (seen, "seen")):
        for begin, end in spans[name]:
            mask[begin:end] = True
    drawn, seen = drawn.to(device), seen.to(device)
    embeds = janus.embed_text(given.masked_fill(drawn, pad))
    if spans["drawn"]:
        embeds = embeds.masked_scatter(
            drawn[:, None], janus.embed_codes(given[drawn]).to(embeds.dtype)
        )
    if images:
        unique = list(
            {id(i): i for i in images}.values()
        )  # the same picture may stand in several rows
        where = {id(i): n for n, i in enumerate(unique)}
        features = janus.embed_seen(janus.seen(unique))[[where[id(i)] for i in images]]
        embeds = embeds.masked_scatter(seen[:, None], features.to(embeds.dtype))
    return embeds, torch.tensor(positions, device=device)


def assemble(janus: Janus, rows: list[tuple[Segment, ...]]) -> Batch:
    """``flat`` rows side by side, padded with zeros; a causal model never attends to those from a
    real column."""
    lengths = [length(row, janus.n_patches) for row in rows]
    embeds, positions = (
        pad_sequence(x.split(lengths), batch_first=True) for x in flat(janus, rows)
    )
    return Batch(embeds, torch.tensor(lengths, device=janus.device), positions)
