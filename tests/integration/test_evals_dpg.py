"""Tables of questions that others made, and DPG-Bench with a served judge: what is refused, what is
done again."""

import json
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from typer.testing import CliRunner

from cases.unfriendly_judge import Handler
from secondlook.cli import app
from secondlook.errors import InputError
from secondlook.evals import runner
from secondlook.evals.dpg_bench import DPGBench
from secondlook.models.janus.template import MAX_PROMPT

CASES = Path(__file__).parents[1] / "cases" / "dpg"
HEAD = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language\n"
)
RED = "star_1,a photo of a red star,,1,0,entity,whole,entity - whole (star),Is there a star?\n"


def dpg_rows(data):
    return DPGBench(model="mini", data=data).rows()


def test_tables_of_other_systems(tmp_path):
    [plain], [marked] = dpg_rows(CASES / "plain"), dpg_rows(CASES / "bom")
    assert plain == marked and plain.facts == marked.facts and len(plain.facts["questions"]) == 2
    [separated] = dpg_rows(CASES / "line_separator")
    assert "\u2028" in separated.prompt and len(separated.facts["questions"]) == 2
    with pytest.raises(InputError, match=r"line 2 of '.*dpg_bench.csv' is not UTF-8"):
        dpg_rows(CASES / "latin_1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no row with a column item_id"),
        (HEAD.replace("dependency", "parents") + RED, "no row with a column dependency"),
        (HEAD + RED + "star_1,too,few\n", "line 3 of"),
        (HEAD + RED.replace(",1,0,", ",one,0,"), "proposition_id: it is 'one' in row 1 of"),
        (HEAD + RED + RED, "proposition_id: 1 is in row 2 of .* a second time"),
        (HEAD + RED.replace("a photo of a red star", " "), "text: it is ' ' in row 1 of"),
        (HEAD + RED.replace("Is there", '"Is there'), "is not CSV"),
    ],
)
def test_a_malformed_table_names_its_row(tmp_path, text, said):
    (tmp_path / "dpg_bench").mkdir()
    (tmp_path / "dpg_bench" / "dpg_bench.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        dpg_rows(tmp_path)


@pytest.fixture(scope="module")
def server():
    """The address of a judge that answers by the name of the model that is asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/v1"
        served.shutdown()


def dpg(out, data, model="fine", url="http://127.0.0.1:9/v1", *more):
    judge = ["--vqa", model, "--url", url]
    command = ["eval", "dpg", "--model", "mini", "--data", str(data), *judge, *more]
    return CliRunner().invoke(app, [*command, "--samples=1", "--rounds=1", "--out", str(out)])


def eval_all(data, out, *more):
    command = ["eval", "all", "--model", "mini", "--suite", "public", "--data", str(data)]
    return CliRunner().invoke(app, [*command, "--out", str(out), *more])


def test_a_line_separator_in_a_prompt_and_damaged_files(server, tmp_path, monkeypatch):
    """Nothing is drawn twice but what is damaged; a result is of all pictures."""
    out = tmp_path / "out"
    run = dpg(out, CASES / "line_separator", url=server)
    assert run.exit_code == 0, run.output
    first = json.loads((out / "result.json").read_text())
    assert first["images"] == 1 and first["missing"] == 0
    assert "four pictures only and skips the table" in (out / "benchmark.html").read_text()

    draw = runner.run_episodes
    monkeypatch.setattr(
        runner, "run_episodes", lambda *_: pytest.fail("what is drawn is not drawn again")
    )
    assert dpg(out, CASES / "line_separator", url=server).exit_code == 0
    assert json.loads((out / "result.json").read_text()) == first

    scores = out / "scores-000.jsonl"
    scores.write_text(scores.read_text().replace('"value": ', '"value": NaN, "was": '))
    run = dpg(out, CASES / "line_separator", url=server)
    assert run.exit_code == 0 and "scored again: 00000-0-1.png: value is nan" in run.output
    assert json.loads((out / "result.json").read_text()) == first
    scores.write_text("")
    picture = out / "pictures" / "00000-0-1.png"
    picture.write_bytes(picture.read_bytes()[:99])
    monkeypatch.setattr(runner, "run_episodes", draw)
    run = dpg(out, CASES / "line_separator", url=server)
    assert run.exit_code == 0 and "drawn again" in run.output and "00000-0-1.png" in run.output
    # it has a score, which is not that of a picture drawn anew
    (out / "pictures" / "00000-0.1-1.png").unlink()
    run = dpg(out, CASES / "line_separator", url=server)
    assert run.exit_code == 0 and (out / "pictures" / "00000-0.2-1.png").exists()
    again = json.loads((out / "result.json").read_text())
    assert again["overall"] == first["overall"] and again["images"] == 1

    other = dpg(out, CASES / "plain", url=server)
    assert isinstance(other.exception, InputError)
    assert "is no row of these data" in str(other.exception)
    (out / "config.json").write_text("{")
    assert isinstance(dpg(out, CASES / "line_separator", url=server).exception, InputError)


def test_too_long_a_prompt_is_found_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "secondlook.cli.evals.load_engine", lambda *_, **__: pytest.fail("too late")
    )
    (tmp_path / "dpg_bench").mkdir()
    path = tmp_path / "dpg_bench" / "dpg_bench.csv"
    too_long = RED.replace("a red star", "a red star " * MAX_PROMPT)
    path.write_text(HEAD + RED + too_long.replace("star_1", "star_2"))
    run = dpg(tmp_path / "out", tmp_path)
    assert isinstance(run.exception, InputError) and f"at most {MAX_PROMPT}" in str(run.exception)
    assert f"row 2 of {str(path)!r}" in str(run.exception) and not (tmp_path / "out").exists()
    # of all benchmarks the ones that cannot be are named first, then the others begin
    begun = []
    monkeypatch.setattr("secondlook.cli.evals.run_benchmark", lambda name, *_: begun.append(name))
    run = eval_all(tmp_path, tmp_path / "all")
    assert run.exit_code == 0 and not begun and "dpg: skipped: " in run.output
    skipped = json.loads((tmp_path / "all" / "result.json").read_text())["skipped"]
    assert f"at most {MAX_PROMPT}" in skipped["dpg"]


def test_what_begins_and_does_not_end_is_a_failure(tmp_path, monkeypatch):
    def away(*_):
        raise InputError("judge: away")

    monkeypatch.setattr("secondlook.cli.evals.run_benchmark", away)
    judge = ["--vqa", "m", "--url", "http://127.0.0.1:9/v1"]
    run = eval_all(CASES / "plain", tmp_path, *judge)
    assert run.exit_code == 1 and "dpg began and did not end: judge: away" in str(run.exception)
    assert "judge: away" in (tmp_path / "all.html").read_text()
