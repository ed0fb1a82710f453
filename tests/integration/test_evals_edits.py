"""Benchmarks of edits: PIE-Bench's metrics by hand, GEdit-Bench's two scores."""

import json

import numpy as np
import pytest
from PIL import Image

from secondlook.errors import InputError
from secondlook.evals import gedit
from secondlook.evals.gedit import GEdit, two_scores
from secondlook.evals.pie_bench import PIEBench, mask_of
from secondlook.evals.scorers.background import LEAST_MSE, background
from secondlook.llm.replies import Unanswered


def test_pie_and_gedit(models, tmp_path, monkeypatch):
    from misbehaving import Judge

    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))
    folder = tmp_path / "pie_bench"
    (folder / "annotation_images").mkdir(parents=True)
    source.save(folder / "annotation_images" / "one.png")
    told = {
        "image_path": "one.png",
        "editing_prompt": "a [red] cup",
        "editing_instruction": "make it red",
    }
    told |= {"editing_type_id": "6", "mask": [512 * 100 + 50, 3, 512 * 101 + 50, 2]}
    (folder / "mapping_file.json").write_text(json.dumps({"000": told}))
    benchmark = PIEBench(
        model="mini", data=tmp_path, clip=str(models / "clip"), dino=str(models / "dino")
    )
    [row] = benchmark.rows()
    assert row.task == "color" and row.facts["target"] == "a red cup"
    mask = mask_of(row.facts["mask"])
    assert (
        mask[1:-1, 1:-1].sum() == 5
        and mask[100, 50:53].all()
        and mask[0].all()
        and mask[:, -1].all()
    )
    pie = benchmark.scorer("cpu")
    [same] = pie([(row, source)])
    assert (
        same["mse"] == 0
        and same["ssim"] == pytest.approx(1, abs=1e-3)
        and same["structure"] == pytest.approx(0, abs=1e-10)
    )
    changed = np.asarray(source).copy()
    changed[100, 50:53] = 0
    inside = pie([(row, Image.fromarray(changed))])[0]
    assert inside["mse"] == 0, "what lies in the mask does not count"
    changed[200, 200] = 255 - changed[200, 200]
    assert background(source, Image.fromarray(changed), mask)["psnr"] < same["psnr"]
    with Judge(share=0) as server:
        scorer = GEdit(model="mini", url=server.url, vqa="m").scorer("cpu")
        [why] = scorer([(row, source)])
        assert (
            why.startswith("no two scores of what was edited: ")
            and "its answer has no two scores" in why
        )
        monkeypatch.setattr(gedit, "text_of", lambda _: 'so: {"scores": [9, 4]}')
        [scored] = scorer([(row, source)])
        assert scored == {
            "overall": pytest.approx(4.0),
            "semantic_consistency": 4.0,
            "quality": 4.0,
        }


def test_background_by_hand():
    source = Image.new("RGB", (32, 32), (0, 0, 0))
    edited = np.zeros((32, 32, 3), np.uint8)
    edited[:8] = 255
    mask = np.zeros((32, 32), bool)
    mask[:4] = True
    found = background(source, Image.fromarray(edited), mask)
    assert found["mse"] == pytest.approx(4 / 32) and found["psnr"] == pytest.approx(
        10 * np.log10(8)
    )
    assert background(source, source, mask)["psnr"] == pytest.approx(10 * np.log10(1 / LEAST_MSE))
    assert np.isnan(background(source, source, np.ones_like(mask))["psnr"])


def test_a_malformed_mapping_names_its_edit(tmp_path):
    folder = tmp_path / "pie_bench"
    (folder / "annotation_images").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "annotation_images" / "a.png")
    good = {
        "image_path": "a.png",
        "editing_prompt": "a [red] cup",
        "editing_instruction": "make it red",
    }
    good |= {"editing_type_id": "6", "mask": [1, 2]}
    for change, said in (
        ({"mask": [1, 2, 3]}, "mask: it is not"),
        ({"mask": [0.5, 2]}, "mask: it is not"),
        ({"editing_type_id": "12"}, "editing_type_id: it is '12' in '000'"),
        ({"editing_instruction": None}, "editing_instruction: it is None in '000'"),
        ({"image_path": "b.png"}, "b.png' is missing"),
    ):
        (folder / "mapping_file.json").write_text(json.dumps({"000": good | change}))
        with pytest.raises(InputError, match=said):
            PIEBench(model="mini", data=tmp_path).rows()
    (folder / "mapping_file.json").write_text('{"000": ')
    with pytest.raises(InputError, match=r"mapping_file\.json"):
        PIEBench(model="mini", data=tmp_path).rows()


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ('{"scores": [9, 4]}', (9.0, 4.0)),
        ('{"scores": ["9", "4.5"]}', (9.0, 4.5)),
        (
            'I think {of "scores": [1, 2]} first.\n```json\n{"scores": [7, 8], "why": {"a": '
            "1}}\n```",
            (7.0, 8.0),
        ),
        ('{"scores": [1, 2]} no: {"scores": [3, 4]}', (3.0, 4.0)),
        ('{"scores": [NaN, 4]}', None),
        ('{"scores": [Infinity, 4]}', None),
        ('{"scores": ["nan", 4]}', None),
        ('{"scores": [true, false]}', None),
        ('{"scores": [11, 4]}', None),
        ('{"scores": [-1, 4]}', None),
        ('{"scores": ["9/10", 4]}', None),
        ('{"scores": [9]}', None),
        ('{"scores": [9, 4, 1]}', None),
        ('{"scores": {"success": 9}}', None),
        ('{"scores": [9, 4', None),
        ("nine and four", None),
    ],
)
def test_two_scores_of_an_answer(text, scores):
    answer = {"message": {"content": text}}
    if scores:
        assert two_scores(answer) == scores
    else:
        with pytest.raises(Unanswered):
            two_scores(answer)
