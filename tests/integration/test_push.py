"""What is pushed to the hub: files, the model card, and what is refused."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from secondlook import hub
from secondlook.card import lineage, public_settings, score_rows
from secondlook.cli import app
from secondlook.errors import InputError
from secondlook.models.shipped import locate

CHECKPOINT_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
SFT = {"model": "deepseek-ai/Janus-Pro-7B", "data": "/home/somebody/pictures/out", "steps": 450}
RL = {
    "algorithm": "grpo",
    "prompts": "/home/somebody/lists/prompts.jsonl",
    "mix": [0.2, 0.8],
    "rewards": [{"kind": "vlm", "url": "http://10.1.2.3:8000/v1", "model": "judge-26b"}],
    "rollout": {"group_size": 7},
}
RESULT = {
    "title": "GenEval",
    "overall": {
        "first": {"mean": 0.81234, "low": 0.79, "high": 0.83},
        "gain": {"mean": 0.0123, "low": -0.001, "high": 0.025},
        "undefined": {"mean": float("nan"), "low": float("nan"), "high": float("nan")},
        "images": 2212,
    },
}


@pytest.fixture
def run(tmp_path) -> Path:
    """An RL run that began with an SFT run of Janus-Pro-7B, and a result of GenEval."""
    for name, config in (("sft", SFT), ("rl", RL | {"model": str(tmp_path / "sft" / "final")})):
        final = tmp_path / name / "final"
        final.mkdir(parents=True)
        (final / "config.json").write_text(json.dumps({"model_type": "janus"}))
        (final / "model.safetensors").write_bytes(b"weights of " + name.encode())
        (final / "optimizer.pt").write_bytes(b"not for others")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "geneval").mkdir()
    (tmp_path / "geneval" / "result.json").write_text(json.dumps(RESULT))
    return tmp_path / "rl"


def test_the_card_says_what_the_run_says(run, tmp_path):
    hub.push(run, "me/model", [tmp_path / "geneval"], dry_run=tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights of rl"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.base_model == "deepseek-ai/Janus-Pro-7B" and card.data.license == "mit"
    assert card.data.library_name == "secondlook"
    for said in (
        "1. Supervised fine-tuning; data: pictures/out.",
        "2. Reinforcement learning (GRPO); prompts: lists/prompts.jsonl.",
        "| `rollout.group_size` | `7` |",
        "| `mix` | `0.2, 0.8` |",
        "| `rewards.0.model` | `judge-26b` |",
        "| GenEval | first | 0.812 | 0.790 to 0.830 |",
        "| GenEval | gain | 0.012 | -0.001 to 0.025 |",
        'secondlook.load("me/model")',
    ):
        assert said in card.text, said
    for private in ("somebody", "10.1.2.3", "undefined", str(tmp_path)):
        assert private not in card.content, private


def test_lineage_ends_where_a_run_is_unknown(run, tmp_path):
    stages, base = lineage(run / "final")
    assert len(stages) == 2 and base == "deepseek-ai/Janus-Pro-7B"
    (tmp_path / "sft" / "config.json").write_text(json.dumps(SFT | {"model": "out/gone/final"}))
    assert lineage(run / "final")[1] == ""
    assert lineage(Path(locate("mini"))) == ([], "")


def test_scores_without_an_overall_number(tmp_path):
    path = tmp_path / "result.json"
    inner = {"balanced_accuracy": {"mean": 0.5, "low": 0.25, "high": 0.75}}
    path.write_text(json.dumps({"is_there": inner, "settings": {"benchmark": "mini-questions"}}))
    [row] = score_rows(path)
    assert (row.benchmark, row.what, row.mean) == (
        "mini-questions",
        "is there balanced accuracy",
        0.5,
    )


def test_settings_of_the_machine_are_left_out():
    settings = {"url": "x", "answers": "a.sqlite", "judge_url": "y", "api_key": "z", "steps": 3}
    assert list(public_settings(settings)) == [("steps", "3")]


def test_a_shipped_model_has_a_card_of_its_own(tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["push", "mini", "me/mini", "--dry-run", str(out)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == CHECKPOINT_FILES | {"README.md"}
    own = Path(locate("mini")) / "README.md"
    assert (out / "README.md").read_text() == own.read_text()


def test_results_and_a_licence_are_added_to_a_card_that_is_there(run, tmp_path):
    out = tmp_path / "out"
    hub.push("mini", "me/mini", [tmp_path / "geneval"], dry_run=out)
    own_text = (Path(locate("mini")) / "README.md").read_text()
    card_text = (out / "README.md").read_text()
    assert card_text.startswith(own_text.rstrip())
    assert "| GenEval | first | 0.812 | 0.790 to 0.830 |" in card_text.removeprefix(own_text)
    hub.push("mini", "me/mini", license_id="mit", dry_run=tmp_path / "other")
    card = ModelCard.load(tmp_path / "other" / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "mini-base"
    assert "## What it knows" in card.text


class FakeApi:
    """Notes what it is told; the repository is "full/of-others" where it refuses."""

    told: list = []  # noqa: RUF012

    def create_repo(self, repo_id, private, exist_ok):
        assert exist_ok
        self.told.append((repo_id, private))
        return f"https://huggingface.co/{repo_id}"

    def create_commit(self, repo_id, operations, commit_message):
        if repo_id == "full/of-others":
            raise OSError("403 Forbidden:\n you are not among them")
        self.told.append({operation.path_in_repo: operation for operation in operations})


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeApi)
    monkeypatch.setattr(FakeApi, "told", [])
    return FakeApi


def test_the_commit_has_what_the_dry_run_has(run, tmp_path, api):
    hub.push(run, "me/model", [tmp_path / "geneval"], dry_run=tmp_path / "out")
    assert not api.told
    address = hub.push(run, "me/model", [tmp_path / "geneval"], private=True)
    assert address == "https://huggingface.co/me/model"
    created, commit = api.told
    assert created == ("me/model", True)
    assert commit.keys() == {path.name for path in (tmp_path / "out").iterdir()}
    for name, operation in commit.items():
        with operation.as_file() as file:
            assert file.read() == (tmp_path / "out" / name).read_bytes()


def test_a_model_in_memory_is_saved_for_it(tmp_path, api):
    from secondlook.api import load

    load("mini-base", device="cpu").push_to_hub("me/model", license_id="apache-2.0")
    assert api.told[1].keys() == CHECKPOINT_FILES | {"README.md"}


def test_a_trained_models_card_is_of_its_run(run, tmp_path, api):
    class Trained:
        name = str(run / "final")

        def save(self, folder):
            return shutil.copytree(run / "final", folder)

    hub.push(Trained(), "me/model")
    hub.push(run, "me/model")
    cards = [commit["README.md"].path_or_fileobj for commit in api.told[1::2]]
    assert len(cards) == 2 and cards[0] == cards[1] and b"rollout.group_size" in cards[0]


def test_what_the_hub_refuses_is_one_sentence(run, api):
    with pytest.raises(InputError, match=r"'full/of-others' .* 403 Forbidden: you are not among"):
        hub.push(run, "full/of-others")


def test_what_is_no_checkpoint_or_no_name_is_refused(run, tmp_path, api):
    for repo_id in ("model", "a/b/c", "me/", "me/.hidden", "me/two words"):
        with pytest.raises(InputError, match="owner/name"):
            hub.push(run, repo_id)
    with pytest.raises(InputError, match="is not a checkpoint"):
        hub.push(tmp_path / "geneval", "me/model")
    (run / "final" / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights"):
        hub.push(run, "me/model")
    with pytest.raises(InputError, match="neither shipped"):
        hub.push(tmp_path / "nowhere", "me/model")
    assert not api.told


def test_a_dry_run_writes_over_nothing(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"dry-run: .* is not an empty folder"):
        hub.push(run, "me/model", dry_run=tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"
