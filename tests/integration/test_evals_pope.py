"""POPE from its questions to the page, by one process, by two, and once more."""

import json
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.evals import fetch
from secondlook.evals.pope import SPLITS


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The model's own answers about two pictures; a file of four questions in place of each of the
    three."""
    rng = np.random.default_rng(0)
    (tmp_path / "coco").mkdir()
    (tmp_path / "pope").mkdir()
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "coco" / name)
    text = ""
    for i, name in enumerate(("a.png", "b.png", "a.png", "b.png")):
        question = {"question_id": i, "image": name, "text": "is there a red star?", "label": "no"}
        text += json.dumps(question) + "\n"
    for split in SPLITS:
        name = f"pope/coco_pope_{split}.json"
        (tmp_path / name).write_text(text)
        source = replace(fetch.FILES[name], sha256=sha256(text.encode()).hexdigest())
        monkeypatch.setitem(fetch.FILES, name, source)
    data, images = ("--data", str(tmp_path)), ("--images", str(tmp_path / "coco"))
    return ["eval", "pope", "--model", "mini", *data, *images]


def invoke(*command):
    return CliRunner().invoke(app, [str(word) for word in command])


def test_pope_from_questions_to_the_page(command, tmp_path):
    out = tmp_path / "out"
    run = invoke(*command, "--out", out)
    assert run.exit_code == 0, run.output
    result = json.loads((out / "result.json").read_text())
    answers = json.loads((out / "answers.json").read_text())
    assert result["questions"] == len(answers) == 12
    assert all(answer["answer"] in ("Yes", "No") for answer in answers)
    share_of_no = sum(answer["answer"] == "No" for answer in answers) / 12
    assert result["overall"]["accuracy"] == pytest.approx(share_of_no) and not result["left_out"]
    assert "released evaluate.py" in (out / "benchmark.html").read_text()


def test_two_processes_share_popes_questions(command, tmp_path, monkeypatch):
    """Each asks its share, whoever ends last writes the result; what is answered is not asked
    again."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert invoke(*command, "--out", alone).exit_code == 0
    expected = (alone / "answers.json").read_bytes()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert invoke(*command, "--out", shared).exit_code == 0
        lines = (shared / f"answers-00{rank}.jsonl").read_text().splitlines()
        assert len(lines) == 6 and (shared / "result.json").exists() == (rank == "1")
    assert (shared / "answers.json").read_bytes() == expected
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")

    # the last answer is lost: killed while writing
    (shared / "answers-001.jsonl").write_text("\n".join(lines[:5]) + '\n{"id": "adv')
    asked_again, write = [], Engine.write
    monkeypatch.setattr(Engine, "write", lambda *a: asked_again.append(len(a[1])) or write(*a))
    assert invoke(*command, "--out", shared).exit_code == 0
    assert asked_again == [1] and (shared / "answers.json").read_bytes() == expected
    other = invoke(*command, "--only", "1", "--out", shared)
    assert isinstance(other.exception, InputError) and "only is 1 but" in str(other.exception)
