"""What stage 1 is taught from: verdicts, what is left out, files of other people, reads of each
rank, memory."""

import json
import pickle
import re
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import simulate_host
from secondlook.cli import app
from secondlook.config import changed
from secondlook.data import image_index as data_index
from secondlook.data import stored_images
from secondlook.data.export import write_examples
from secondlook.data.image_index import taught
from secondlook.data.sft_dataset import Pool
from secondlook.errors import InputError, Stopped
from secondlook.io import png
from secondlook.models.janus.model import Janus
from secondlook.recipes import find_config
from secondlook.train import sft
from secondlook.train.distributed import ProcessGroup
from secondlook.train.sft import SFTJob
from secondlook.train.sft_config import SFTConfig
from secondlook.train.sft_data import CodeCache, SFTBatches

CASES = Path(__file__).parents[1] / "cases" / "sft"
ROWS = (
    ("Yes, it is red.", 0.95),
    ("it is red", 0.9),
    ("No, it is blue.", 0.1),
    ("it is blue", 0.2),
    ("it is green", 0.3),
)


def picture(k: int) -> Image.Image:
    return Image.new("RGB", (48, 48), (20 * k, 200 - 10 * k, 90))


def published(folder: Path, n_prompts: int = 4, rows=ROWS) -> Path:
    """A list in the published layout, with a picture of its own for every row."""
    lines = []
    for p in range(n_prompts):
        data = []
        for k, (reason, score) in enumerate(rows):
            picture(p * len(rows) + k).save(folder / f"{p}-{k}.png")
            data.append(
                {"img_path": f"{p}-{k}.png", "reason": reason, "prob": score, "state": None}
            )
        lines.append(json.dumps({"promptid": p, "prompt": f"a photo of a star {p}", "data": data}))
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def shards(folder: Path, rows: list[dict], **columns) -> Path:
    """A folder as data build writes it."""
    table = pa.Table.from_pylist(
        [{"image": {"bytes": png(picture(k)), "path": None}} | row for k, row in enumerate(rows)]
    )
    for name, column in columns.items():
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, folder / "images-00000.parquet", row_group_size=3)
    return folder


STORED = [{"prompt": "a star", "score": s, "reason": r} for r, s in ROWS] * 2


@pytest.mark.parametrize(
    ("reason", "right", "answer"),
    [
        ("No problem with it", True, "Yes, No problem with it"),
        ("Nothing is missing", True, "Yes, Nothing is missing"),
        ("Yesterday's star", False, "No, Yesterday's star"),
        ("no: it is blue", False, "No: it is blue"),
        (" YES. It is red", True, "Yes. It is red"),
        ("yes", True, "Yes."),
        ("No, .", False, "No."),
        ("", False, "No."),
        ("  ", True, "Yes."),
        ("No, it is blue", True, None),
        ("Yes", False, None),
        ("yes and no", False, "No, yes and no"),
    ],
)
def test_the_score_decides_the_verdict(reason, right, answer):
    assert taught(reason, right) == answer


def test_cases_of_reasons():
    words = {
        name: [row["reason"] for row in Pool(CASES / f"{name}.jsonl").rows]
        for name in ("verdict_words", "empty_reason", "bom")
    }
    assert [r.split(",")[0] for r in words["verdict_words"]] == ["Yes", "Yes", "Yes", "No"]
    assert (
        words["empty_reason"] == ["Yes.", "No."] and words["bom"][0] == "Yes, There is a red star."
    )
    with pytest.raises(
        InputError,
        match=r"2 whose reason says the opposite of their score .*line 1 of .*contradict",
    ):
        Pool(CASES / "contradiction.jsonl")


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing_picture", "nowhere.png"), ("broken_picture", "broken.png"), ("long", "")],
)
def test_what_cannot_be_read_is_named_before_training(name, said, tmp_path, capfd):
    data = CASES / f"{name}.jsonl"
    if name == "long":
        data = published(tmp_path)
        data.write_text(
            data.read_text().replace(
                "a photo of a star 2", "a photo of a star" + " and a cat" * 250
            )
        )
    config = tmp_path / "c.toml"
    config.write_text(
        f"model = 'mini'\ndata = '{data}'\nsteps = 1\nbatch_size = 4\n"
        "[runtime]\nmicro_batch_size = 4\n"
    )
    run = CliRunner().invoke(
        app, ["train", "sft", "--config", str(config), "--out", str(tmp_path / "out")]
    )
    if name == "long":
        assert run.exit_code == 0, run.output
        told = capfd.readouterr().err + run.output
        assert (
            "5 of 20 pictures are not used: 5 with a prompt that the model cannot read (the "
            "first: line 3 of"
        ) in told
    else:
        assert (
            isinstance(run.exception, InputError)
            and "line 1 of" in str(run.exception)
            and said in str(run.exception)
        )
        assert not (tmp_path / "out" / "config.json").exists()


def test_reasons_that_are_too_long_are_named_before_training(tmp_path, capfd):
    data = published(tmp_path)
    lines = data.read_text().splitlines()
    first = json.loads(lines[1])
    first["data"][0]["reason"] = "Yes, " + "it is a star and " * 1000
    lines[1] = json.dumps(first)
    data.write_text("\n".join(lines))
    config = tmp_path / "c.toml"
    config.write_text(
        f"model = 'mini'\ndata = '{data}'\nsteps = 1\nbatch_size = 4\n"
        "[runtime]\nmicro_batch_size = 4\n"
    )
    run = CliRunner().invoke(
        app, ["train", "sft", "--config", str(config), "--out", str(tmp_path / "out")]
    )
    assert run.exit_code == 0, run.output
    told = capfd.readouterr().err + run.output
    assert (
        "1 of 20 pictures are not used: 1 with a reason that the model cannot read (the first: "
        "line 2 of"
    ) in told
    assert re.search(r"reason: it has \d+ tokens; at most 512 are read", told)


def test_what_is_not_used_is_counted_and_named(tmp_path):
    more = ((None, 0.9), ("fair", 0.6), ("no score", None), ("Yes, it is.", 0.1))
    path = published(tmp_path, rows=(*ROWS, *more))
    lines = path.read_text().splitlines()
    alone = {
        "promptid": 9,
        "prompt": "alone",
        "data": [{"img_path": "0-0.png", "reason": "no", "prob": 0.1}],
    }
    path.write_text("\n".join([*lines, json.dumps(alone)]))
    said = Pool(path).unused
    assert said.startswith(
        "17 of 37 pictures are not used: 4 without a score (the first: line 1 of "
    )
    for words in (
        "4 without a reason",
        "4 whose reason says",
        "4 between the scores",
        "1 of prompts that have no others",
    ):
        assert words in said
    assert "line 5 of" in said and Pool(published(tmp_path)).unused == ""


@pytest.mark.parametrize("score", ['"0.9"', "true", "1.5", "NaN", "[0.9]"])
def test_a_score_is_a_number_from_0_to_1(score, tmp_path):
    path = published(tmp_path)
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("0.95", score, 1)
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match="line 2 of"):
        Pool(path)


def test_rows_of_parquet_are_checked(tmp_path):
    for name, column, said in (
        ("score", pa.array([0.9] * 6 + [float("nan")] + [0.1] * 3), "score: it is nan in row 7 of"),
        ("score", pa.array(["0.9"] * 10), "score: it is '0.9' in row 1 of"),
        ("score", pa.array([True] * 10), "score: it is True in row 1 of"),
        ("reason", pa.array([3] * 10), "reason: it is 3 in row 1 of"),
        ("prompt", pa.array(["a"] * 3 + [None] * 7), "prompt: it is None in row 4 of"),
    ):
        with pytest.raises(InputError, match=said):
            Pool(shards(tmp_path, STORED, **{name: column}))
    (tmp_path / "images-00000.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"images-00000.parquet' cannot be read as Parquet"):
        Pool(tmp_path)
    shards(tmp_path, [{"prompt": "a star"}])
    with pytest.raises(InputError, match="has no column score"):
        Pool(tmp_path)
    with pytest.raises(InputError, match=r"2 of 10 pictures are damaged.*row 3 of"):
        damaged = [
            {"bytes": b"text" if k in (2, 4) else png(picture(k)), "path": None} for k in range(10)
        ]
        Pool(shards(tmp_path, STORED, image=pa.array(damaged)))


def everything(pool: Pool) -> list:
    """What is drawn for some steps, with pictures."""
    rng = np.random.default_rng(0)
    return [
        pool.read(choice)
        for _ in range(5)
        for choice in (pool.drawing(rng), *pool.judging(rng), pool.redrawing(rng))
    ]


@pytest.mark.parametrize("form", ["utf-16", "utf-8-sig", "windows"])
def test_lists_of_other_systems(form, tmp_path):
    (tmp_path / "sub").mkdir()
    path = published(tmp_path)
    plain = everything(Pool(path))
    (tmp_path / "0-0.png").rename(tmp_path / "sub" / "0-0.png")
    text = path.read_text().replace(
        '"0-0.png"', json.dumps("sub\\0-0.png" if form == "windows" else "sub/0-0.png")
    )
    path.write_bytes(text.replace("\n", "\r\n").encode("utf-8" if form == "windows" else form))
    assert everything(Pool(path)) == plain


def test_a_row_is_read_alone_from_any_parquet(tmp_path, monkeypatch):
    """Whether a row group is kept, or too large to be."""
    pool = Pool(shards(tmp_path, STORED))
    kept, size = everything(pool), pool.index.image(4).size
    monkeypatch.setattr(stored_images, "CACHE_BYTES", 10)
    monkeypatch.setattr(stored_images, "PIECE_BYTES", 200)
    assert everything(Pool(tmp_path)) == kept and size == (48, 48)
    assert everything(pickle.loads(pickle.dumps(pool))) == kept, (
        "workers that are not forked get it so"
    )
    assert [row["prompt"] for row in pool.rows] == ["a star"] * 10
    assert not (tmp_path / ".arrow").exists(), "the pictures are stored once"


def test_only_tasks_that_are_trained_need_pictures(tmp_path):
    rows = [row for row in STORED if row["score"] > 0.5]
    with pytest.raises(InputError, match="'judge'"):
        Pool(shards(tmp_path, rows))
    pool = Pool(tmp_path, tasks=["draw"])
    assert len(pool.prompts["draw"]) == 1 and pool.unused == ""
    job = SFTJob(SFTConfig("mini", str(tmp_path), steps=1, batch_size=2, mix=(1.0, 0.0, 0.0)))
    assert np.isfinite(job.step(0)["draw_loss"])


def test_what_a_judge_reads_is_recorded_with_the_checkpoint(tmp_path):
    path = str(shards(tmp_path, STORED))

    def job_of(model: str, **settings) -> SFTJob:
        return SFTJob(SFTConfig(model, path, batch_size=4, mix=(0.0, 1.0, 0.0), **settings))

    paper = job_of("mini")
    rereading = job_of("mini", judge_rereads=True)
    assert rereading.step(0)["verdict_loss"] != paper.step(0)["verdict_loss"]
    rereading.janus.save(tmp_path / "model")
    assert Janus.load(tmp_path / "model").judge_rereads
    assert job_of(str(tmp_path / "model")).template.judge_rereads, "as the model has it"
    assert not job_of(str(tmp_path / "model"), judge_rereads=False).template.judge_rereads


def rows_of(batch) -> list[list[int]]:
    examples = [[e for e, _ in batch.drawing], [e for e, _ in batch.redrawing], batch.judging]
    return [[(*(s.index for s in e.earlier), e.target.index) for e in some] for some in examples]


def test_each_rank_reads_its_own_share(tmp_path, monkeypatch):
    pool = Pool(published(tmp_path, 12))
    config = SFTConfig("mini", str(tmp_path), batch_size=24)
    reads: Counter[int] = Counter()
    image = data_index.Index.image

    def counted(index, row):
        reads[row] += 1
        return image(index, row)

    monkeypatch.setattr(data_index.Index, "image", counted)
    for step in range(3):
        whole = rows_of(SFTBatches(config, pool, ProcessGroup())[step])
        alone = Counter(reads)
        reads.clear()
        parts = [SFTBatches(config, pool, ProcessGroup(rank, 3))[step] for rank in range(3)]
        for kind, examples in enumerate(whole):
            assert [rows_of(parts[i % 3])[kind][i // 3] for i in range(len(examples))] == examples
        assert reads == alone, "each example's pictures are read once by all ranks together"
        reads.clear()
    known = SFTBatches(config, pool, ProcessGroup(), lambda index: True)[0]
    assert reads.total() == sum(len(e.pictures) for e in known.judging), (
        "codes are known of what is drawn"
    )


def test_another_example_takes_the_place_of_one_that_breaks(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(data_index, "NUM_OPENED", 1)
    path = published(tmp_path, 12)
    (tmp_path / "3-2.png").write_bytes(b"broken")
    config = SFTConfig("mini", str(path), steps=8, batch_size=12, runtime={"micro_batch_size": 8})
    pool = Pool(path)
    step = next(s for s in range(8) if SFTBatches(config, pool, ProcessGroup())[s].unreadable)
    one = SFTBatches(config, pool, ProcessGroup())[step]
    assert "line 4 of" in one.unreadable[0] and "3-2.png" in one.unreadable[0]
    parts = [SFTBatches(config, Pool(path), ProcessGroup(rank, 2))[step] for rank in range(2)]
    for kind, examples in enumerate(rows_of(one)):
        assert [rows_of(parts[i % 2])[kind][i // 2] for i in range(len(examples))] == examples, (
            "on any number of ranks"
        )
    for right, wrong in zip(one.judging[::2], one.judging[1::2], strict=False):
        assert right.target.score > 0.5 > wrong.target.score
    job = SFTJob(config)
    job.coming = job.batches.from_step(step)
    assert job.step(step)["unreadable"] == len(one.unreadable)
    assert "another example is taken, for" in capfd.readouterr().err
    monkeypatch.setattr(sft, "MIN_READ", 1)
    job.coming = job.batches.from_step(step)
    with pytest.raises(Stopped, match="could not be read, at most 1% may be"):
        job.step(step)
    for file in tmp_path.glob("*-*.png"):
        file.write_bytes(b"broken")
    for workers in (0, 1):
        job.batches.config = changed(config, {"runtime.dataloader_workers": workers})
        job.code_cache._codes.clear()
        job.coming = None
        with pytest.raises(
            InputError, match=r"^data: 20 examples in a row cannot be read; the first: .*$"
        ):
            job.step(0)


def test_codes_are_kept_up_to_a_bound():
    codes = CodeCache(max_pictures=3)
    for i in range(3):
        codes.add(i, np.full(4, i + 16000))
    assert codes.touch(0) and not codes.touch(5)
    codes.add("source", np.arange(4))
    assert len(codes) == 3 and codes.touch(0) and not codes.touch(1) and codes[0] == (16000,) * 4
    codes.add(9, np.full(4, 16383))
    assert codes._codes[9].nbytes == 8


def test_tars_hold_pictures_only(tmp_path):
    folder = tmp_path / "list"
    folder.mkdir()
    path = published(folder, 2)
    (tmp_path / "outside.jpg").write_bytes(b"")
    picture(3).save(tmp_path / "outside.jpg")
    path.write_text(path.read_text().replace('"0-0.png"', '"../outside.jpg"'))
    pool = Pool(path)
    out = write_examples(pool, tmp_path, "webdataset", 4, 0)
    held = [m for name in out["files"] for m in members(tmp_path / name) if m[0].endswith(".png")]
    assert held and all(Image.open(BytesIO(data)).format == "PNG" for _, data in held)
    assert (folder / "1-1.png").read_bytes() in [data for _, data in held]
    (tmp_path / "outside.jpg").write_text("secret")
    with pytest.raises(InputError, match="line 1 of"):
        write_examples(pool, tmp_path, "webdataset", 4, 0)
    assert not list(tmp_path.glob("*.tmp"))


def members(path: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]


def test_host_memory_of_many_pictures():
    recipe = find_config("7b/sft")
    config = SFTConfig("deepseek-ai/Janus-Pro-7B", "out/data", batch_size=128, steps=50000)
    found = simulate_host.run(
        recipe, config, 8, 80.0, pictures=20_000, steps=1, workers=1, forms=["jsonl"]
    )
    m = found["details"]["jsonl"]
    assert found["fits"] and m["once"] and m["pool"] / m["pictures"] < 300
    assert max(m["reads"]) < m["chosen"] / 8 * 1.5 and m["rank"]["anonymous"] < 1.2 * 2**30
    assert len(found["lines"]) == 3 and found["peaks"]["jsonl: node"] > 0
