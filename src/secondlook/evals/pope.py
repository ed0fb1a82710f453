"""POPE: does a model say that objects are in a picture which are not?

Source: arXiv 2305.10355 and its released evaluate.py: three times 3,000 questions about 500
pictures of COCO (val2014), answered here by the model's own plain question answering, greedy. The
score is the F1 of "yes". Any number of processes share the questions; what is answered is not asked
again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.benchmark import MODEL_HELP, Benchmark, EvalSession, Row
from secondlook.evals.intervals import bootstrap, group_by_prompt, interval_text
from secondlook.evals.records import stored
from secondlook.io import (
    append_rows,
    counted,
    read_image,
    read_rows,
    versions,
    write_json,
    write_text,
)
from secondlook.registry import register_benchmark
from secondlook.types import Request, SamplingParams, WorkerShard

if TYPE_CHECKING:
    from PIL.Image import Image

    from secondlook.engine.engine import Engine

SPLITS = ("random", "popular", "adversarial")
MAX_TOKENS = 16
"""Of an answer."""
MAX_UNREADABLE = 0.05
"""Share of the questions whose pictures may be missing."""


@register_benchmark("pope")
class POPE(Benchmark):
    """POPE's 9,000 questions about objects in pictures of COCO (--images)."""

    title = "POPE"
    suite = "public"
    resumes = True
    files_written = "result.json, answers.json, benchmark.html"
    page = "benchmark.html"

    model: str = Field(description=MODEL_HELP)
    images: Path | None = Field(None, description="The folder of COCO's val2014 pictures.")
    only: int = Field(0, ge=0, description="The first questions of each split alone; 0: all.")
    data: Path | None = Field(
        None,
        exclude=True,
        description="A folder with the benchmarks' files; default: fetched, revisions pinned.",
    )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"max_tokens": MAX_TOKENS}

    def rows(self) -> list[Row]:
        """All questions; ``facts`` has picture and label."""
        rows = []
        for split in SPLITS:
            questions_path = fetch.file(f"pope/coco_pope_{split}.json", self.data)
            for line_number, question in read_rows(questions_path):
                row_id = f"{split}-{question['question_id']}"  # its numbers begin anew a split
                facts = {"image": question["image"], "label": question["label"]}
                where = f"line {line_number} of {questions_path}"
                rows.append(Row(row_id, question["text"], split, facts, where=where))
        return rows

    @cached_property
    def readable_rows(self) -> tuple[list[Row], list[str]]:
        """The questions whose pictures can be read, and why others' cannot. Raises InputError where
        more than a twentieth of the questions have none."""
        if self.images is None:
            raise InputError(
                "images: POPE's pictures are needed; give the folder of COCO's val2014"
            )
        asked_rows = []
        rows_of_split = by_split(self.rows())
        for of_split in rows_of_split.values():
            asked_rows += of_split[: self.only] if self.only else of_split
        fault_of_picture: dict[str, str] = {}
        for picture_name in dict.fromkeys(row.facts["image"] for row in asked_rows):
            try:
                read_image(self.images / picture_name)
            except InputError as error:
                fault_of_picture[picture_name] = str(error)
        readable = [row for row in asked_rows if row.facts["image"] not in fault_of_picture]
        if len(asked_rows) - len(readable) > MAX_UNREADABLE * len(asked_rows):
            raise InputError(
                f"images: {str(self.images)!r} lacks {len(fault_of_picture)} pictures, first "
                f"{next(iter(fault_of_picture))}; give the folder of COCO's val2014 pictures"
            )
        return readable, list(fault_of_picture.values())

    def check(self) -> None:
        super().check()
        _ = self.readable_rows

    def run(self, session: EvalSession) -> dict[str, Any] | None:
        rows, faults = self.readable_rows
        self._ask_own_questions(rows, session)
        answers = read_answers(session.out)
        if not all(row.id in answers for row in rows):
            return None
        return self._write(session.out, rows, [answers[row.id] for row in rows], faults)

    def _ask_own_questions(self, rows: Sequence[Row], session: EvalSession) -> None:
        """Ask this process's questions that have no answer yet: a row of answers-RANK.jsonl
        each."""
        shard = WorkerShard.of_environment()
        own_rows = rows[shard.rank :: shard.size]
        answer_of_row = read_answers(session.out)
        rows_left = [row for row in own_rows if row.id not in answer_of_row]
        if rows_left:  # else no model is loaded
            engine = session.load_engine(self.model)
            for start in range(0, len(rows_left), engine.batch):
                num_done = len(own_rows) - len(rows_left) + start
                session.progress("asking", num_done, len(own_rows))
                batch_rows = rows_left[start : start + engine.batch]
                texts = self._answers(engine, batch_rows)
                answer_rows = []
                for row, text in zip(batch_rows, texts, strict=True):
                    answer_rows.append({"id": row.id, "answer": text})
                append_rows(session.out / f"answers-{shard.rank:03d}.jsonl", answer_rows)
        session.progress("asking", len(own_rows), len(own_rows))

    def _answers(self, engine: Engine, rows: Sequence[Row]) -> list[str]:
        """The model's answer in words to each question."""
        assert self.images is not None
        pictures: dict[str, Image] = {}  # questions share pictures
        requests = []
        for row in rows:
            picture_name = row.facts["image"]
            if picture_name not in pictures:
                pictures[picture_name] = read_image(self.images / picture_name)
            segments = engine.template.ask(pictures[picture_name], row.prompt)
            requests.append(Request("ask", segments, 0))  # no seed is needed: greedy
        greedy = SamplingParams("text", temperature=0.0)
        turns = engine.write(requests, greedy, MAX_TOKENS)
        return [engine.template.words(turn.tokens) for turn in turns]

    def _write(
        self, out: Path, rows: Sequence[Row], texts: Sequence[str], faults: Sequence[str]
    ) -> dict[str, Any]:
        """answers.json, benchmark.html and, last, result.json. ``faults`` say which pictures'
        questions were not asked, and why."""
        from secondlook.report import page

        text_of_row = {}
        answers = []
        for row, text in zip(rows, texts, strict=True):
            text_of_row[row.id] = text
            answers.append({"id": row.id, **row.facts, "answer": text})
        splits, f1_means, accuracies = {}, [], []
        for split, of_split in by_split(rows).items():
            if of_split:
                scores = split_scores(of_split, [text_of_row[row.id] for row in of_split])
                splits[split] = scores
                f1_means.append(scores["f1"]["mean"])
                accuracies.append(scores["accuracy"])
        result = {
            # the unweighted mean of the splits
            "overall": {"f1": float(np.mean(f1_means)), "accuracy": float(np.mean(accuracies))},
            "splits": splits,
            "questions": len(rows),
            "left_out": list(faults),
            "settings": self.settings(),
            "sources": fetch.stated(f"pope/coco_pope_{split}.json" for split in SPLITS),
            "versions": versions(),
        }
        write_json(out / "answers.json", answers)
        write_text(out / "benchmark.html", page("pope.html", result=result))
        write_json(out / "result.json", result)
        return result

    @classmethod
    def lines(cls, result: dict[str, Any]) -> list[str]:
        lines = []
        for split, scores in result["splits"].items():
            lines.append(
                f"  {split:12} F1 {interval_text(scores['f1'])}  accuracy "
                f"{scores['accuracy']:.3f}  yes {scores['yes_rate']:.3f}"
            )
        if result["left_out"]:
            lines.append(
                f"{counted(len(result['left_out']), 'picture')} left out with the questions, for "
                f"want of a readable file; first: {result['left_out'][0]}"
            )
        return lines

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {"number": result["overall"]["f1"]}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"only": only}


def by_split(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every split, in `SPLITS`' order."""
    rows_of_split: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        rows_of_split[row.task].append(row)
    return rows_of_split


def read_answers(out: Path) -> dict[str, str]:
    """A question's id -> the model's answer, of all questions that are answered."""
    answer_of_row = {}
    for row in stored(out, "answers"):
        if isinstance(row.get("id"), str) and isinstance(row.get("answer"), str):
            answer_of_row[row["id"]] = row["answer"]
    return answer_of_row


def is_yes(text: str) -> bool:
    """Whether an answer is a yes as POPE's released evaluate.py reads it: unless the first sentence
    has the word No, no or not."""
    first_sentence = text.split(".")[0].replace(",", "")
    # case counts, as released: "NO" is a yes
    return not {"No", "no", "not"} & set(first_sentence.split(" "))


def is_clear(text: str) -> bool:
    """Whether an answer has one of the words yes and no (or not), and not the other. What `is_yes`
    makes of others is its rule, not what was said; VLMEvalKit and lmms-eval count them as wrong."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return ("yes" in words) != ("no" in words or "not" in words)


def split_scores(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, Any]:
    """F1 of yes with an interval over pictures, accuracy, share of yes, and share of answers that
    are not clear (and are read by the rule all the same)."""
    # (questions, 2) bool: whether yes is right, and whether it is the answer
    columns = np.array(
        [(row.facts["label"] == "yes", is_yes(text)) for row, text in zip(rows, texts, strict=True)]
    )
    labels, answers = columns.T
    # a picture's questions are resampled together
    indices_of_pictures = group_by_prompt([row.facts["image"] for row in rows])
    units = {"all": [columns[indices] for indices in indices_of_pictures]}
    return {
        "f1": bootstrap(units, _f1),
        "accuracy": float(np.mean(labels == answers)),
        "yes_rate": float(np.mean(answers)),
        "unclear_rate": float(np.mean([not is_clear(text) for text in texts])),
    }


def _f1(drawn_rows: dict[str, np.ndarray]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where neither a label nor an answer is yes."""
    labels, answers = drawn_rows["all"].T  # (questions,) each
    true_positives = float((labels & answers).sum())
    return 2 * true_positives / max(1.0, float(labels.sum() + answers.sum()))
