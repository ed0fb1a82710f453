"""All benchmarks: what they cannot do without is said, and `eval all` over them."""

import json

import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.cli.evals import _names_of_suite
from secondlook.errors import InputError
from secondlook.evals.benchmark import get_benchmark
from secondlook.evals.compbench import CompBench
from secondlook.evals.dpg_bench import DPGBench
from secondlook.evals.dsg import DSG
from secondlook.evals.gedit import GEdit
from secondlook.evals.geneval import GenEval
from secondlook.evals.pie_bench import PIEBench
from secondlook.evals.pope import POPE


def test_what_is_missing_is_said(tmp_path):
    for call, said in (
        (lambda: DPGBench(model="mini").rows(), "dpg_bench.csv"),
        (lambda: PIEBench(model="mini", data=tmp_path).rows(), "mapping_file.json"),
        (lambda: get_benchmark("genevil"), "'genevil' is unknown"),
        (lambda: GEdit(model="mini").judge(), "vqa: BLIP answers yes or no"),
        (lambda: GenEval(), "model: it is missing"),
        (lambda: GenEval(model="mini", rounds=0), "rounds: 0 is wrong"),
        (lambda: GenEval(model="mini", vqa="m"), "vqa: 'm' is wrong"),
    ):
        with pytest.raises(InputError, match=said):
            call()


def test_no_two_pictures_have_one_seed():
    for given in ({"fresh": 101}, {"samples": 1001}, {"seed": 10**5}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(given))):
            GenEval(model="mini", **{"samples": 1} | given)
    GenEval(model="mini", samples=1000, fresh=100, seed=10**5 - 1)


def test_the_real_files(benchmarks, tmp_path):
    options = {"model": "mini", "data": benchmarks}
    assert len(CompBench(**options).rows()) == 1200
    questions = DSG(**options).rows()
    assert len(questions) == 1060 and sum(len(row.facts["questions"]) for row in questions) == 8182
    pope = POPE(**options, images=tmp_path)
    assert len(pope.rows()) == 9000
    with pytest.raises(InputError, match="lacks 500 pictures, first COCO_val2014"):
        pope.check()
    with pytest.raises(InputError, match=r"4a7d36259ad94d238a6e7e7e0bd6b643.png' is missing"):
        GEdit(**options, images=tmp_path).rows()
    for edit in json.loads((benchmarks / "gedit" / "gedit_edit.json").read_text()).values():
        (tmp_path / edit["id"]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / edit["id"]).touch()
    edits = GEdit(**options, images=tmp_path).rows()
    assert len(edits) == 604 and len({row.task for row in edits}) == 11


@pytest.mark.parametrize(
    ("name", "options", "change", "said"),
    [
        ("mini-geneval", {"rows_per_task": 2}, {"rows_per_task": 3}, "rows_per_task is 3"),
        ("mini-geneval", {}, {"model": "mini-base", "seed": 5}, "model is 'mini-base'"),
        ("mini-geneval", {"guidance": 1.0}, {"guidance": 3.0}, "guidance is 3.0"),
        ("mini-curve", {}, {"max_rounds": 4}, "max_rounds is 4"),
        ("mini-pie", {}, {"split": "seen"}, "split is 'seen'"),
        ("mini-questions", {}, {"questions": 3}, "questions is 3"),
        ("mini-judging", {"images": "drawn"}, {"images": "other"}, "images is 'other'"),
        ("mini-audit", {"folder": "drawn"}, {"folder": "other"}, "folder is 'other'"),
        ("pope", {"model": "mini"}, {"only": 3}, "only is 3"),
    ],
)
def test_a_folder_keeps_to_one_set_of_settings(name, options, change, said, tmp_path):
    benchmark = get_benchmark(name)
    benchmark(**options).begin(name, tmp_path)
    benchmark(**options).begin(name, tmp_path)  # the same may run again
    with pytest.raises(InputError, match=f"config: .*{said}.* was begun with"):
        benchmark(**options | change).begin(name, tmp_path)
    with pytest.raises(InputError, match="benchmark is 'other'"):
        benchmark(**options).begin("other", tmp_path)


def test_guidance_that_is_the_checkpoints_own_is_the_same_setting(tmp_path):
    benchmark = get_benchmark("mini-geneval")
    own = benchmark().folder_settings("mini-geneval")
    benchmark().begin("mini-geneval", tmp_path)
    benchmark(guidance=own["guidance"]).begin("mini-geneval", tmp_path)


@pytest.mark.parametrize("name", ["mini-questions", "all"])
def test_a_folder_of_other_settings_is_refused_before_a_model_is_loaded(
    name, tmp_path, monkeypatch
):
    """Also the folder of a finished benchmark that `eval all` would not run again."""
    folder = tmp_path / "mini-questions"
    folder.mkdir()
    get_benchmark("mini-questions")(questions=10).begin("mini-questions", folder)
    (folder / "result.json").write_text("{}")
    before = (folder / "config.json").read_text()
    monkeypatch.setattr("secondlook.cli.evals.load_engine", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("secondlook.cli.evals._names_of_suite", lambda _: ["mini-questions"])
    monkeypatch.setattr(
        "secondlook.evals.overview.write", lambda *_: {"benchmarks": {}, "skipped": {}}
    )
    out = tmp_path if name == "all" else folder
    options = ["--model", "mini", "--questions", "20", "--out", str(out)]
    run = CliRunner().invoke(app, ["eval", name, *options])
    assert "questions is 20 but" in str(run.exception)
    assert (folder / "config.json").read_text() == before


def eval_all(*options):
    return CliRunner().invoke(app, ["eval", "all", "--model", "mini", *map(str, options)])


def test_the_miniatures_suite():
    suite = {"mini-geneval", "mini-geneval-plus", "mini-repairs", "mini-curve", "mini-questions"}
    suite |= {"mini-pie", "mini-binding"}
    assert set(_names_of_suite("mini")) == suite


@pytest.mark.slow
def test_all_benchmarks_of_a_miniature(tmp_path):
    options = ("--rounds", 2, "--out", tmp_path)
    run = eval_all("--only", 1, *options)
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["benchmarks"]) == set(_names_of_suite("mini"))
    assert not result["skipped"]
    assert 'href="mini-geneval/benchmark.html"' in (tmp_path / "all.html").read_text()
    mixed = eval_all("--only", 2, *options)
    assert isinstance(mixed.exception, InputError) and "only is 2 but" in str(mixed.exception)


@pytest.mark.slow
def test_benchmarks_whose_data_are_missing_are_skipped(tmp_path):
    (tmp_path / "data").mkdir()
    options = ("--suite", "public", "--data", tmp_path / "data", "--out", tmp_path / "out")
    run = eval_all(*options)
    assert run.exit_code == 0, run.output
    skipped = json.loads((tmp_path / "out" / "result.json").read_text())["skipped"]
    public = {"geneval", "geneval-long", "compbench", "dsg", "dpg", "pie", "gedit", "pope"}
    assert set(skipped) == public and "evaluation_metadata.jsonl" in skipped["geneval"]
