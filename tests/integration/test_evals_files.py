"""Public benchmarks on other people's files and judges, and on damaged files of their own: what is
refused, what is done again, what is missing."""

import json
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from PIL import Image
from typer.testing import CliRunner

from cases.unfriendly_judge import Handler
from secondlook.cli import app
from secondlook.cli.common import console
from secondlook.errors import InputError
from secondlook.evals import records, report, runner
from secondlook.evals.benchmark import VALUE_IN_UNIT, Row, ValueRange
from secondlook.evals.dpg_bench import DPGBench
from secondlook.evals.gedit import two_scores
from secondlook.evals.geneval import GenEval
from secondlook.evals.pie_bench import PIEBench
from secondlook.evals.records import EvalSettings, score_fault
from secondlook.io import append_rows
from secondlook.llm.replies import Unanswered
from secondlook.mini.evals import audit, judging
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


@pytest.fixture(scope="module")
def server():
    """The address of a judge that answers by the name of the model that is asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/v1"
        served.shutdown()


def dpg(out, data, model="fine", url="http://127.0.0.1:9/v1", *more):
    command = [
        "eval",
        "dpg",
        "--model",
        "mini",
        "--data",
        str(data),
        "--vqa",
        model,
        "--url",
        url,
    ]
    return CliRunner().invoke(
        app, [*command, "--samples", "1", "--rounds", "1", "--out", str(out), *more]
    )


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
    (
        out / "pictures" / "00000-0.1-1.png"
    ).unlink()  # it has a score, which is not that of a picture drawn anew
    run = dpg(out, CASES / "line_separator", url=server)
    assert run.exit_code == 0 and (out / "pictures" / "00000-0.2-1.png").exists()
    again = json.loads((out / "result.json").read_text())
    assert again["overall"] == first["overall"] and again["images"] == 1

    other = dpg(out, CASES / "plain", url=server)
    assert isinstance(other.exception, InputError) and "is no row of these data" in str(
        other.exception
    )
    (out / "config.json").write_text("{")
    assert isinstance(dpg(out, CASES / "line_separator", url=server).exception, InputError)


def test_too_long_a_prompt_is_found_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "secondlook.cli.evals.load_engine", lambda *_, **__: pytest.fail("too late")
    )
    (tmp_path / "dpg_bench").mkdir()
    path = tmp_path / "dpg_bench" / "dpg_bench.csv"
    path.write_text(
        HEAD
        + RED
        + RED.replace("a red star", "a red star " * MAX_PROMPT).replace("star_1", "star_2")
    )
    run = dpg(tmp_path / "out", tmp_path)
    assert isinstance(run.exception, InputError) and f"at most {MAX_PROMPT}" in str(run.exception)
    assert f"row 2 of {str(path)!r}" in str(run.exception) and not (tmp_path / "out").exists()
    # of all benchmarks the ones that cannot be are named first, then the others begin
    begun = []
    monkeypatch.setattr("secondlook.cli.evals.run_benchmark", lambda name, *_: begun.append(name))
    command = [
        "eval",
        "all",
        "--model",
        "mini",
        "--suite",
        "public",
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "all"),
    ]
    run = CliRunner().invoke(app, command)
    skipped = json.loads((tmp_path / "all" / "result.json").read_text())["skipped"]
    assert (
        run.exit_code == 0
        and not begun
        and f"at most {MAX_PROMPT}" in skipped["dpg"]
        and "dpg: skipped: " in run.output
    )


def test_what_begins_and_does_not_end_is_a_failure(tmp_path, monkeypatch):
    data = CASES / "plain"
    command = [
        "eval",
        "all",
        "--model",
        "mini",
        "--suite",
        "public",
        "--data",
        str(data),
        "--out",
        str(tmp_path),
    ]

    def away(*_):
        raise InputError("judge: away")

    monkeypatch.setattr("secondlook.cli.evals.run_benchmark", away)
    run = CliRunner().invoke(app, [*command, "--vqa", "m", "--url", "http://127.0.0.1:9/v1"])
    assert run.exit_code == 1 and "dpg began and did not end: judge: away" in str(run.exception)
    assert "judge: away" in (tmp_path / "all.html").read_text()


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


def test_no_score_is_outside_its_range():
    metrics = {"psnr": ValueRange(0, 60, True), "clip": ValueRange(0, 100)}
    assert not score_fault({"psnr": None, "clip": 100.00001}, metrics), (
        "undefined is no fault, and rounding neither"
    )
    for score in (
        {"psnr": None},
        {"psnr": 1.0, "clip": None},
        {"psnr": float("inf"), "clip": 1},
        {"psnr": 1, "clip": True},
    ):
        assert score_fault(score, metrics), score
    assert (
        score_fault({"value": float("nan")}, VALUE_IN_UNIT)
        == "value is nan, not a number from 0 to 1"
    )


def test_what_has_no_number_is_missing_and_named(tmp_path, monkeypatch):
    """Scores that are no numbers of their range are missing, each with its reason; a few of many do
    not stop a resumed run."""
    every = [Row(f"{i:05d}", f"a photo of a cup {i}", "all") for i in range(20)]
    settings = EvalSettings("geneval", "mini", 1, 1)
    records.begin(tmp_path, settings, {})
    record = {"k": 0, "task": "all", "seed": 0, "final": 0, "fresh": []}
    lines = []
    for i, row in enumerate(every):
        name = f"{i:05d}-0-1.png"
        Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / name)
        shown = [{"picture": name, "yes": True, "p_yes": 0.9, "reason": "…"}]
        lines.append(record | {"row": i, "id": row.id, "prompt": row.prompt, "rounds": shown})
    append_rows(tmp_path / "episodes-000.jsonl", lines)

    def scorer(items):
        return [{"value": float("nan") if row.id == "00003" else 1.0} for row, _ in items]

    runner.score_pictures(scorer, every, settings, tmp_path)
    runner.score_pictures(scorer, every, settings, tmp_path)  # 1 of 1 again, but of 20 in all
    scores = records.read_scores(tmp_path, VALUE_IN_UNIT)
    benchmark, episodes = GenEval(model="mini"), records.read_episodes(tmp_path, every, settings)
    result = report.summarize(
        benchmark, settings, episodes, scores, records.missing_reasons(tmp_path)
    )
    assert result["images"] == 19 and result["missing"] == 1 and len(scores) == 19
    assert result["left_out"][0]["picture"] == "00003-0-1.png" and result["left_out"][0][
        "why"
    ].startswith("value is nan")
    report.write(tmp_path, benchmark, settings, episodes)
    page = (tmp_path / "benchmark.html").read_text()
    assert "1 of 20 samples are left out" in page and "00003-0-1.png" in page
    monkeypatch.setattr(console, "_width", 120)  # whichever test made the console first
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0 and "GenEval: mini, 20 rows, 1 samples each" in shown.output
    assert "1.000 [1.000, 1.000]" in shown.output and "1 of 20 samples left out" in shown.output


def test_what_there_is_none_of_is_shown_as_none(tmp_path):
    none, some = (dict.fromkeys(("mean", "low", "high"), v) for v in (float("nan"), 0.5))
    images = {"first": some, "final": some, "gain": none}
    judged = {"accuracy": 0.5, "balanced_accuracy": none, "kappa": 0.0, "always_yes_rate": 1.0}
    miniature = {
        "overall": images,
        "tasks": {},
        "binding": {"bound": none, "images": 0},
        "position": {"given_both": none, "chance": 0.25, "images": 0},
        "judge": {"first": judged},
        "redraws": {"fixed": 0.0, "wrong": 0, "broken": 0.5, "right": 2},
    }
    pope = {
        "splits": {"random": {"f1": some, "accuracy": 0.75, "yes_rate": 0.5}},
        "questions": 4,
        "left_out": [],
        "settings": {"model": "mini"},
    }
    for result, said in (
        (
            miniature,
            (
                "redraws: fixed none (wrong: 0), broke 0.500 of 2 right",
                "balanced none, kappa",
                "colours: none (chance",
            ),
        ),
        (
            pope,
            (
                "POPE: mini, 4 questions",
                "0.500 [0.500, 0.500]",
                "0.750",
                "none of the pictures left out",
            ),
        ),
    ):
        (tmp_path / "result.json").write_text(json.dumps(result))
        shown = CliRunner().invoke(app, ["show", str(tmp_path)])
        assert shown.exit_code == 0 and all(words in shown.output for words in said), shown.output
        assert "nan" not in shown.output


def test_records_that_are_damaged_are_as_if_not_there(tmp_path):
    every, settings = (
        [Row("0", "a cup", "all"), Row("1", "a cat", "all")],
        EvalSettings("geneval", "mini", 1, 1),
    )
    records.begin(tmp_path, settings, {})
    shown = [{"picture": "00000-0-1.png", "yes": True, "p_yes": 0.9, "reason": "…"}]
    good = {
        "row": 0,
        "k": 0,
        "id": "0",
        "task": "all",
        "prompt": "a cup",
        "final": 0,
        "rounds": shown,
        "fresh": [],
    }
    bad = [
        good | {"final": 1},
        good | {"rounds": []},
        good | {"row": "0"},
        good | {"rounds": [shown[0] | {"p_yes": float("nan")}]},
        good | {"rounds": [shown[0] | {"yes": "Yes"}]},
        {k: v for k, v in good.items() if k != "prompt"},
    ]
    append_rows(tmp_path / "episodes-000.jsonl", bad)
    with open(tmp_path / "episodes-000.jsonl", "ab") as file:
        file.write(b'{"row": 0, "k"\xff\n')
    assert records.read_episodes(tmp_path, every, settings) == []
    append_rows(tmp_path / "episodes-001.jsonl", [good, good])
    assert records.read_episodes(tmp_path, every, settings) == [good], "once, whoever wrote it"
    assert not records.all_drawn(tmp_path, every, settings)


def test_no_two_pictures_have_one_seed():
    for given in ({"fresh": 101}, {"samples": 1001}, {"seed": 10**5}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(given))):
            GenEval(model="mini", **{"samples": 1} | given)
    GenEval(model="mini", samples=1000, fresh=100, seed=10**5 - 1)


def test_damaged_results_of_the_miniature_are_refused(tmp_path):
    """What compare, audit, judging and seeds read: a sentence that names the file."""
    import compare
    import seeds

    folder = tmp_path / "geneval"
    folder.mkdir()
    whole = {
        "overall": {},
        "tasks": {},
        "settings": {"model": "mini"},
        "judge": {},
        "redraws": {},
        "binding": {},
        "position": {},
    }
    rounds = [{"yes": True, "p_yes": 0.9, "right": True, "reason": "…", "codes": [1, 2]}]
    episode = {
        "tag": "colors",
        "prompt": "a photo of a red star",
        "seed": 1,
        "final": 0,
        "rounds": rounds,
    }
    for name, value in (("result.json", whole), ("episodes.json", [episode]), ("gallery.json", {})):
        (folder / name).write_text(json.dumps(value))
    assert compare.read("m", tmp_path).episodes and audit.read_codes(folder)[0] == "mini"
    for name, text in (
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", "{}"),
        ("episodes.json", '{"a": 1}'),
        ("episodes.json", json.dumps([episode | {"final": 3}])),
        ("episodes.json", json.dumps([episode | {"rounds": []}])),
        ("episodes.json", json.dumps([{}])),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(InputError, match=name):
            compare.read("m", tmp_path)
        (folder / name).write_text(before)
    for codes, prompt in (
        ([], episode["prompt"]),
        ([-1], episode["prompt"]),
        (["a"], episode["prompt"]),
        ([1], "a photo of rain"),
    ):
        changed = episode | {"prompt": prompt, "rounds": [rounds[0] | {"codes": codes}]}
        (folder / "episodes.json").write_text(json.dumps([changed]))
        with pytest.raises(InputError):
            audit.read_codes(folder)
    said = {"prompt": "a", "right": True, "yes": True, "p_yes": 0.5}
    for change in ({"p_yes": float("nan")}, {"p_yes": "0.5"}, {"yes": "Yes"}, {"other": 1}):
        (tmp_path / "verdicts.json").write_text(json.dumps([said | change]))
        with pytest.raises(InputError, match=r"verdicts\.json"):
            judging.read_verdicts(tmp_path)
    (tmp_path / "result.json").write_text('{"models": ')
    with pytest.raises(InputError, match=r"result\.json"):
        seeds.read(tmp_path)
