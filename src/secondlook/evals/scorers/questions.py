"""Questions about a prompt that depend on one another: what DSG and DPG-Bench share.

Both have tables of the same columns. A question is answered with yes or no; what an answer is worth
where the question's parent was answered with no is each benchmark's own rule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from secondlook.errors import InputError
from secondlook.evals.benchmark import Row, ScoreOrReason
from secondlook.io import read_table, text_field
from secondlook.llm.missing import Missing, missing_of, why_missing

if TYPE_CHECKING:
    from secondlook.evals.scorers.vqa import Answerer

Parents = Mapping[int, tuple[int, ...]]
"""A question's number -> those of the questions that it depends on."""
Rule = Callable[[Mapping[int, float], Parents], float]
"""A picture's score of its answers (1.0 or 0.0 by the question's number)."""
COLUMNS = (
    "item_id",
    "text",
    "proposition_id",
    "dependency",
    "tuple",
    "question_natural_language",
)


def parents_of(text: str) -> tuple[int, ...] | None:
    """Numbers of a dependency field, "0" for none; None where it is malformed."""
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    if not parts or not all(re.fullmatch(r"\d+", part) for part in parts):
        return None
    return tuple(int(part) for part in parts if part != "0")


def table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with where it stands. Raises InputError where it has no row or
    lacks one of the ``columns``."""
    rows = read_table(path)
    lacking = [column for column in columns if not rows or column not in rows[0]]
    if lacking:
        raise InputError(
            f"data: {str(path)!r} has no row with a column {lacking[0]}; it must have "
            f"{', '.join(columns)}"
        )
    return [(f"row {i} of {str(path)!r}", row) for i, row in enumerate(rows, 1)]


def question_rows(path: Path, task_of: Callable[[str], str]) -> list[Row]:
    """Rows of a table of questions, one a prompt, with ``task_of`` an item's id as task; facts are
    ``questions``, ``tuples`` and ``parents`` by the question's number.

    An item with a malformed dependency has none at all, as in DSG's released code. Raises
    InputError that names the table's row.
    """
    by_item: dict[str, dict[int, dict[str, str]]] = {}
    places: dict[str, str] = {}
    for where, row in table(path, COLUMNS):
        for name in ("item_id", "text", "question_natural_language"):
            text_field(row, name, where)
        number = row["proposition_id"].strip()
        if not number.isdecimal():
            raise InputError(
                f"proposition_id: it is {number!r} in {where}; it must be a number from 1 on"
            )
        questions = by_item.setdefault(row["item_id"], {})
        if int(number) in questions:
            raise InputError(
                f"proposition_id: {number} is in {where} for item {row['item_id']!r} a second time"
            )
        questions[int(number)] = row
        places.setdefault(row["item_id"], where)

    rows = []
    for item, questions in by_item.items():
        text = next(iter(questions.values()))["text"].strip()
        rows.append(Row(item, text, task_of(item), _facts(questions), where=places[item]))
    return rows


def _facts(questions: Mapping[int, dict[str, str]]) -> dict[str, Any]:
    texts, tuples, parents = {}, {}, {}
    for number, row in questions.items():
        texts[number] = row["question_natural_language"]
        tuples[number] = row["tuple"]
        parents[number] = parents_of(row["dependency"])
    well_formed = None not in parents.values()
    return {"questions": texts, "tuples": tuples, "parents": parents if well_formed else {}}


class DependentQuestions:
    """Scores a picture by the answers to its row's questions, and keeps those."""

    def __init__(self, answer: Answerer, rule: Rule):
        self.answer, self.rule = answer, rule

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.answer)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        asked = []
        for row, image in items:
            asked += [(question, image) for question in row.facts["questions"].values()]
        p_yes = iter(self.answer(asked))
        return [self._score(row, [next(p_yes) for _ in row.facts["questions"]]) for row, _ in items]

    def _score(self, row: Row, p_yes: Sequence[float | None]) -> ScoreOrReason:
        answers = {}
        for number, p in zip(row.facts["questions"], p_yes, strict=True):
            if p is None:
                question = row.facts["questions"][number]
                return f"no answer to {question!r}{why_missing(self.answer)}"
            answers[number] = float(p > 0.5)
        listed = [[row.facts["tuples"][number], answer] for number, answer in answers.items()]
        return {"value": self.rule(answers, row.facts["parents"]), "answers": listed}
