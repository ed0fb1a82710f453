"""Lists of prompts and pictures as people have them: read as they were meant, or refused in one
sentence that names the file and the line."""

import json
from pathlib import Path

import pytest
from PIL import Image

from secondlook.data import decontaminate
from secondlook.data.labelled_images import read_pairs
from secondlook.data.prompts import read_prompts
from secondlook.data.sanity_pairs import read_sanity_pairs
from secondlook.errors import InputError

CASES = Path(__file__).parents[1] / "cases"


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("null_prompt.jsonl", "prompt: it is None in line 2"),
        ("list_prompt.jsonl", r"prompt: it is \['a', 'b'\] in line 2"),
        ("object_image.jsonl", "image: it is {.*} in line 2"),
        ("number_image.jsonl", "image: it is 7 in line 2"),
        ("missing_picture.jsonl", "line 2 of .*nowhere.png"),
        ("number_prompt.parquet", "prompt: it is 5 in row 1"),
        ("latin_1.jsonl", "line 2 of .*UTF-8"),
        ("table.csv", r"\.jsonl or \.parquet"),
        ("list.json", r"\.jsonl or \.parquet"),
    ],
)
def test_lists_that_cannot_be_judged_name_the_place(name, words):
    with pytest.raises(InputError, match=words) as error:
        read_pairs(CASES / "pairs" / name, "a cat")
    assert name in sentence(error)


@pytest.mark.parametrize(
    "name", ["line_separator.jsonl", "line_separator_escaped.jsonl", "bom.jsonl"]
)
def test_lists_of_other_systems_are_read(name):
    assert len(read_pairs(CASES / "pairs" / name)) == 2
    if "separator" in name:
        assert "\u2028" in read_pairs(CASES / "pairs" / name)[0].prompt
    assert len(read_pairs(CASES / "pairs" / "UPPER.JSONL")) == 1


def test_files_of_a_folder_that_are_no_pictures_are_named(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.PNG")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.tiff")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".DS_Store").touch()
    left_out = []
    assert [p.name for p in read_pairs(tmp_path, "a cat", None, left_out.append)] == [
        "a.PNG",
        "b.tiff",
    ]
    assert left_out == ["notes.txt"]


def test_prompts_of_other_systems():
    texts = {
        name: [line.text for line in read_prompts(CASES / "prompts" / name)]
        for name in ("line_separator.txt", "bom.txt")
    }
    assert len(texts["line_separator.txt"]) == 2 and texts["bom.txt"][0] == "a photo of a red star"
    assert read_prompts(CASES / "prompts" / "bom.jsonl")[0].text == "a photo of a red star"
    with pytest.raises(InputError, match=r"line 2 of .*latin_1\.txt"):
        read_prompts(CASES / "prompts" / "latin_1.txt")


def test_lists_of_other_kinds_are_no_prompts(tmp_path):
    for name in ("p.csv", "p.json", "p.ndjson"):
        (tmp_path / name).write_text("prompt\na cat\n")
        with pytest.raises(InputError, match=r"\.txt .* or a \.jsonl"):
            read_prompts(tmp_path / name)


def test_other_lists_name_the_place_too(tmp_path):
    path = tmp_path / "sanity_pairs.jsonl"
    row = {"prompt": "a cat", "image": str(CASES / "images" / "red_star.png"), "good": True}
    for change, words in (
        ({"good": "yes"}, "good is 'yes' in line 2"),
        ({"image": "none.png"}, "line 2 .*none.png"),
        ({"prompt": 3}, "prompt: it is 3 in line 2"),
    ):
        path.write_text("".join(json.dumps(r) + "\n" for r in (row, row | change)))
        with pytest.raises(InputError, match=words):
            read_sanity_pairs(path)
    table = tmp_path / "benchmark.csv"
    table.write_bytes("\ufeffprompt,tag\na cat,x\n".encode())
    assert decontaminate.read(table) == ["a cat"]
