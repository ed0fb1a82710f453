"""The command as a user meets it: what it writes, and one sentence with exit code 2 for whatever
cannot be used."""

import importlib
import json
import os
import re
import runpy
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from forked import Finished, run_command, run_forked
from secondlook.cli import common, main
from secondlook.data.labelled_images import read_pairs
from secondlook.io import stored_rows
from secondlook.report import curves


@pytest.fixture(scope="module")
def model(janus, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    janus.save(folder)
    return folder


def secondlook(*args) -> Finished:
    """The command in a process of its own."""
    with TemporaryDirectory() as output:
        return run_forked(run_command, [str(arg) for arg in args], output=Path(output))


@pytest.fixture(scope="module")
def drawn(model, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("drawn") / "new" / "folder"
    done = secondlook(
        "draw",
        "a photo of a red star",
        "--model",
        model,
        "--n",
        2,
        "--seed",
        5,
        "--rounds",
        2,
        "--out",
        out,
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_draw_writes_every_round(drawn):
    out, printed = drawn
    assert sorted(p.name for p in out.iterdir()) == [".lock", "1", "2", "config.json"]
    for k in ("1", "2"):
        episode = json.loads((out / k / "episode.json").read_text())
        assert (
            episode["seed"] == 4 + int(k)
            and episode["settings"]["max_rounds"] == 2
            and episode["versions"]["torch"]
        )
        files = {f"round-{i}.png" for i in range(1, len(episode["rounds"]) + 1)}
        written = {p.name for p in (out / k).iterdir()} - {".lock"}
        assert written == files | {"final.png", "episode.json", "episode.html"}
        final = Image.open(out / k / "final.png")
        chosen = Image.open(out / k / episode["rounds"][episode["final"] - 1]["image"])
        assert final.size == (48, 48) and final.tobytes() == chosen.tobytes()
        for r in episode["rounds"]:
            assert f"p(yes) {r['p_yes']:.2f}" in printed
        page = (out / k / "episode.html").read_text()
        assert not re.search(r'(src|href)="(?!data:)', page), "the page is self-contained"


def test_draw_says_that_an_unlikely_verdict_was_sampled(capsys):
    from secondlook.cli.drawing import _print_episode
    from secondlook.types import Episode, Prompt, Round

    image = Image.new("RGB", (48, 48))
    for yes, p_yes, is_unlikely in [(False, 0.78, True), (True, 0.3, True), (True, 0.9, False)]:
        rounds = (Round(image, (), yes, p_yes, "there is no cup."),)
        _print_episode(Episode(Prompt("a photo of a cup"), 0, rounds, ()), "")
        assert ("sampled from p(yes)" in capsys.readouterr().out) == is_unlikely


def test_draw_is_reproducible(drawn, model, tmp_path):
    out, _ = drawn
    args = ("--n", 1, "--seed", 6, "--rounds", 2, "--out", tmp_path)
    done = secondlook("draw", "a photo of a red star", "--model", model, *args)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "a photo of a red star  seed 6"
    assert lines == [line.rstrip() for line in lines]
    again, before = (
        json.loads(p.read_text()) for p in (tmp_path / "episode.json", out / "2" / "episode.json")
    )
    assert [r["codes"] for r in again["rounds"]] == [r["codes"] for r in before["rounds"]]


def test_judge_ask_and_show(drawn, model, tmp_path):
    out, _ = drawn
    image = out / "1" / "final.png"
    judged = secondlook("judge", image, "a photo of a cat", "--model", model)
    assert judged.returncode == 0 and re.match(r"(Yes|No)  p\(yes\) [01]\.\d{3}", judged.stdout), (
        judged.stderr
    )
    assert (
        secondlook("ask", image, "is there a cat?", "--model", model, "--max-tokens", 4).returncode
        == 0
    )
    shown = secondlook("show", out)
    assert (
        shown.returncode == 0
        and "a photo of a red star" in shown.stdout
        and "final" in shown.stdout
    )


def test_what_was_drawn_is_judged(drawn, model, tmp_path, monkeypatch, capsys):
    out, _ = drawn
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, "judge", out, "a photo of a cat", "--model", model) == 0
    assert "of 2 match" in capsys.readouterr().out
    verdicts = stored_rows(Path("out/judge/verdicts.jsonl"))
    assert [row["image"] for row in verdicts] == ["1/final.png", "2/final.png"]
    assert {row["prompt"] for row in verdicts} == {"a photo of a red star"}, "the episodes' own"

    Image.open(out / "1" / "final.png").save("a.png")
    editing = ("edit", "a.png", "add a cat", "--rounds", 1, "--model", model)
    assert run_here(monkeypatch, *editing) == 0
    assert run_here(monkeypatch, "judge", "out/edit", "--model", model, "--out", "edited") == 0
    [verdict] = stored_rows(Path("edited/verdicts.jsonl"))
    assert (verdict["image"], verdict["prompt"]) == ("final.png", "add a cat")
    [pair] = read_pairs(Path("out/edit"))
    assert np.array_equal(pair.source(), Image.open("a.png")), "judged beside its source"

    Path("out/edit/final.png").unlink()
    assert run_here(monkeypatch, "judge", "out/edit", "--model", model) == 2
    assert "out/edit/final.png' is not a file" in capsys.readouterr().err


def test_a_run_is_shown_with_what_there_is_to_look_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    (run / "episodes").mkdir(parents=True)
    metrics = run / "metrics.jsonl"

    def shown() -> str:
        assert run_here(monkeypatch, "show", run) == 0
        return capsys.readouterr().out

    metrics.write_text('{"step": 0, "loss": 0.5, "eval": 0.25}\n')
    assert shown().splitlines()[-1] == "curves: none of a single step"
    assert [path.name for path in run.iterdir() if path.is_file()] == ["metrics.jsonl"]
    with metrics.open("a") as file:
        file.write('{"step": 1, "loss": 0.25}\n')
    (run / "tensorboard").mkdir()
    (run / "final").mkdir()
    for step in (9, 10):
        (run / "episodes" / f"step-{step}.html").touch()
    assert shown().splitlines()[-4:] == [
        "curves: run/curves.png",
        "best and worst episodes: run/episodes/step-10.html (and 1 of earlier steps)",
        "tensorboard --logdir run/tensorboard",
        "checkpoint: run/final",
    ]
    one_panel = Image.open(run / "curves.png").size
    curves(run, names=["loss"])
    assert Image.open(run / "curves.png").size == one_panel, "no panel of a single dot"


def run_here(monkeypatch, *args) -> int:
    """The exit code of a command in this process, 0 where it returns."""
    monkeypatch.setattr(sys, "argv", ["secondlook", *map(str, args)])
    with pytest.raises(SystemExit) as done:
        main()
    return done.value.code or 0


def codes(episodes: list[dict]) -> list:
    return [[r["codes"] for r in e["rounds"]] for e in episodes]


@pytest.fixture
def prompt_list(drawn, tmp_path) -> Path:
    """Two drawings and an edit."""
    Image.open(drawn[0] / "1" / "final.png").save(tmp_path / "source.png")
    rows = [
        {"prompt": "a photo of a red star"},
        {"prompt": "make the star blue", "source": "source.png"},
        {"prompt": "a photo of a cat"},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_list_of_prompts_is_drawn_and_resumed(
    prompt_list, drawn, model, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "list"
    settings = ("--model", model, "--rounds", 2, "--seed", 5, "--device", "cpu")
    command = ("draw", "--prompts", prompt_list, "--out", out, "--n", 2, *settings)
    assert run_here(monkeypatch, *command) == 0
    folders = sorted(p.parent for p in out.glob("*/episode.json"))
    assert [f.name for f in folders] == [f"0000{i}-{j}" for i in (1, 2, 3) for j in (1, 2)]
    episodes = [json.loads((f / "episode.json").read_text()) for f in folders]
    assert [e["seed"] for e in episodes] == [5, 6, 7, 8, 9, 10]
    alone = [json.loads((drawn[0] / k / "episode.json").read_text()) for k in ("1", "2")]
    assert codes(episodes[:2]) == codes(alone)
    assert (folders[2] / "source.png").is_file()
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["prompts"], summary["episodes"]) == (3, 6)
    page = (out / "index.html").read_text()
    pictures = re.findall(r'src="([^"]+)"', page)
    assert len(pictures) == sum(len(e["rounds"]) for e in episodes) + 2
    assert all((out / picture).is_file() for picture in pictures)
    assert "6 episodes" in capsys.readouterr().out

    (folders[3] / "episode.json").write_text("{")  # as a process that was killed leaves it
    (folders[4] / "final.png").unlink()
    before = {f: (f / "episode.json").stat().st_mtime_ns for f in folders}
    assert run_here(monkeypatch, *command) == 0
    assert "episodes that are there: 4 of 6" in capsys.readouterr().out
    changed = [f for f in folders if (f / "episode.json").stat().st_mtime_ns != before[f]]
    assert changed == folders[3:5]
    again = [json.loads((f / "episode.json").read_text()) for f in folders]
    assert codes(again) == codes(episodes)
    assert run_here(monkeypatch, "show", out) == 0
    assert "3 prompts, 6 episodes" in capsys.readouterr().out


def test_a_list_is_not_mixed_with_other_settings(prompt_list, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "list"
    command = ("draw", "--prompts", prompt_list, "--model", model, "--rounds", 1, "--out", out)
    assert run_here(monkeypatch, *command) == 0
    capsys.readouterr()

    def refused(*args) -> str:
        assert run_here(monkeypatch, *args) == 2
        return capsys.readouterr().err

    assert "config: seed is 1 but" in refused(*command, "--seed", 1)
    assert "use another folder" in refused("draw", "a cat", "--model", model, "--out", out)
    other = tmp_path / "other.txt"
    other.write_text("a photo of a cat\n")
    assert "has other prompts" in refused("draw", "--prompts", other, *command[3:])
    single = tmp_path / "single"
    assert run_here(monkeypatch, "draw", "a cat", "--model", model, "--n", 1, "--out", single) == 0
    assert "folder of another job" in refused(*command[:-1], single)
    (single / "config.json").unlink()
    assert "not drawn from a list" in refused(*command[:-1], single)


def test_a_folder_keeps_one_commands_episodes(model, tmp_path, monkeypatch, capsys):
    settings = ("--model", model, "--rounds", 1, "--device", "cpu")
    monkeypatch.chdir(tmp_path)

    def run(*args) -> str:
        assert run_here(monkeypatch, *args, *settings) == 0
        return capsys.readouterr().out

    def refused(*args) -> str:
        assert run_here(monkeypatch, *args, *settings) == 2
        [sentence] = capsys.readouterr().err.splitlines()
        return sentence

    def files() -> dict[Path, bytes]:
        paths = (path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
        return {path: path.read_bytes() for path in paths}

    drawing = ("draw", "a photo of a cup", "--n", 2, "--out", "cups")
    run(*drawing)
    drawn = files()
    assert len(drawn) == 9  # config.json, and of each: round, final, JSON and page
    assert refused("draw", "a photo of a heart", "--n", 2, "--out", "cups") == (
        "secondlook: config: prompt is 'a photo of a heart' but cups was begun with 'a photo of a "
        "cup'; use the same value to go on with it, or another folder"
    )
    assert "n is 1 but" in refused("draw", "a photo of a cup", "--n", 1, "--out", "cups")
    assert "seed is 3 but" in refused(*drawing, "--seed", 3)
    assert "guidance is 2.0 but" in refused(*drawing, "--guidance", 2)
    assert "another job" in refused("edit", "cups/1/final.png", "add a cat", "--out", "cups")
    assert "unknown settings" in refused(*drawing[:-1], "cups/1")
    run(*drawing)
    assert files() == drawn, "the same command again is fine"

    Image.open("cups/1/final.png").save("a.png")
    editing = ("edit", "a.png", "add a cat", "--out", "edits")
    run(*editing)
    other_editing = ("edit", "a.png", "add a cup", "--out", "edits")
    assert "instructions is ['add a cup'] but" in refused(*other_editing)
    Image.new("RGB", (48, 48), "red").save("a.png")
    assert "'a.png' is another picture than the one that 'edits'" in refused(*editing)
    assert "another job" in refused(*drawing[:-1], "edits")


def test_without_out_other_commands_get_folders_of_their_own(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for prompt, folder in (("a cup", "draw"), ("a heart", "draw-2"), ("a cup", "draw")):
        args = ("draw", prompt, "--n", 1, "--rounds", 1, "--model", model)
        assert run_here(monkeypatch, *args) == 0
        printed = capsys.readouterr().out
        assert f"written to out/{folder}:" in printed
        assert not re.search(" $", printed, re.MULTILINE), "no trailing blanks"
    assert sorted(path.name for path in Path("out").iterdir()) == ["draw", "draw-2"]


def broken_png(folder: Path) -> Path:
    whole = folder / "whole.png"
    Image.effect_noise((64, 64), 50).save(whole)
    cut = folder / "cut.png"
    cut.write_bytes(whole.read_bytes()[:900])
    return cut


BAD = {
    "unknown model": (["draw", "a cat", "--model", "nonesuch"], "model"),
    "model folder without a model": (["draw", "a cat", "--model", "{empty}"], "model"),
    "empty prompt": (["draw", "  ", "--model", "{model}"], "prompt"),
    "prompt too long": (["draw", "cat " * 999, "--model", "{model}"], "prompt"),
    "no rounds": (["draw", "a cat", "--model", "{model}", "--rounds", "0"], "rounds"),
    "n below one": (["draw", "a cat", "--model", "{model}", "--n", "0"], "n: 0"),
    "negative temperature": (
        ["draw", "a cat", "--model", "{model}", "--temperature", "-1"],
        "temperature",
    ),
    "unwritable folder": (["draw", "a cat", "--model", "{model}", "--out", "{file}/x"], "out"),
    "missing image": (["judge", "{tmp}/none.png", "a cat", "--model", "{model}"], "image"),
    "truncated image": (["judge", "{cut}", "a cat", "--model", "{model}"], "image"),
    "empty question": (["ask", "{whole}", " ", "--model", "{model}"], "question"),
    "missing config": (["train", "vision", "--config", "{tmp}/none.toml"], "config"),
    "unknown key": (["train", "vision", "--config", "{toml}", "--set", "depth=3"], "depth"),
    "wrong value": (["train", "vision", "--config", "{toml}", "--set", "layers=few"], "layers"),
    "JSON for a table": (
        ["train", "rl", "--config", "{toml}", "--set", 'prompt_options={{"two": 1}}'],
        "not TOML",
    ),
    "missing tokenizer": (
        ["train", "base", "--config", "{toml}", "--set", "tokenizer=none"],
        "tokenizer",
    ),
    "zero samples": (["eval", "mini-geneval", "--model", "{model}", "--samples", "0"], "samples"),
    "unknown split": (["eval", "mini-geneval", "--model", "{model}", "--split", "x"], "split"),
    "unknown start": (
        ["train", "sft", "--config", "{toml}", "--set", "model=nonesuch", "--set", "data={empty}"],
        "model",
    ),
    "no pictures": (
        ["train", "sft", "--config", "{toml}", "--set", "model={model}", "--set", "data={empty}"],
        "data",
    ),
    "no start": (["train", "rl", "--config", "{toml}"], "model"),
    "no prompts": (
        ["train", "rl", "--config", "{toml}", "--set", "model={model}", "--set", "prompts=no.txt"],
        "prompts",
    ),
    "no such device": (
        [
            "train",
            "rl",
            "--config",
            "{toml}",
            "--set",
            "model={model}",
            "--set",
            "runtime.device=cuda:99",
        ],
        "device",
    ),
    "missing setting": (["data", "build", "--config", "{toml}"], "generators is missing"),
    "unknown judge": (
        [
            "train",
            "rl",
            "--config",
            "{toml}",
            "--set",
            "model=m",
            "--set",
            "rewards=[{{kind='x'}}]",
        ],
        "config: rewards: 'x' is unknown",
    ),
    "wrong recovery": (
        [
            "train",
            "rl",
            "--config",
            "{toml}",
            "--set",
            "model=m",
            "--set",
            "auto_recovery={{lr_cut=3.0}}",
        ],
        "auto_recovery.lr_cut",
    ),
    "prompt and prompts": (
        ["draw", "a cat", "--prompts", "{toml}", "--model", "{model}"],
        "prompt",
    ),
    "no file of prompts": (["draw", "--prompts", "none.txt", "--model", "{model}"], "prompts"),
    "unknown benchmark": (["eval", "genevil", "--model", "{model}"], "'genevil' is unknown"),
    "not a pair": (["eval", "table", "out"], "NAME=FOLDER"),
    "no results": (["eval", "table", "a={empty}"], "result.json"),
    "nothing to show": (["show", "{empty}"], "folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence(case, model, tmp_path, monkeypatch, capsys):
    """In this process, for a new one takes seconds to import torch; ``test_truncated_checkpoint``
    starts one."""
    args, word = BAD[case]
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "c.toml").write_text("steps = 3\n")
    cut = broken_png(tmp_path)
    names = {
        "model": model,
        "tmp": tmp_path,
        "empty": tmp_path / "empty",
        "file": tmp_path / "file",
    }
    names |= {"toml": tmp_path / "c.toml", "cut": cut, "whole": tmp_path / "whole.png"}
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["secondlook", *[a.format(**names) for a in args]])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert ended.value.code == 2, printed.err
    assert len(lines) == 1 and lines[0].startswith("secondlook: ") and word in lines[0], printed.err
    assert printed.out == ""
    written = [
        p
        for p in sorted(tmp_path.rglob("*"))
        if p not in before and p.is_file() and p.name != ".lock"
    ]
    assert not written, "nothing half-written"


MISTYPED = {
    ("draw", "a cat", "--seed", "-1"): r"draw: .*--seed.*; see `secondlook draw --help`",
    ("draw", "a cat", "--n", "two"): r"draw: .*--n.*; see `secondlook draw --help`",
    ("draw", "a", "cat"): r"draw: .*extra argument.*cat.*quotes.*; see `secondlook draw --help`",
    ("draw", "a cat", "--n"): r".*--n.*argument; see `secondlook --help`",
    ("draw", "a cat", "--sed", "1"): r"draw: no such option.*--sed.*--seed.*--help`",
    ("draw", "a cat", "--plugin", "x"): r"draw: no such.*--plugin; it stands before the command.*",
    ("--seed", "1", "draw", "a cat"): r"no such option.*options stand after its name; see.*",
    ("drow", "a cat"): r"no such command 'drow'; did you mean 'draw'; see `secondlook --help`",
    ("train", "rl"): r"train rl: missing option '--config'; see `secondlook train rl --help`",
    ("judge",): r"judge: missing argument.*; see `secondlook judge --help`",
    ("data", "bild"): r"data: no such command 'bild'.*; see `secondlook data --help`",
    ("eval", "pope", "--nosuch"): r"eval pope: no such option.*; see `secondlook eval pope --help`",
}


@pytest.mark.parametrize("args", MISTYPED, ids=" ".join)
def test_a_mistyped_command_line_gets_one_sentence(args, monkeypatch, capsys):
    assert run_here(monkeypatch, *args) == 2
    printed = capsys.readouterr()
    [sentence] = printed.err.splitlines()
    assert re.fullmatch(f"secondlook: {MISTYPED[args]}", sentence) and printed.out == ""


@pytest.mark.parametrize("args", [(), ("train",)])
def test_without_a_command_the_help_is_printed(args, monkeypatch, capsys):
    assert run_here(monkeypatch, *args) == 2
    printed = capsys.readouterr()
    assert "Commands" in printed.out and printed.err == ""


def test_the_version_and_the_module(monkeypatch, capsys):
    assert run_here(monkeypatch, "--version") == 0
    printed = capsys.readouterr().out
    assert re.fullmatch(r"secondlook \S+ \(torch \S+, transformers \S+, numpy \S+\)\n", printed)
    monkeypatch.setattr(sys, "argv", ["", "--version"])
    with pytest.raises(SystemExit) as done:
        runpy.run_module("secondlook", run_name="__main__")
    assert done.value.code == 0 and capsys.readouterr().out == printed


@pytest.mark.parametrize(
    "args",
    [
        ("draw", "a cat", "--out"),
        ("train", "vision", "--config", "c.toml", "--out"),
        ("convert", "mini"),
    ],
)
def test_names_for_results_are_utf8(args, tmp_path, monkeypatch, capsys):
    """TensorBoard, safetensors and tokenizers open no other ones."""
    (tmp_path / "c.toml").write_text("steps = 1\n")
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, *args, os.fsdecode(b"caf\xe9/run")) == 2
    told = r"'caf\udce9/run' is not UTF-8 ('\udce9'); give another name"
    assert capsys.readouterr().err == f"secondlook: out: {told}\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.toml"]


@pytest.fixture
def interruptible():
    """As in a terminal: a shell lets what it starts in the background ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("draw", "a cat"), "interrupted"),
        (("show", "."), "interrupted"),
        (("train", "rl", "--config", "c.toml"), "interrupted; the same command resumes it"),
        (("data", "build", "--config", "c.toml"), "interrupted; the same command resumes it"),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("interruptible")
def test_an_interruption_is_told(args, told, number, code, tmp_path, monkeypatch, capsys):
    """typer itself ends without a word, and Python at TERM."""

    def pressed(*args, **settings):
        os.kill(os.getpid(), number)
        time.sleep(5)

    for name in ("cli.drawing.locate", "cli.show.stored_rows", "config.load"):
        module, _, function = f"secondlook.{name}".rpartition(".")
        monkeypatch.setattr(importlib.import_module(module), function, pressed)
    (tmp_path / "metrics.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert run_here(monkeypatch, *args) == code
    assert capsys.readouterr().err == f"secondlook: {told}\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_control_characters_are_printed_as_escapes(tmp_path, monkeypatch, capsys):
    """Rich drops some, expands tabs and passes on the others, which would steer the terminal."""
    word, shown = "a\tb\rc\x1b[31md\x9b", r"a\tb\rc\x1b[31md\x9b"
    common.say((word, "bold"), f" {word}")
    common.console.print(word)
    table = Table(word)
    table.add_row(word)
    common.console.print(table)
    printed = capsys.readouterr().out
    assert printed.count(shown) == 5 and not re.search("[\t\r\x1b\x9b]", printed)
    assert run_here(monkeypatch, "show", str(tmp_path / "a\tb\u2028c\x1b")) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and not re.search("[\t\x1b\u2028]", message)


def test_truncated_checkpoint(model, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    done = secondlook("draw", "a cat", "--model", copy, "--out", tmp_path / "o")
    assert (
        done.returncode == 2
        and "model" in done.stderr
        and len(done.stderr.strip().splitlines()) == 1
    )


def test_an_empty_result_is_not_shown(tmp_path, monkeypatch, capsys):
    (tmp_path / "result.json").write_text("{}")
    assert run_here(monkeypatch, "show", str(tmp_path)) == 2
    assert "result.json' is not what secondlook writes" in capsys.readouterr().err
