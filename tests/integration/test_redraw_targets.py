"""What a redraw is taught to become: the nearest right picture, an accepted edit, a repair."""

import json
from dataclasses import replace

import numpy as np
import pytest

from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import picture_of, read_pictures
from secondlook.data.generate import build
from secondlook.data.generators import GeneratorConfig, make_generator
from secondlook.data.sft_dataset import Pool
from secondlook.engine.engine import Engine
from secondlook.errors import InputError
from secondlook.mini.verifier import Verifier
from secondlook.models.janus.model import Janus
from secondlook.models.shipped import locate


@pytest.fixture(scope="module")
def rendered():
    """Settings of a build from the miniature's renderer, and what loads a model."""
    engines = {}

    def load(model):
        if model not in engines:
            engines[model] = Engine(Janus.load(locate(model)))
        return engines[model]

    generators = [GeneratorConfig("render", "mini-base", images=5)]
    return BuildConfig(generators, prompts="mini", n_prompts=6, examples="none"), load


def test_a_redraw_becomes_the_nearest_right_picture(rendered, tmp_path):
    settings, load = rendered
    twice = replace(settings, generators=[*settings.generators] * 2, redraw="nearest")
    out = build(twice, Verifier(), tmp_path, load)
    [shard] = out.glob("images-*.parquet")
    rows = {row["id"]: row for row in read_pictures(shard)}
    all_codes = load("mini-base").codes([picture_of(row) for row in rows.values()])
    codes = {row_id: np.array(own) for row_id, own in zip(rows, all_codes, strict=True)}

    def shared(a, b):
        return (codes[a] == codes[b]).sum()

    paired = {row["id"]: row["redraw_target"] for row in rows.values() if row["redraw_target"]}
    assert paired and all(rows[wrong]["score"] < 0.5 for wrong in paired)
    for wrong, target in paired.items():
        rights = [r["id"] for r in rows.values() if r["score"] >= 0.8]
        rights = [r for r in rights if rows[r]["prompt"] == rows[wrong]["prompt"]]
        assert target in rights
        assert shared(wrong, target) == max(shared(wrong, right) for right in rights)
    # SFT draws it after that picture
    pool = Pool(out)
    rng = np.random.default_rng(0)
    for _ in range(40):
        choice = pool.redrawing(rng, 1)
        wrong, target = (pool.index.words(row).id for row in (choice.earlier[-1], choice.target))
        assert paired[wrong] == target


def test_a_redraw_becomes_an_edit_that_the_judge_accepts(rendered, tmp_path):
    settings, load = rendered
    edited = replace(settings, redraw="edit", redraw_model="mini-edit", redraw_edits=2)
    out = build(edited, Verifier(), tmp_path, load)
    [shard] = out.glob("images-*.parquet")
    rows = {row["id"]: row for row in read_pictures(shard)}
    edits = [row for row in rows.values() if row["source"] == "edit by mini-edit"]
    assert edits and all(row["score"] is not None for row in edits)
    for row in rows.values():
        if row["redraw_target"]:
            target = rows[row["redraw_target"]]
            assert target in edits and target["score"] >= 0.8 and row["score"] < 0.5
            assert target["prompt"] == row["prompt"]
    assert json.loads((out / "manifest.json").read_text())["config"]["redraw"] == "edit"


def test_a_redraw_becomes_the_smallest_repair_that_the_world_knows(rendered, tmp_path):
    settings, load = rendered
    model = GeneratorConfig("model", "mini-base", images=3)
    kinds = {"kinds": {"compound": 0.5, "color_attr": 0.5}}
    repaired = replace(
        settings, generators=[*settings.generators, model], redraw="repair", prompt_options=kinds
    )
    out = build(repaired, Verifier(), tmp_path, load)
    [shard] = out.glob("images-*.parquet")
    rows = {row["id"]: row for row in read_pictures(shard)}
    made = [row["id"] for row in rows.values() if row["source"] == "repair"]
    targets = {row["redraw_target"] for row in rows.values()} - {None}
    assert made and set(made) <= targets, "what is nobody's target is not kept"
    assert {rows[t]["correct"] for t in targets} == {True}
    # a repair may be there already (the right picture that a near miss was made of), or be shared
    generator = make_generator(repaired.generators[0], load, 0, "cpu", kinds)
    wrongs = [row for row in rows.values() if row["score"] < 0.5]
    repairs = generator.repairs([(row["prompt"], picture_of(row)) for row in wrongs])
    for row, picture in zip(wrongs, repairs, strict=True):
        accepted = picture and Verifier()([(row["prompt"], picture)])[0].correct
        assert bool(row["redraw_target"]) == bool(accepted)
        if accepted:
            assert picture_of(rows[row["redraw_target"]]).tobytes() == picture.tobytes()
    # SFT redraws none without: any other right picture would teach to draw afresh
    assert any(row["score"] < 0.5 and not row["redraw_target"] for row in rows.values())
    pool = Pool(out)
    rng = np.random.default_rng(0)
    for _ in range(80):
        choice = pool.redrawing(rng)
        wrong, target = (pool.index.words(row).id for row in (choice.earlier[-1], choice.target))
        assert rows[wrong]["redraw_target"] == target
    folder = GeneratorConfig("folder", "pictures")
    with pytest.raises(InputError, match="none of the generators can repair a picture; render can"):
        BuildConfig([folder], templates=["a wall"], redraw="repair")
    with pytest.raises(InputError, match="redraw is 'edit', but redraw_model is empty and no"):
        BuildConfig([folder], templates=["a wall"], redraw="edit")


def test_a_build_stopped_at_its_targets_judges_nothing_again(rendered, tmp_path, monkeypatch):
    settings, load = rendered
    nearest = replace(settings, redraw="nearest")
    judged = []

    class Counting(Verifier):
        def __call__(self, items):
            judged.append(len(items))
            return super().__call__(items)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("secondlook.data.generate.pair_nearest", stop)
    with pytest.raises(KeyboardInterrupt):
        build(nearest, Counting(), tmp_path, load)
    assert judged and not list(tmp_path.glob("images-*.parquet"))
    monkeypatch.undo()
    judged.clear()
    out = build(nearest, Counting(), tmp_path, load)
    assert not judged and list(out.glob("images-*.parquet"))
