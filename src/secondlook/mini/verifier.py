"""The world's own reader as a judge: exact, free, and strict."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.mini.world import edits
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.language import parse
from secondlook.mini.world.reader import judge
from secondlook.rewards.reward import Edited, Score
from secondlook.types import Prompt


class Verifier:
    """Scores pictures of the world's prompts; a prompt in other words has no score."""

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        return [self._score(prompt, image) for prompt, image in items]

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit); none for an instruction or a source of
        another world."""
        asked = {
            (instruction, id(source)): (instruction, source) for instruction, source, _ in items
        }
        known = {key: self._asked(*what) for key, what in asked.items()}  # a source is read once
        return [
            self._edit(known[instruction, id(source)], image)
            for instruction, source, image in items
        ]

    def why_not(self, prompt: Prompt) -> str:
        """Why no picture of a prompt gets a score: words, or a source, of another world."""
        try:
            if prompt.source is None:
                parse(prompt.text)
            else:
                edits.edit_of(prompt.text, prompt.source)
        except InputError as error:
            return str(error)
        return ""

    def _asked(self, instruction: str, source: Image) -> Edit | None:
        try:
            return edits.edit_of(instruction, source)
        except InputError:
            return None

    def _edit(self, edit: Edit | None, image: Image) -> Score | None:
        if edit is None:
            return None
        v = edits.judge(edit, image)
        return Score.of_edit(v.following, v.preserving, v.correct, v.reason)

    def _score(self, prompt: str, image: Image) -> Score | None:
        try:
            spec = parse(prompt)
        except InputError:
            return None
        verdict = judge(spec, image)
        return Score(verdict.score, verdict.correct, verdict.reason)
