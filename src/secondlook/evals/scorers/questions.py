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
    # "1, 3" -> ["1", "3"]
    number_texts = [part.strip() for part in str(text).split(",") if part.strip()]
    if not number_texts or not all(re.fullmatch(r"\d+", part) for part in number_texts):
        return None
    return tuple(int(number_text) for number_text in number_texts if number_text != "0")


def table(path: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """The rows of a CSV file, each with where it stands. Raises InputError where it has no row or
    lacks one of the ``columns``."""
    table_rows = read_table(path)
    known_columns = table_rows[0] if table_rows else ()
    for column in columns:
        if column not in known_columns:
            raise InputError(
                f"data: {str(path)!r} has no row with a column {column}; it must have "
                f"{', '.join(columns)}"
            )
    return [(f"row {number} of {str(path)!r}", row) for number, row in enumerate(table_rows, 1)]


def question_rows(path: Path, task_of: Callable[[str], str]) -> list[Row]:
    """Rows of a table of questions, one a prompt, with ``task_of`` an item's id as task; facts are
    ``questions``, ``tuples`` and ``parents`` by the question's number.

    An item with a malformed dependency has none at all, as in DSG's released code. Raises
    InputError that names the table's row.
    """
    # item -> question's number -> the table's row, of which each is one question
    questions_of_item: dict[str, dict[int, dict[str, str]]] = {}
    place_of_item: dict[str, str] = {}  # where its first question stands
    for where, table_row in table(path, COLUMNS):
        for column in ("item_id", "text", "question_natural_language"):
            text_field(table_row, column, where)
        item_id = table_row["item_id"]
        number_text = table_row["proposition_id"].strip()
        if not number_text.isdecimal():
            raise InputError(
                f"proposition_id: it is {number_text!r} in {where}; it must be a number from 1 on"
            )
        questions = questions_of_item.setdefault(item_id, {})
        if int(number_text) in questions:
            raise InputError(
                f"proposition_id: {number_text} is in {where} for item {item_id!r} a second time"
            )
        questions[int(number_text)] = table_row
        place_of_item.setdefault(item_id, where)

    rows = []
    for item_id, questions in questions_of_item.items():
        first_question = next(iter(questions.values()))
        prompt, facts = first_question["text"].strip(), _facts(questions)
        rows.append(Row(item_id, prompt, task_of(item_id), facts, where=place_of_item[item_id]))
    return rows


def _facts(questions: Mapping[int, dict[str, str]]) -> dict[str, Any]:
    """An item's facts, each by the question's number, from its rows of the table."""
    question_texts, question_tuples, parents = {}, {}, {}
    for number, table_row in questions.items():
        question_texts[number] = table_row["question_natural_language"]
        question_tuples[number] = table_row["tuple"]
        parents[number] = parents_of(table_row["dependency"])
    if None in parents.values():  # one that is malformed
        parents = {}
    return {"questions": question_texts, "tuples": question_tuples, "parents": parents}


class DependentQuestions:
    """Scores a picture by the answers to its row's questions, and keeps those."""

    def __init__(self, answer: Answerer, rule: Rule):
        self.answer, self.rule = answer, rule

    @property
    def missing(self) -> list[Missing]:
        """Why answers are missing."""
        return missing_of(self.answer)

    def __call__(self, items: Sequence[tuple[Row, Image.Image]]) -> list[ScoreOrReason]:
        asked_questions = []
        for row, image in items:
            for question in row.facts["questions"].values():
                asked_questions.append((question, image))
        # all items' questions are asked together, then handed out in their order
        p_yes = iter(self.answer(asked_questions))
        scores = []
        for row, _ in items:
            p_yes_of_question = {number: next(p_yes) for number in row.facts["questions"]}
            scores.append(self._score(row, p_yes_of_question))
        return scores

    def _score(self, row: Row, p_yes_of_question: Mapping[int, float | None]) -> ScoreOrReason:
        """A picture's score and its answers; why not, where one is missing."""
        answers = {}
        tuples_and_answers = []
        for number, p_yes in p_yes_of_question.items():
            if p_yes is None:
                question = row.facts["questions"][number]
                return f"no answer to {question!r}{why_missing(self.answer)}"
            answers[number] = float(p_yes > 0.5)
            tuples_and_answers.append([row.facts["tuples"][number], answers[number]])
        value = self.rule(answers, row.facts["parents"])
        return {"value": value, "answers": tuples_and_answers}
