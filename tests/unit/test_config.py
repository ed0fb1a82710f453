"""Settings in sections: what a file and ``--set`` say, and the sentence for what they cannot."""

import ast
import itertools
from pathlib import Path

import pytest

from secondlook.config import changed, known_settings, load, parse
from secondlook.data.build_config import BuildConfig
from secondlook.errors import InputError
from secondlook.train.rl.config import RLConfig

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rl.toml"
    path.write_text(text)
    return path


def test_a_file_and_set_and_a_dictionary_say_the_same(tmp_path):
    path = written(tmp_path, 'model = "m"\n[rollout]\ngroup_size = 4\nrounds = 2\n')
    settings = ["rollout.group_size=6", "optim.lr=1e-4", "auto_recovery.window=3"]
    from_file = load(RLConfig, path, settings)
    assert from_file.rollout.group_size == 6 and from_file.rollout.rounds == 2
    assert from_file.auto_recovery is not None and from_file.auto_recovery.window == 3
    nested = {
        "model": "m",
        "rollout": {"group_size": 6, "rounds": 2},
        "optim": {"lr": 1e-4},
        "auto_recovery": {"window": 3},
    }
    assert parse(RLConfig, nested) == from_file
    flat = {"rollout.group_size": 6, "rollout.rounds": 2, "optim.lr": 1e-4}
    without_recovery = changed(RLConfig("m"), flat)
    assert changed(from_file, {"auto_recovery": None}) == without_recovery


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"group": 8}, "group is now rollout.group_size"),
        ({"lam": 1.0, "nurse": {}}, "lam is now ppo.gae_lambda, nurse is now auto_recovery"),
        ({"group_size": 8}, "group_size is not a setting .* did you mean rollout.group_size"),
        ({"rollout": {"groupsize": 8}}, "did you mean rollout.group_size"),
        ({"ppo": {"xyz": 8}}, "known are ppo.kl_in, ppo.gamma"),
        ({"reward_checks": {"xyz": 8}}, "known are reward_checks.min_separation, "),
        ({"sed": 8}, r"did you mean seed\?$"),
        ({"xyz": 8}, "known are model, .*rollout, advantage, loss"),
        ({"rollout": {"group_size": 1}}, "rollout.group_size = 1 is wrong: it must be at least 2"),
        ({"auto_recovery": {"drop": 1}}, "auto_recovery.drop = 1 is wrong: it must be below 1"),
        ({"loss": {"beta": True}}, "loss.beta = True is wrong: it must be a number"),
        ({"loss": {"beta": "0.1"}}, "loss.beta = '0.1' is wrong: it must be a number"),
        ({"loss": {"beta": float("nan")}}, "loss.beta = nan is wrong"),
        ({"advantage": {"credit": "turn"}}, "advantage.credit = 'turn' is wrong"),
        ({"rollout": 3}, "rollout = 3 is wrong: it must be a section or a table"),
        ({"ppoo": {"gamma": 1}}, "ppoo is not a setting of this job; did you mean ppo"),
        ({"steps": 1.5}, "steps = 1.5 is wrong: it must be a whole number"),
        ({"rewards": 5}, r"rewards = 5 is wrong: it must be a list in \[ \]"),
        ({"prompts": 3}, "prompts = 3 is wrong: it must be a text in quotes"),
        ({"prompt_options": 3}, "prompt_options = 3 is wrong: it must be a table"),
        (
            {"runtime": {"report_to": "wandb"}},
            r"report_to = 'wandb' is wrong: it must be a list; put",
        ),
        (
            {"runtime": {"report_to": ["wandbb"]}},
            "report_to.0 = 'wandbb' is wrong: it must be 'tensorboard', 'wandb' or 'trackio'",
        ),
        ({"seed": -1}, "seed = -1 is wrong: it must be at least 0"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(values, sentence):
    with pytest.raises(InputError, match=sentence):
        parse(RLConfig, {"model": "m"} | values)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (
            {"generators": [{"kind": "folder", "path": "x"}]},
            "path is not a setting of 'folder'; known are kind, model, images, batch, licence$",
        ),
        ({"generators": [{"kind": "folder", "modl": "x"}]}, "licence; did you mean model?"),
        ({"generators": [{"kind": "folder"}]}, "'folder' needs the folder's path there"),
        (
            {"rewards": [{"kind": "mini", "wieght": 2}]},
            "known are kind, weight; did you mean weight",
        ),
    ],
)
def test_keys_of_tables_in_a_list_are_named_with_the_known_ones(tables, sentence):
    fine = {"prompts": "mini", "generators": [{"kind": "folder", "model": "x"}]}
    with pytest.raises(InputError, match=sentence):
        parse(BuildConfig, fine | tables)


@pytest.mark.parametrize("setting", ["rollout.group_size", "=3", "rollout.=3", "model.name=x"])
def test_what_is_no_setting_is_told(tmp_path, setting):
    with pytest.raises(InputError, match="set: "):
        load(RLConfig, written(tmp_path, 'model = "m"\n'), [setting])


def test_every_renamed_setting_leads_to_one_that_is_there():
    known = known_settings(RLConfig)
    sections = {name.partition(".")[0] for name in known}
    for old, new in RLConfig.RENAMED.items():
        there = new in known or new in sections or new.partition(".")[0] == "prompt_options"
        assert there and old not in known, f"{old} -> {new}"


def test_each_setting_says_what_it_does():
    """A docstring stands under every field, but for those that are sections and say it in their
    class."""
    module = ast.parse((ROOT / "src/secondlook/train/rl/config.py").read_text())
    silent = []
    for section in (node for node in module.body if isinstance(node, ast.ClassDef)):
        for field, following in itertools.pairwise(section.body):
            if isinstance(field, ast.AnnAssign) and not isinstance(following, ast.Expr):
                silent.append(field.target.id)
    names_of_sections = {"rollout", "advantage", "loss", "ppo", "optim", "runtime", "reward_checks"}
    assert set(silent) == names_of_sections
