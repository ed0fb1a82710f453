"""Training from Python: settings as the TOML files have them, a reward as any callable."""

import json

import pytest

import secondlook
from secondlook.api import Model
from secondlook.errors import InputError

RL = {
    "model": "mini-base",
    "prompts": "mini",
    "steps": 1,
    "rollout": {"prompts_per_step": 1, "group_size": 2, "rounds": 1},
    "optim": {"epochs": 1, "minibatches": 1},
    "runtime": {"device": "cpu", "threads": 1, "save_every": 1, "log_every": 1},
}


def test_rl_with_a_function_as_reward(tmp_path):
    seen = []

    def redness(prompt: str, image) -> float:
        seen.append(prompt)
        red, green, _ = image.convert("RGB").resize((1, 1)).getpixel((0, 0))
        return 0.5 + (red - green) / 510

    model = secondlook.train_rl(
        RL, tmp_path / "run", reward=redness, rollout={"prompts_per_step": 2}, seed=3
    )
    assert isinstance(model, Model) and model.name == str(tmp_path / "run" / "final")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["seed"], config["rollout"]["prompts_per_step"]) == (3, 2)
    assert config["rollout"]["group_size"] == 2, "a section's other settings stay"
    assert len(seen) >= 4 and all(isinstance(prompt, str) for prompt in seen)


def test_settings_may_be_a_file_and_keywords(tmp_path):
    path = tmp_path / "rl.toml"
    path.write_text('model = "nonesuch"\n[rollout]\nrounds = 1\n')
    with pytest.raises(secondlook.InputError, match="model: 'nonesuch'"):
        secondlook.train_rl(path, tmp_path / "run", steps=1)
    with pytest.raises(secondlook.InputError, match=r"rollout\.roundz is not a setting"):
        secondlook.train_rl(path, tmp_path / "run", rollout={"roundz": 1})
    with pytest.raises(secondlook.InputError, match="model is missing from the settings"):
        secondlook.train_sft({"data": "none"}, tmp_path / "run")
    with pytest.raises(secondlook.InputError, match=r"config: .*none.toml"):
        secondlook.train_sft(tmp_path / "none.toml", tmp_path / "run")
    with pytest.raises(secondlook.InputError, match="rewards: 'nonesuch' is unknown"):
        secondlook.train_rl(RL, tmp_path / "run", reward="nonesuch")
    with pytest.raises(secondlook.InputError, match="config: 3 is no path; give a text or a Path"):
        secondlook.train_rl(3, tmp_path / "run")
    with pytest.raises(secondlook.InputError, match="out: None is no path"):
        secondlook.train_sft({"data": "none"}, None)


def test_a_reward_of_one_parameter_gets_a_list(tmp_path, capfd):
    """And without sanity pairs the reward is not checked before, which one plain line says."""
    words = "reward: .* was given a list of .* and returned 1; it must return"
    with pytest.raises(secondlook.InputError, match=words):
        secondlook.train_rl(RL, tmp_path / "run", reward=lambda pairs: 1, sanity_pairs="")
    [line] = capfd.readouterr().err.splitlines()
    assert line == (
        "secondlook: config: there are no sanity_pairs: the reward is not checked before the run"
    )


def test_sft_on_own_pictures(tmp_path):
    model = secondlook.load("mini", device="cpu")
    rows = []
    for number, name in enumerate(("star", "cat")):
        pictures = []
        for k, episode in enumerate(model.draw(f"a photo of a red {name}", n=2, rounds=1)):
            path = tmp_path / f"{number}-{k}.png"
            episode.image.save(path)
            scored = {"prob": 0.95, "state": True} if k == 0 else {"prob": 0.1, "state": False}
            pictures.append({"img_path": path.name, "reason": f"there is a {name}."} | scored)
        row = {"promptid": number, "prompt": f"a photo of a red {name}", "data": pictures}
        rows.append(json.dumps(row) + "\n")
    data = tmp_path / "pictures.jsonl"
    data.write_text("".join(rows))
    trained = secondlook.train_sft(
        {"model": "mini-base", "data": str(data)},
        tmp_path / "run",
        steps=1,
        batch_size=6,
        runtime={"device": "cpu", "threads": 1},
    )
    assert trained.draw("a photo of a red star", rounds=1).image.size == (48, 48)


def test_a_refused_job_leaves_nothing_behind(tmp_path):
    settings = {"model": "mini-base", "runtime": {"device": "cpu"}}
    for train, wrong in (
        (secondlook.train_rl, {"prompts": str(tmp_path / "none.txt")}),
        (secondlook.train_rl, {"reward": 5}),
        (secondlook.train_sft, {"data": str(tmp_path / "none")}),
    ):
        with pytest.raises(InputError):
            train(settings, out=tmp_path / "out", **wrong)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match=r"none\.txt"):
        secondlook.train_rl(settings, out=tmp_path / "out", prompts=str(tmp_path / "none.txt"))
    assert (tmp_path / "out" / "mine").exists()
