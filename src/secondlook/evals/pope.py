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
from secondlook.evals.intervals import Interval, bootstrap, interval_text
from secondlook.evals.records import stored
from secondlook.io import (
    append_rows,
    read_image,
    read_rows,
    same_config,
    versions,
    write_json,
    write_text,
)
from secondlook.registry import register_benchmark
from secondlook.types import Request, SamplingParams, WorkerShard

if TYPE_CHECKING:
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
    resumes = True
    files_written = "result.json, answers.json, pope.html"
    page = "pope.html"

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
            path = fetch.file(f"pope/coco_pope_{split}.json", self.data)
            for number, question in read_rows(path):
                facts = {"image": question["image"], "label": question["label"]}
                name, where = f"{split}-{question['question_id']}", f"line {number} of {path}"
                rows.append(Row(name, question["text"], split, facts, where=where))
        return rows

    @cached_property
    def readable_rows(self) -> tuple[list[Row], list[str]]:
        """The questions whose pictures can be read, and why others' cannot. Raises InputError where
        more than a twentieth of the questions have none."""
        if self.images is None:
            raise InputError(
                "images: POPE's pictures are needed; give the folder of COCO's val2014"
            )
        rows = self.rows()
        if self.only:
            rows = [row for split in SPLITS for row in _of_split(rows, split)[: self.only]]
        faults: dict[str, str] = {}
        for name in dict.fromkeys(row.facts["image"] for row in rows):
            try:
                read_image(self.images / name)
            except InputError as error:
                faults[name] = str(error)
        readable = [row for row in rows if row.facts["image"] not in faults]
        if len(rows) - len(readable) > MAX_UNREADABLE * len(rows):
            raise InputError(
                f"images: {str(self.images)!r} lacks {len(faults)} pictures, first "
                f"{next(iter(faults))}; give the folder of COCO's val2014 pictures"
            )
        return readable, list(faults.values())

    def check(self) -> None:
        super().check()
        _ = self.readable_rows

    def run(self, session: EvalSession) -> dict[str, Any] | None:
        rows, faults = self.readable_rows
        same_config(session.out, self.settings())
        write_json(session.out / "config.json", self.settings())
        self._ask_own_questions(rows, session)
        answers = read_answers(session.out)
        if not all(row.id in answers for row in rows):
            return None
        return self._write(session.out, rows, [answers[row.id] for row in rows], faults)

    def _ask_own_questions(self, rows: Sequence[Row], session: EvalSession) -> None:
        """Ask this process's questions that have no answer yet: a row of answers-RANK.jsonl
        each."""
        shard = WorkerShard.of_environment()
        own = rows[shard.rank :: shard.size]
        answered = read_answers(session.out)
        left = [row for row in own if row.id not in answered]
        if left:
            engine = session.load_engine(self.model)
            for start in range(0, len(left), engine.batch):
                session.progress("asking", len(own) - len(left) + start, len(own))
                part = left[start : start + engine.batch]
                texts = self._answers(engine, part)
                told = []
                for row, text in zip(part, texts, strict=True):
                    told.append({"id": row.id, "answer": text})
                append_rows(session.out / f"answers-{shard.rank:03d}.jsonl", told)
        session.progress("asking", len(own), len(own))

    def _answers(self, engine: Engine, rows: Sequence[Row]) -> list[str]:
        assert self.images is not None
        pictures = {}
        for name in {row.facts["image"] for row in rows}:
            pictures[name] = read_image(self.images / name)
        requests = []
        for row in rows:
            segments = engine.template.ask(pictures[row.facts["image"]], row.prompt)
            requests.append(Request("ask", segments, 0))
        greedy = SamplingParams("text", temperature=0.0)
        turns = engine.write(requests, greedy, MAX_TOKENS)
        return [engine.template.words(turn.tokens) for turn in turns]

    def _write(
        self, out: Path, rows: Sequence[Row], texts: Sequence[str], faults: Sequence[str]
    ) -> dict[str, Any]:
        """answers.json, pope.html and, last, result.json. ``faults`` say which pictures' questions
        were not asked, and why."""
        from secondlook.report import page

        splits = {}
        for split in SPLITS:
            places = [i for i, row in enumerate(rows) if row.task == split]
            if places:
                of_split = [rows[i] for i in places]
                splits[split] = split_scores(of_split, [texts[i] for i in places])
        result = {
            "overall": {
                "f1": float(np.mean([scores["f1"]["mean"] for scores in splits.values()])),
                "accuracy": float(np.mean([scores["accuracy"] for scores in splits.values()])),
            },
            "splits": splits,
            "questions": len(rows),
            "left_out": list(faults),
            "settings": self.settings(),
            "sources": fetch.stated(f"pope/coco_pope_{split}.json" for split in SPLITS),
            "versions": versions(),
        }
        answers = []
        for row, text in zip(rows, texts, strict=True):
            answers.append({"id": row.id, **row.facts, "answer": text})
        write_json(out / "answers.json", answers)
        write_text(out / "pope.html", page("pope.html", result=result))
        write_json(out / "result.json", result)
        return result

    def lines(self, result: dict[str, Any]) -> list[str]:
        lines = []
        for split, row in result["splits"].items():
            lines.append(
                f"  {split:12} F1 {interval_text(row['f1'])}  accuracy {row['accuracy']:.3f}  yes "
                f"{row['yes_rate']:.3f}"
            )
        if result["left_out"]:
            lines.append(
                f"{len(result['left_out'])} pictures cannot be read, their questions are left "
                f"out; first: {result['left_out'][0]}"
            )
        return lines

    @classmethod
    def headline(cls, result: dict[str, Any]) -> dict[str, Any]:
        return {"number": result["overall"]["f1"]}

    @classmethod
    def options_for_all(cls, rounds: int, only: int) -> dict[str, Any]:
        return {"only": only}


def _of_split(rows: Sequence[Row], split: str) -> list[Row]:
    return [row for row in rows if row.task == split]


def read_answers(out: Path) -> dict[str, str]:
    """A question's id -> the model's answer, of all questions that are answered."""
    answers = {}
    for row in stored(out, "answers"):
        if isinstance(row.get("id"), str) and isinstance(row.get("answer"), str):
            answers[row["id"]] = row["answer"]
    return answers


def is_yes(text: str) -> bool:
    """Whether an answer is a yes as POPE's released evaluate.py reads it: unless the first sentence
    has the word No, no or not."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def is_clear(text: str) -> bool:
    """Whether an answer has one of the words yes and no (or not), and not the other. What `is_yes`
    makes of others is its rule, not what was said; VLMEvalKit and lmms-eval count them as wrong."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    return ("yes" in words) != ("no" in words or "not" in words)


def split_scores(rows: Sequence[Row], texts: Sequence[str]) -> dict[str, Any]:
    """F1 of yes with an interval over pictures, accuracy, share of yes, and share of answers that
    are not clear (and are read by the rule all the same)."""
    labels = np.array([row.facts["label"] == "yes" for row in rows])
    answers = np.array([is_yes(text) for text in texts])
    return {
        "f1": _f1([row.facts["image"] for row in rows], labels, answers),
        "accuracy": float(np.mean(labels == answers)),
        "yes_rate": float(np.mean(answers)),
        "unclear_rate": float(np.mean([not is_clear(text) for text in texts])),
    }


def _f1(pictures: Sequence[str], labels: np.ndarray, answers: np.ndarray) -> Interval:
    by_picture: dict[str, list[tuple[bool, bool]]] = {}
    for picture, label, answer in zip(pictures, labels, answers, strict=True):
        by_picture.setdefault(picture, []).append((label, answer))

    def f1(units: dict[str, np.ndarray]) -> float:
        label, answer = units["all"].T
        both = float((label & answer).sum())
        return 2 * both / max(1.0, float(label.sum() + answer.sum()))

    return bootstrap({"all": [np.array(pairs) for pairs in by_picture.values()]}, f1)
