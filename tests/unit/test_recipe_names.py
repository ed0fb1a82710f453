"""Recipes by their names: listed, found, copied."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from secondlook.cli import app
from secondlook.errors import InputError
from secondlook.io import read_text
from secondlook.recipes import FOLDER, copy_recipe, find_config, name_of, recipe_names, title_of


def test_names_are_those_of_the_files():
    names = recipe_names()
    assert {"1b/grpo", "7b/grpo", "7b/edit_sft", "mini/rl", "data"} <= set(names)
    assert len(names) == len(list(FOLDER.rglob("*.toml")))
    assert all(find_config(name) == FOLDER / f"{name}.toml" for name in names)
    assert name_of(find_config("7b/grpo.toml")) == "7b/grpo"
    assert name_of(Path("/elsewhere/mine.toml")) == "mine"


def test_a_file_goes_before_a_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    assert find_config("mini/rl") == FOLDER / "mini/rl.toml"
    (tmp_path / "mini" / "rl").write_text("seed = 1\n")
    assert find_config("mini/rl") == Path("mini/rl")


@pytest.mark.parametrize(("name", "nearest"), [("7b/grop", "7b/grpo"), ("../mini/rl", "mini/rl")])
def test_an_unknown_name_is_told_the_nearest(name, nearest):
    with pytest.raises(InputError, match=rf"config: '{re.escape(name)}' .* such as {nearest}$"):
        find_config(name)


def test_a_recipe_is_copied_once(tmp_path):
    target = copy_recipe("mini/rl", tmp_path)
    assert target == tmp_path / "rl.toml"
    assert read_text(target) == read_text(FOLDER / "mini/rl.toml")
    with pytest.raises(InputError, match="exists already"):
        copy_recipe("mini/rl", target)
    with pytest.raises(InputError, match="known are 1b/edit_grpo"):
        copy_recipe("mini/nothing", tmp_path)


def test_the_command_lists_every_recipe_with_what_it_is_for(tmp_path):
    result = CliRunner().invoke(app, ["recipes"])
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(title_of(name) for name in recipe_names())
    copied = CliRunner().invoke(app, ["recipes", "copy", "7b/grpo", str(tmp_path / "a.toml")])
    assert copied.exit_code == 0 and (tmp_path / "a.toml").is_file()


def test_commands_of_the_recipes_name_themselves():
    """The command in a recipe's head is of that recipe."""
    for name in recipe_names():
        for told in re.findall(r"--config (\S+)", read_text(FOLDER / f"{name}.toml")):
            assert told == name
