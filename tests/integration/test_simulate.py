"""The simulation from its command line: which parts are run once, and what it ends with."""

import json

import pytest

from secondlook.recipes import FOLDER as RECIPES

simulate = pytest.importorskip("simulate")


def test_what_does_not_depend_on_the_size_is_run_once():
    tasks = [
        simulate.Task(
            RECIPES / f"{stem}.toml",
            part,
            simulate.load(RECIPES / f"{stem}.toml")[1],
            8,
            80.0,
            (0.4,),
        )
        for stem in ("1b/grpo", "7b/grpo", "7b/grpo_lora")
        for part in ("order", "update")
    ]
    keys = [task.key for task in tasks]
    assert len(set(keys)) == 5 and keys[0] == keys[2] != keys[4]


@pytest.mark.slow
def test_a_recipe_that_does_not_fit_ends_with_1(monkeypatch, tmp_path, capsys):
    command = [
        "simulate.py",
        "1b/edit_grpo",
        "--part",
        "rollout",
        "--json",
        str(tmp_path / "s.json"),
    ]
    monkeypatch.setattr("sys.argv", [*command, "--memory", "20", "--jobs", "1"])
    assert simulate.main() == 1 and "DOES NOT FIT" in capsys.readouterr().out
    [result] = json.loads((tmp_path / "s.json").read_text())["results"]
    assert (
        result["recipe"] == "1b/edit_grpo"
        and abs(result["plan"] / max(result["peaks"].values()) - 1) <= 0.1
    )
