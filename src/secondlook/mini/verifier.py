"""The world's own reader as a judge: exact, free, and strict."""

from __future__ import annotations

from collections.abc import Sequence

from PIL.Image import Image

from secondlook.errors import InputError
from secondlook.mini.world import edits
from secondlook.mini.world.compound import parse
from secondlook.mini.world.edits import Edit
from secondlook.mini.world.reader import judge, to_canvas
from secondlook.mini.world.reasons import faults_in, truth
from secondlook.rewards.reward import Edited, Score
from secondlook.types import Prompt


class Verifier:
    """Scores pictures of the world's prompts; a prompt in other words has no score."""

    def __call__(self, items: Sequence[tuple[str, Image]]) -> list[Score | None]:
        return [self._score(prompt, image) for prompt, image in items]

    def edits(self, items: Sequence[Edited]) -> list[Score | None]:
        """One score for each (instruction, source, edit); none for an instruction or a source of
        another world."""
        edit_of_request: dict[tuple[str, int], Edit | None] = {}
        scores = []
        for instruction, source, image in items:
            request_key = (instruction, id(source))
            if request_key not in edit_of_request:  # a source is read once, it has many edits
                edit_of_request[request_key] = self._edit_of(instruction, source)
            scores.append(self._score_edit(edit_of_request[request_key], image))
        return scores

    def reason_truths(self, items: Sequence[tuple[str, Image, str]]) -> list[float | None]:
        """Of each (prompt, wrong picture, reason) the share of the faults the reason names that are
        there; 0 where it names none. None for a prompt in other words."""
        truths: list[float | None] = []
        for prompt, image, reason in items:
            try:
                spec = parse(prompt)
            except InputError:
                truths.append(None)
                continue
            truths.append(truth(spec, to_canvas(image), reason) or 0.0)
        return truths

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

    def _edit_of(self, instruction: str, source: Image) -> Edit | None:
        try:
            return edits.edit_of(instruction, source)
        except InputError:
            return None

    def _score_edit(self, edit: Edit | None, image: Image) -> Score | None:
        if edit is None:
            return None
        verdict = edits.judge(edit, image)
        return Score.of_edit(verdict.following, verdict.preserving, verdict.correct, verdict.reason)

    def _score(self, prompt: str, image: Image) -> Score | None:
        try:
            spec = parse(prompt)
        except InputError:
            return None
        verdict = judge(spec, image)
        if verdict.correct:
            return Score(verdict.score, True, verdict.reason)
        # what to change, and where
        return Score(verdict.score, False, faults_in(spec, to_canvas(image)) or verdict.reason)
