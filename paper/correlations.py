"""DSG's and TIFA's stored answers against people's ratings: whether our arithmetic gives the
published correlations (DSG: arXiv 2310.18235; TIFA: arXiv 2303.11897).

python paper/correlations.py --out out/correlations
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau, spearmanr

from script import run_script
from secondlook.evals import fetch
from secondlook.evals.dpg_bench import dpg_score
from secondlook.evals.dsg import dsg_score
from secondlook.evals.scorers.questions import Parents, parents_of, table
from secondlook.io import read_json, versions, writable_folder, write_json

STORED = (
    "dsg/tifa160-likert-anns.csv",
    "dsg/vqa_answers/mplug_dsg.csv",
    "tifa/human_annotations_with_scores.json",
)
"""Files with people's ratings and stored answers."""
NO_SCORES = ("text_id", "image_path", "text", "human_scores", "human_avg")
"""Fields of TIFA's file that are no metric."""
Image = tuple[str, str]
"""The model that drew it, and the prompt's id."""


def correlations(scores: Sequence[float], people: Sequence[float]) -> dict[str, float]:
    """Spearman's rho and Kendall's tau-b."""
    return {
        "spearman": float(spearmanr(scores, people).statistic),
        "kendall": float(kendalltau(scores, people).statistic),
    }


def mean_answer(answers: dict[int, float], parents: Parents) -> float:
    """The mean over questions, whatever they depend on."""
    return float(np.mean(list(answers.values())))


def stored_dsg(ratings: Path, stored: Path) -> dict[str, dict[str, float]]:
    """DSG's own check: stored answers of a VQA model against people's ratings of TIFA-160's 800
    images, with dependencies as DSG has them, as DPG-Bench has them, and without. Raises
    InputError."""
    ratings_of_image: dict[Image, list[float]] = {}  # several people rate each
    for _, row in table(ratings, ("t2i_model", "item_id", "answer")):
        image = row["t2i_model"], row["item_id"]
        ratings_of_image.setdefault(image, []).append(float(row["answer"]))
    answers, parents = _stored_answers(stored)
    images = sorted(ratings_of_image)
    mean_ratings = [float(np.mean(ratings_of_image[image])) for image in images]
    scoring_rules = {"dsg": dsg_score, "cascading": dpg_score, "without dependencies": mean_answer}
    results: dict[str, dict[str, float]] = {}
    for rule_name, score_of in scoring_rules.items():
        scores = []
        for image in images:
            score = 0.0  # of an image without answers
            if image in answers:
                _, prompt_id = image
                score = score_of(answers[image], parents[prompt_id])
            scores.append(score)
        results[rule_name] = correlations(scores, mean_ratings)
    num_unanswered = sum(image not in answers for image in images)
    results["images"] = {"n": float(len(images)), "without answers": float(num_unanswered)}
    return results


def _stored_answers(path: Path) -> tuple[dict[Image, dict[int, float]], dict[str, Parents]]:
    """Each image's answers (1.0 is yes), and each prompt's dependencies by the question's
    number."""
    columns = (
        "t2i_model",
        "item_id",
        "dsg_prompt_split",
        "question_id",
        "answer",
        "dependency_id",
    )
    answers: dict[Image, dict[int, float]] = {}
    parents: dict[str, dict[int, tuple[int, ...] | None]] = {}
    for _, row in table(path, columns):
        if row["dsg_prompt_split"] != "tifa160":
            continue
        number, prompt_id = int(row["question_id"]), row["item_id"]
        is_yes = row["answer"].strip().lower() == "yes"
        answers.setdefault((row["t2i_model"], prompt_id), {})[number] = float(is_yes)
        parents.setdefault(prompt_id, {})[number] = parents_of(row["dependency_id"])
    wellformed_parents: dict[str, Parents] = {}
    for prompt_id, parents_of_question in parents.items():
        wellformed_parents[prompt_id] = {}
        if None not in parents_of_question.values():  # one malformed dependency: none counts
            for number, question_parents in parents_of_question.items():
                wellformed_parents[prompt_id][number] = question_parents or ()
    return answers, wellformed_parents


def stored_tifa(path: Path) -> dict[str, dict[str, float]]:
    """Stored scores of other metrics against people's ratings of TIFA's 800 images. Raises
    InputError."""
    rows: list[dict[str, Any]] = list(read_json(path, dict).values())
    people = [row["human_avg"] for row in rows]
    results = {}
    for metric in rows[0]:
        if metric not in NO_SCORES:
            results[metric] = correlations([row[metric] for row in rows], people)
    return results


def main(
    data: Annotated[
        Path | None,
        typer.Option(help="A folder with dsg/ and tifa/; default: fetched, revisions pinned."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = Path("out/correlations"),
) -> None:
    """DSG's and TIFA's stored answers against people's ratings."""
    ratings_path, answers_path, tifa_path = [fetch.file(name, data) for name in STORED]
    writable_folder(out)
    results = {"dsg": stored_dsg(ratings_path, answers_path), "tifa": stored_tifa(tifa_path)}
    printed_table = Table("", "Spearman", "Kendall")
    for benchmark, rows in results.items():
        for name, row in rows.items():
            if "spearman" in row:  # else a row of counts
                rho, tau = f"{row['spearman']:.3f}", f"{row['kendall']:.3f}"
                printed_table.add_row(f"{benchmark}: {name}", rho, tau)
    Console(markup=False, highlight=False).print(printed_table)
    sources: dict[str, Any] = {"sources": fetch.stated(STORED), "versions": versions()}
    write_json(out / "result.json", results | sources)
    print(f"written to {out}: result.json")


if __name__ == "__main__":
    run_script(main)
