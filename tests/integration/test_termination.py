"""Runs that end before their last step: asked to, by their own rules, or on input that they cannot
use."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from secondlook.cli import main
from secondlook.end_request import EndRequest, EndRequested, end_requested
from secondlook.errors import InputError, Stopped
from secondlook.train.distributed import ProcessGroup
from secondlook.train.job_config import BasicRuntimeConfig
from secondlook.train.state_files import saved_steps
from secondlook.train.termination import NOTE, SAVED, Saved, noted
from secondlook.train.trainer import Trainer

SCRIPTS = Path(__file__).parents[2] / "scripts"


@dataclass
class Toy:
    runtime: BasicRuntimeConfig


class Weight:
    def __init__(self):
        self.value = torch.zeros(1)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def toy(
    out: Path, number: signal.Signals | None = None, ranks: ProcessGroup = ProcessGroup()
) -> float:
    """A run of twelve steps; amid the eighth it gets a signal."""
    weight = Weight()
    config = Toy(BasicRuntimeConfig(log_every=1, save_every=5))
    trainer = Trainer(out, config, {"weight": weight}, ranks)
    for step in trainer.steps(12):
        if step == 7 and number:
            os.kill(os.getpid(), number)
        weight.value = weight.value + 0.1 * (step + 1)
        trainer.finish_step({"weight": float(weight.value)})
    return float(weight.value)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_asked_to_end_it_saves_after_the_step_under_way(tmp_path, number):
    before = signal.getsignal(number)
    with pytest.raises(Saved, match="state of step 8"):
        toy(tmp_path, number)
    assert saved_steps(tmp_path)[-1] == 8 and signal.getsignal(number) is before
    assert toy(tmp_path) == pytest.approx(7.8), "it goes on to the end"
    rows = [
        json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows == list(range(1, 13))


def test_who_is_asked_to_end_says_so_once(tmp_path, capfd):
    with EndRequest():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert end_requested()
    assert not end_requested()
    line = "secondlook: asked to end; saves after this step, a second TERM ends at once\n"
    assert capfd.readouterr().err == line
    with EndRequest(loading=True):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert capfd.readouterr().err == "secondlook: asked to end; saves after the first step\n"


def test_a_wait_that_is_ended_gives_its_step_up(tmp_path):
    """The state is that of the finished steps: the resumed run does the step again."""

    def run(ended_at: int | None) -> float:
        weight = Weight()
        config = Toy(BasicRuntimeConfig(log_every=1, save_every=100))
        trainer = Trainer(tmp_path, config, {"weight": weight})
        for step in trainer.steps(5):
            if step == ended_at:
                trainer.leave_step()
            weight.value = weight.value + 0.1 * (step + 1)
            trainer.finish_step({"weight": float(weight.value)})
        return float(weight.value)

    with pytest.raises(Saved, match="amid step 1, which is given up; no step is done"):
        run(0)
    assert not saved_steps(tmp_path)
    with pytest.raises(Saved, match=r"amid step 4.*has the state of step 3"):
        run(3)
    assert saved_steps(tmp_path) == [3]
    with pytest.raises(Saved, match=r"amid step 4.*has the state of step 3"):
        run(3)  # nothing has been done since
    assert run(None) == pytest.approx(1.5)


def test_a_job_that_is_asked_to_end_before_its_first_step_ends_as_one_that_is_saved(tmp_path):
    with pytest.raises(SystemExit) as ended, noted(tmp_path):
        raise EndRequested("asked to end while it waited")
    assert ended.value.code == SAVED and not list(tmp_path.iterdir())


def test_ranks_of_which_another_one_was_asked_leave_together(tmp_path):
    class First(ProcessGroup):
        """The first of two, the second of which is asked to end from the start."""

        def all_gather(self, value):
            return [value, True] if isinstance(value, bool) else [value]

        def barrier(self):
            pass

    with pytest.raises(Saved, match="state of step 1,"):
        toy(tmp_path, ranks=First())


def test_under_torchrun_a_rank_that_is_left_over_dies_at_once(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    with EndRequest() as request:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.came


@pytest.mark.parametrize(
    ("error", "code"), [(Stopped("the judge is dead"), 1), (InputError("prompt: too long"), 2)]
)
def test_ranks_that_are_started_again_end_at_once_with_the_same_sentence(
    tmp_path, monkeypatch, capsys, error, code
):
    def attempt(run: str, count: int) -> int:
        """How often the job was begun, 0 or 1."""
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        begun = 0
        with pytest.raises(type(error), match=str(error)), noted(tmp_path):
            begun = 1
            raise error
        return begun

    assert attempt("a", 0) == 1 and json.loads((tmp_path / NOTE).read_text())["code"] == code
    assert [attempt("a", n) for n in (1, 2, 3)] == [0, 0, 0]
    assert attempt("b", 1) == 1, "another launcher's note is not about these ranks"
    capsys.readouterr()
    assert attempt("b", 0) == 1 and "stopped.json is removed" in capsys.readouterr().err, (
        "a new start begins anew"
    )
    with noted(tmp_path):
        pass
    assert not (tmp_path / NOTE).exists() and "removed" in capsys.readouterr().err


def test_what_ended_by_itself_is_not_started_again(tmp_path, monkeypatch, capsys):
    """Whatever the command: a config that is wrong too, which is read before there is a folder."""
    monkeypatch.setenv("SECONDLOOK_CODE", str(tmp_path / "code"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setattr(
        sys, "argv", ["secondlook", "train", "rl", "--config", str(tmp_path / "none.toml")]
    )
    for count in (0, 1):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(count))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2 and ("is not a file" in capsys.readouterr().err) == (
            count == 0
        )


def test_a_note_of_another_machines_restart_counts_too(tmp_path, monkeypatch):
    """Of several machines each counts its own restarts: a note younger than the launcher's start is
    of this start."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("SECONDLOOK_CODE", str(tmp_path / "code"))
    (tmp_path / "code").touch()
    note = {"sentence": "the judge is dead", "code": 1, "run": "a"}
    (tmp_path / NOTE).write_text(json.dumps(note | {"time": time.time() + 5}))
    with pytest.raises(Stopped, match="the judge is dead"), noted(tmp_path):
        raise AssertionError("it is not begun")
    (tmp_path / NOTE).write_text(json.dumps(note | {"time": time.time() - 3600}))
    with noted(tmp_path):
        pass
    assert not (tmp_path / NOTE).exists()


def test_a_signal_while_loading_is_known_to_the_run(tmp_path):
    with pytest.raises(SystemExit) as ended, noted(tmp_path):
        os.kill(os.getpid(), signal.SIGUSR1)
        toy(tmp_path)
    assert ended.value.code == SAVED and saved_steps(tmp_path) == [1]


def test_a_state_that_was_being_written_is_gone_with_the_next_start(tmp_path):
    (tmp_path / "states" / "step-00000037.tmp").mkdir(parents=True)
    toy(tmp_path)
    assert not list((tmp_path / "states").glob("*.tmp"))


def test_without_a_launcher_nothing_is_noted(tmp_path):
    with pytest.raises(Stopped), noted(tmp_path):
        raise Stopped("the judge is dead")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SystemExit) as ended, noted(tmp_path):
        raise Saved("it is saved")
    assert ended.value.code == SAVED


def test_a_launcher_that_says_too_little_is_named(monkeypatch):
    for known, word in (
        ({}, "WORLD_SIZE is missing"),
        ({"WORLD_SIZE": "1"}, "LOCAL_RANK is missing"),
    ):
        for name, value in ({"RANK": "0"} | known).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=word):
            ProcessGroup.join("cpu")
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(InputError, match="LOCAL_RANK is 'first'"):
        ProcessGroup.join("cpu")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="MASTER_ADDR"):
        ProcessGroup.join("cpu")


FAKES = {
    "srun": 'shift; echo $$ > "$FAKE/step"; exec "$@"',
    "scancel": 'kill -USR1 "$(cat "$FAKE/step")"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" > "$FAKE/requeued"; fi',
    "scripts/ranks.sh": """
trap "sleep 0.2; exit $CODE" USR1
echo "$JOB $@" > "$FAKE/begun"
for i in $(seq 100); do sleep 0.1; done
""",
}


@pytest.mark.parametrize(("code", "again"), [(75, True), (0, False), (1, False)])
def test_slurms_script_saves_before_it_goes_back_into_the_queue(tmp_path, code, again):
    """With slurm's commands in small."""
    (tmp_path / "scripts").mkdir()
    for name, text in FAKES.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + text + "\n")
        (tmp_path / name).chmod(0o755)
    told = {
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "n",
        "SLURM_NNODES": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    told |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE": str(tmp_path), "CODE": str(code)}
    script = subprocess.Popen([str(SCRIPTS / "slurm.sh"), "train", "rl"], env=os.environ | told)
    wait_for(lambda: (tmp_path / "begun").exists(), script)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(timeout=20) == code
    assert (tmp_path / "begun").read_text() == "17-0 train rl\n"
    assert (tmp_path / "requeued").exists() == again


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "it ended, or nothing came"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_under_their_launcher(tmp_path):
    """scripts/ranks.sh: asked to end, both save and leave, do not start again, and 75 comes out."""
    config, out = tmp_path / "config.toml", tmp_path / "out"
    config.write_text(
        """
model = "mini-base"
steps = 1000
[rollout]
prompts_per_step = 2
group_size = 2
rounds = 1
[optim]
epochs = 1
minibatches = 1
[runtime]
device = "cpu"
threads = 1
log_every = 1
save_every = 1000
[reward_checks]
max_flat_steps = 9999
"""
    )
    around = os.environ | {
        "RANKS": "2",
        "RESTARTS": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    command = [str(SCRIPTS / "ranks.sh"), "train", "rl", "--config", str(config), "--out", str(out)]
    asked = subprocess.Popen(
        command, env=around, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: (out / "metrics.jsonl").exists(), asked)
    asked.send_signal(signal.SIGTERM)
    said = asked.communicate(timeout=120)[1]
    [step] = saved_steps(out)
    assert (
        asked.returncode == SAVED and f"state of step {step}," in said and not (out / NOTE).exists()
    ), said[-2000:]
