"""Edits as training data: their build, the pool, batches, and both stages on them."""

import json
import shutil

import numpy as np
import pytest

from secondlook.cli.common import load_engine
from secondlook.config import changed, parse
from secondlook.data.build_config import BuildConfig
from secondlook.data.generate import build
from secondlook.data.generators import GeneratorConfig
from secondlook.data.prompts import open_prompts
from secondlook.data.sft_dataset import Pool
from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.mini.verifier import Verifier
from secondlook.mini.world import edits
from secondlook.rewards.reward import score
from secondlook.train.distributed import ProcessGroup
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.loop import RLLoop
from secondlook.train.sft import SFTJob
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sft_data import SFTBatches
from secondlook.types import Prompt

EDITS = {kind: 0.2 for kind in edits.KINDS}


@pytest.fixture(scope="module")
def mini():
    return load_engine("mini")


@pytest.fixture(scope="module")
def data(tmp_path_factory, mini):
    generators = [
        GeneratorConfig("render", "mini", images=4),
        GeneratorConfig("model", "mini", images=1),
    ]
    kinds = EDITS | {"colored": 0.5}
    config = BuildConfig(
        generators,
        prompts="mini",
        n_prompts=24,
        shard=12,
        prompt_options={"kinds": kinds},
        examples="webdataset",
        examples_per_prompt=2,
    )
    return build(config, Verifier(), tmp_path_factory.mktemp("edits"), lambda _: mini)


def test_data_of_edits(data):
    pool = Pool(data)
    edited = [row for row in pool.rows if row["source_id"]]
    assert edited and len(edited) < len(pool.rows)
    for row in edited:
        assert row["source_id"] in pool.index.sources
        assert row["following"] is not None and row["preserving"] is not None
    rng = np.random.default_rng(0)
    chosen = [pool.drawing(rng) for _ in range(20)] + [
        x for _ in range(10) for x in pool.judging(rng)
    ]
    found = [pool.read(choice) for choice in chosen]
    for e in found:
        asked = Prompt(e.prompt, e.source.image if e.source else None)
        [truth] = score(Verifier(), [(asked, e.target.image)])
        assert truth.correct == e.target.reason.startswith("Yes"), (
            "a picture stays with its own source"
        )
    assert {e.source is None for e in found} == {True, False}
    names = [p.name for p in data.glob("examples*.tar")]
    assert any("edit" in n for n in names) and any("edit" not in n for n in names)
    said = json.loads((data / "manifest.json").read_text())
    assert (
        any(name.startswith("sources-") for name in said["sha256"])
        and "to be edited" in (data / "samples.html").read_text()
    )


def test_batches_made_ahead_are_the_same(data):
    config = SFTConfig("mini", str(data), steps=4, batch_size=10, seed=3)
    here, ahead = (
        SFTBatches(
            changed(config, {"runtime.dataloader_workers": n}), Pool(config.data), ProcessGroup()
        ).from_step(2)
        for n in (0, 1)
    )
    for a, b in zip(here, ahead, strict=True):
        assert a == b, "prompts, rows and files of pictures, who goes without a prompt"


def test_places_have_their_shares(data, tmp_path):
    places = []
    for number in ("00000", "00001"):
        places.append(tmp_path / number)
        places[-1].mkdir()
        for kind in ("images", "sources"):
            shutil.copy(data / f"{kind}-{number}.parquet", places[-1])
    pool, rng = Pool(places, shares=[1, 3]), np.random.default_rng(0)
    second = {pool.key(row) for row in Pool(places[1]).rows} - {
        pool.key(row) for row in Pool(places[0]).rows
    }
    drawn = [pool.key(pool.rows[pool.judging(rng)[0].target]) in second for _ in range(400)]
    assert 0.6 < np.mean(drawn) <= 0.8
    with pytest.raises(InputError, match="data_weights"):
        Pool(places, shares=[1.0])


def test_both_stages_on_edits(data, tmp_path):
    optim = {"lr": 1e-4, "warmup_steps": 1}
    places = [str(data), str(data)]
    job = SFTJob(SFTConfig("mini", places, steps=2, batch_size=8, optim=optim))
    metrics = [job.step(i) for i in range(2)]
    assert all(np.isfinite(v) for m in metrics for v in m.values()) and {
        "draw_loss",
        "verdict_loss",
    } <= set(metrics[0])
    kinds = EDITS | {"colored": 0.3}
    settings = {
        "model": "mini",
        "prompt_options": {"kinds": kinds},
        "rollout": {"prompts_per_step": 4, "group_size": 2, "rounds": 2},
        "advantage": {"credit": "expected"},
        "optim": {"epochs": 1},
        "runtime": {"picture_every": 1},
    }
    config = parse(RLConfig, settings)
    job = RLLoop(config, tmp_path)
    metrics = job.step(0)
    assert metrics["sampler_gap"] < 1e-3 and metrics["missing"] == 0 and 0 <= metrics["score"] <= 1
    assert "to be edited" in (tmp_path / "episodes" / "step-0.html").read_text()
    asked = open_prompts("mini", {"kinds": kinds}).draw(np.random.default_rng(0), 40)
    assert {p.source is None for p in asked} == {True, False}
    only = datasets.prompts(np.random.default_rng(0), 5, {"remove": 1.0})
    assert all(isinstance(w, datasets.EditPicture) and w.edit.kind == "remove" for w in only)
