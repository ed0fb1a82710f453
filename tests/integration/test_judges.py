"""Judges: what is asked and read, a server that misbehaves in every way, and what is missing when
nothing helps."""

import os
import sqlite3
import time
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from misbehaving import FAULTS, UNREADABLE, Judge, truth
from secondlook.config import load
from secondlook.data.prompts import Line
from secondlook.errors import InputError
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.missing import why_missing
from secondlook.llm.replies import Unanswered
from secondlook.mini.verifier import Verifier
from secondlook.rewards.config import RewardConfig, make_reward
from secondlook.rewards.reward import Score, Weighted
from secondlook.rewards.self_judge import SelfJudge
from secondlook.rewards.vlm import VLMReward, p_yes, questions_of, yes_or_no
from secondlook.train.rl.config import RLConfig
from secondlook.train.rl.prompt_checks import check_lines
from secondlook.types import Prompt, Request, SamplingParams

PATIENT = {"timeout": 1.5, "attempts": 6, "backoff": 0.01, "concurrency": 64}
CALLS = int(os.environ.get("SECONDLOOK_JUDGE_CALLS", "400"))


class Received(Answers):
    """Counts how often each answer was received."""

    def __init__(self, path):
        super().__init__(path)
        self.counts = Counter()

    def put(self, key, value):
        self.counts[key] += 1
        super().put(key, value)


def picture(i: int = 0) -> Image.Image:
    return Image.new("RGB", (8, 8), (i % 256, i // 256, 0))


def test_nothing_is_lost_nor_counted_as_0_nor_asked_twice(tmp_path):
    items = [(f"number {i}", picture(i)) for i in range(CALLS)]
    items[CALLS // 2] = ("number 7 hopeless", picture(0))
    with Judge(hang=2.0) as server:
        # more attempts than faults: on a busy machine an answer may also come too late
        asker = Asker(
            Endpoint(server.url, "m", **(PATIENT | {"attempts": 9})),
            Received(tmp_path / "answers.db"),
        )
        judge = VLMReward(asker)
        half = judge(items[: CALLS // 2])
        scores = judge(items)
        assert scores[: CALLS // 2] == half
        assert [i for i, s in enumerate(scores) if s is None] == [CALLS // 2]
        for (prompt, _), score in zip(items, scores, strict=True):
            assert score is None or score.value == pytest.approx(truth(prompt), abs=1e-6)
        assert (
            set(asker.answers.counts.values()) == {1}
            and len(asker.answers.counts) == len(server.answered) == CALLS - 1
        )
        # what came too late is rightly asked for again
        too_late = asker.counts["too slow"] - server.met["hang"] - server.met["drip"]
        assert sum(server.answered.values()) - len(server.answered) <= max(0, too_late)
        assert asker.counts["missing"] == 1 and asker.counts["from cache"] == CALLS // 2
        assert set(server.met) == {None, *FAULTS}
        again = VLMReward(Asker(asker.endpoint, Answers(tmp_path / "answers.db")))
        before = sum(server.tried.values())
        assert again(items[: CALLS // 2]) == half and sum(server.tried.values()) == before


def test_an_unreadable_answer_is_not_asked_for_again():
    """At temperature 0 the same request has the same answer: it is missing after one attempt."""
    items = [(f"number {i}", picture(i)) for i in range(60)]
    with Judge(faults=UNREADABLE, share=0.3) as server:
        asker = Asker(Endpoint(server.url, "m", **PATIENT))
        scores = VLMReward(asker)(items)
        assert set(server.tried.values()) == {1} and asker.counts["attempts"] == len(items)
        lost = sum(server.met[fault] for fault in UNREADABLE)
        assert 0 < lost == asker.counts["missing"] == sum(s is None for s in scores) < len(items)


def test_questions_are_told_apart_by_all_they_depend_on(tmp_path):
    with Judge(share=0) as server:
        asker = Asker(Endpoint(server.url, "m"), Answers(tmp_path / "a.db"))
        same = VLMReward(asker)([("number 3", picture(1))] * 3)
        assert asker.counts["asked"] == 1 and same[0] == same[2]
        VLMReward(asker)([("number 3", picture(2)), ("number 4", picture(1))])
        VLMReward(Asker(Endpoint(server.url, "other"), asker.answers))([("number 3", picture(1))])
        assert len(server.answered) == 4
    assert sqlite3.connect(tmp_path / "a.db").execute(
        "select count(*) from answers"
    ).fetchone() == (4,)


def test_long_prompts_are_split_and_reasons_asked(tmp_path):
    long = "number 50 " + "and more " * 20
    with Judge(faults=("500",), share=0.3) as server:
        asker = Asker(Endpoint(server.url, "m", **PATIENT), Answers())
        judge = VLMReward(asker, decomposer=asker, reasons=True)
        short, split, lost = judge(
            [("number 80", picture()), (long, picture()), (long + "hopeless", picture())]
        )
    assert short == Score(pytest.approx(0.8), True, "a sentence")
    assert split == Score(pytest.approx((0.5 + 1.0) / 2), True, "a sentence")
    assert lost is None


def test_edits_are_asked_two_questions():
    with Judge(share=0) as server:
        judge = VLMReward(Asker(Endpoint(server.url, "m")))
        [score] = judge.edits([("make it number 30", picture(1), picture(2))])
        assert (
            score.edit == (pytest.approx(0.3), pytest.approx(0.3))
            and score.value == pytest.approx(0.3)
            and not score.correct
        )
        assert len(server.answered) == 2


def test_a_dead_or_foreign_server(monkeypatch):
    began = time.perf_counter()
    dead = Asker(
        Endpoint("http://127.0.0.1:9/v1", "m", attempts=2, backoff=0.01, start_patience=0.01)
    )
    with pytest.raises(InputError, match=r"127.0.0.1:9/v1 does not answer: connection refused"):
        VLMReward(dead)([("number 1", picture())])
    assert time.perf_counter() - began < 5
    with Judge(share=0) as server, pytest.raises(InputError, match="404 for model 'unknown'"):
        VLMReward(Asker(Endpoint(server.url, "unknown")))(
            [(f"number {i}", picture()) for i in range(9)]
        )
    with pytest.raises(InputError, match="url is 'localhost'"):
        Endpoint("localhost", "m")


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"logprobs": None},
        {"logprobs": {"content": []}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": "yes"}]}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": "x"}]}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": 800}]}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": "yes", "logprob": float("nan")}]}]}},
        {"logprobs": {"content": [{"top_logprobs": [{"token": "Yesterday", "logprob": 0}]}]}},
    ],
)
def test_answers_without_a_verdict_are_no_answers(choice):
    with pytest.raises(Unanswered):
        p_yes(choice)


@pytest.mark.parametrize("text", ["", "none", "[1, 2]", "[]", '{"a": 1}', '["a"', None])
def test_lists_that_are_none(text):
    with pytest.raises(Unanswered):
        questions_of({"message": {"content": text}})


def test_weighted_sums_miss_what_a_part_misses():
    one, two = (
        (lambda items: [Score(0.2, False, "a"), None]),
        (lambda items: [Score(1.0, True, "b"), Score(1.0, True, "")]),
    )
    [both, missing] = Weighted([(3.0, one), (1.0, two)])([("p", picture()), ("q", picture())])
    assert both == Score(pytest.approx(0.4), False, "a") and missing is None
    with pytest.raises(InputError, match="weight"):
        Weighted([(0.0, one)])


def test_judges_of_a_config(engine, tmp_path):
    engine.janus.save(tmp_path / "model")
    image = engine.pictures([tuple(range(engine.janus.n_codes))])[0]
    toml = tmp_path / "rl.toml"
    with Judge(share=0) as server:
        toml.write_text(
            f'model = "m"\n[[rewards]]\nkind = "vlm"\nurl = "{server.url}"\nmodel = '
            '"v"\nweight = 3.0\n'
            f'[[rewards]]\nkind = "self_judge"\nmodel = "{tmp_path / "model"}"\n'
        )
        judge = make_reward(load(RLConfig, toml, []).rewards)
        [score] = judge([("number 40", image)])
    [alone] = judge.parts[1][1]([("number 40", image)])
    request = Request("judge", engine.template.judge("number 40", [image], []), 0)
    sampling_params = SamplingParams(
        "text", temperature=0.0, first=(engine.template.yes, engine.template.no)
    )
    assert alone.value == pytest.approx(engine.write([request], sampling_params)[0].p_yes, abs=1e-6)
    assert score.value == pytest.approx(0.75 * 0.4 + 0.25 * alone.value)
    assert isinstance(make_reward([], prompts="mini"), Verifier) and not judge.parts[0][1].reasons
    served = RewardConfig("vlm", settings={"url": "http://u", "model": "v"})
    assert make_reward([served], reasons=True).reasons
    with pytest.raises(InputError, match="rewards is empty; give at least one"):
        make_reward([], prompts="prompts.txt")
    for bad, word in (
        ('kind = "vlm"', "url is empty"),
        ('kind = "oracle"', "rewards: 'oracle' is unknown; known are local, mini, self_judge, vlm"),
        ('kind = "mini"\nweigth = 2', "rewards: weigth is not a setting of 'mini'"),
        ('kind = "vlm"\nurl = 3', "rewards: url = 3 is wrong"),
    ):
        toml.write_text(f'model = "m"\n[[rewards]]\n{bad}\n')
        with pytest.raises(InputError, match=word):
            load(RLConfig, toml, [])


def test_what_is_sent():
    question = yes_or_no("really?", picture())
    [message] = question.body["messages"]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert message["content"][1] == {"type": "text", "text": "really?"}
    assert (
        question.body["max_tokens"] == 1
        and question.body["logprobs"]
        and question.body["top_logprobs"] == 20
    )


def test_a_checkpoint_judges_in_half_precision_on_a_gpu(monkeypatch):
    from secondlook.models.janus.model import Janus

    asked = []

    def load(path, device, dtype):
        asked.append((device, dtype))
        raise InputError("not loaded")

    monkeypatch.setattr(Janus, "load", load)
    for device in ("cpu", "cuda", "cuda:1"):
        with pytest.raises(InputError, match="not loaded"):
            make_reward([RewardConfig("self_judge", settings={"model": "m"})], device)
    assert asked == [("cpu", torch.float32), ("cuda", torch.bfloat16), ("cuda:1", torch.bfloat16)]


def test_a_checkpoints_probability_that_is_none_is_missing(engine, monkeypatch):
    judge = SelfJudge(engine)
    turns = [SimpleNamespace(p_yes=p, tokens=(engine.template.yes,)) for p in (float("nan"), 0.5)]
    monkeypatch.setattr(engine, "write", lambda *_: turns)
    image = engine.pictures([tuple(range(engine.janus.n_codes))])[0]
    assert [s is None for s in judge([("a", image), ("b", image)])] == [True, False]
    assert why_missing(judge).endswith("P(yes) is nan")


@pytest.mark.parametrize("text", ["", "word " * 600])
def test_a_checkpoint_says_which_prompts_it_cannot_read(engine, text):
    judge = SelfJudge(engine)
    for source in (None, picture()):
        assert judge.why_not(Prompt("a red star", source)) == ""
        assert judge.why_not(Prompt(text, source)).startswith(("prompt: it ", "instruction: it "))
    line = Line(text, None, "line 3 of a.txt")
    with pytest.raises(InputError, match=r"judge: prompt: it .*, in line 3 of a.txt"):
        check_lines(SimpleNamespace(draw=lambda _: ()), judge, [line])
