"""Judges' servers that are busy, away or restarted: what is waited for, and for how long; what is
asked again."""

import os
import signal
import threading
import time

import pytest

from judge_server import ITEMS, MANY, QUICK, SCORE, Server, judge, unfriendly
from secondlook.end_request import EndRequest, EndRequested
from secondlook.errors import InputError, Stopped
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question
from secondlook.llm.missing import why_missing
from secondlook.rewards.vlm import VLMReward, in_words


def test_waits_as_told(judge_url, monkeypatch, capsys):
    monkeypatch.setattr(unfriendly, "WAIT", 0.3)
    asked = judge(judge_url, "wait", attempts=1)
    assert [s.value for s in asked(ITEMS)] == [pytest.approx(SCORE)] * 2
    assert capsys.readouterr().err.count("too many requests; wait") == 1
    impatient = judge(judge_url, "wait", patience=0.001)
    monkeypatch.setattr(unfriendly, "WAIT", 3600)
    monkeypatch.setitem(unfriendly.MODELS, "wait", unfriendly.Patience())
    assert impatient(ITEMS) == [None, None] and "wait 3600 s" in why_missing(impatient)


def test_a_busy_server_that_names_no_time_is_waited_for(judge_url, add_model, capsys):
    """429 without Retry-After: no attempt is counted, and the patience is the limit."""
    calls = []

    def busy(body):
        calls.append(body)
        return (
            unfriendly.refusal(429, "too many requests", "rate_limit_exceeded")
            if len(calls) < 10
            else unfriendly.completion()
        )

    add_model("busy", busy)
    asked = judge(judge_url, "busy", attempts=1, reasons=False)
    assert all(asked(ITEMS)) and len(calls) >= 10
    assert (
        capsys.readouterr().err.count("too many requests); it is waited for up to 20 minutes") == 1
    )
    add_model("busy", lambda _: unfriendly.refusal(429, "too many requests"))
    impatient, began = judge(judge_url, "busy", patience=0.005, reasons=False), time.perf_counter()
    assert impatient(ITEMS) == [None, None] and 0.3 <= time.perf_counter() - began < 5
    assert "status 429: too many requests (patience is 0.005 minutes)" in why_missing(impatient)


def test_a_question_beyond_the_limit_is_not_waited_for(judge_url, add_model):
    """OpenAI's words for a request that is larger than what a minute allows."""
    add_model(
        "tpm",
        lambda _: unfriendly.refusal(
            429, "Request too large on tokens per min (TPM): Limit 30000, Requested 31000"
        ),
    )
    asked = judge(judge_url, "tpm", reasons=False)
    assert asked(ITEMS) == [None, None] and asked.asker.counts["attempts"] == 2


def test_pauses_double_up_to_a_minute(judge_url, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    asker = Asker(Endpoint(judge_url, "fine"))
    assert [asker.endpoint.retry_pause(n) for n in (0, 1, 2, 6, 7, 10**6)] == [
        0.5,
        1,
        2,
        32,
        60,
        60,
    ]
    assert Endpoint(judge_url, "fine", backoff=0.0).retry_pause(3) == pytest.approx(0.08)


def answering(server: Server) -> VLMReward:
    """A judge that has had an answer."""
    asked = judge(server.url, "fine", patience=0.2, reasons=False)
    assert asked([("first", ITEMS[0][1])])[0]
    return asked


def test_a_server_that_is_started_again_is_waited_for(capsys):
    with Server() as server:
        asked = answering(server)

    def again():
        time.sleep(0.6)
        with Server(server.server_port):
            done.wait(20)

    done = threading.Event()
    thread = threading.Thread(target=again)
    thread.start()
    try:
        assert all(asked(MANY)) and asked.asker.counts["missing"] == 0
    finally:
        done.set()
        thread.join()
    said = capsys.readouterr().err
    assert said.count("does not answer (connection refused); waiting up to 12 seconds") == 1
    assert said.count("answers again") == 1


@pytest.mark.parametrize("status", [502, 503, 504, 404])
def test_a_server_that_loads_again_is_waited_for(judge_url, add_model, status):
    until = []

    def loads(_):
        if until and time.time() < until[0]:
            return unfriendly.refusal(status, "loading")
        return unfriendly.completion()

    add_model("loads", loads)
    asked = judge(judge_url, "loads", attempts=1, reasons=False, patience=1.0)
    assert all(asked(ITEMS))
    until.append(time.time() + 0.4)
    assert all(asked(MANY[:10]))


def test_a_server_that_stays_away_stops_the_run(tmp_path):
    with Server() as server:
        endpoint = Endpoint(server.url, "fine", **(QUICK | {"patience": 0.004}))
        assert all(VLMReward(Asker(endpoint, Answers(tmp_path / "a.db")))(ITEMS))
    later = VLMReward(Asker(endpoint, Answers(tmp_path / "a.db")))
    assert all(later(ITEMS)), "stored"
    with pytest.raises(
        Stopped,
        match=r"has not answered for 0.24 seconds: connection refused.*same command goes on",
    ):
        later(MANY)  # a new process knows from the stored answers that this one has answered before


def test_a_server_that_is_started_with_the_job(judge_url, add_model):
    began = time.time()
    add_model(
        "late",
        lambda _: (
            unfriendly.completion()
            if time.time() > began + 0.4
            else unfriendly.refusal(503, "loading")
        ),
    )
    assert all(judge(judge_url, "late", start_patience=1.0, attempts=1)(ITEMS))
    began = time.time()
    with pytest.raises(InputError, match="does not answer: status 503: loading"):
        judge(judge_url, "late")(ITEMS)


def test_one_question_that_a_server_cannot_take_does_not_stop_the_others(judge_url, add_model):
    def poisoned(body):
        return (
            unfriendly.refusal(502, "it broke")
            if "poison" in str(body)
            else unfriendly.completion()
        )

    add_model("broken", poisoned)
    asked = judge(judge_url, "broken", reasons=False)
    assert [s is None for s in asked([*ITEMS, ("poison", ITEMS[0][1])])] == [False, False, True]
    assert "status 502: it broke" in why_missing(asked)


@pytest.mark.parametrize("why", ["429", "429 with a time", "away"])
def test_a_wait_ends_when_the_job_is_asked_to(judge_url, add_model, why):
    """Its question is not missing: a resumed run would learn from other scores."""
    after = {"Retry-After": "600"} if why == "429 with a time" else {}
    status = 503 if why == "away" else 429
    add_model("waits", lambda _: unfriendly.refusal(status, "later", **after))
    asked = judge(judge_url, "waits", reasons=False, start_patience=10.0)
    began = time.monotonic()
    with EndRequest(), pytest.raises(EndRequested, match="asked to end"):
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()
        asked(ITEMS)
    assert time.monotonic() - began < 10 and asked.asker.counts["missing"] == 0


def test_unreadable_answers_are_asked_for_again_where_they_are_sampled(judge_url, add_model):
    seen = []

    def varies(body):
        if "temperature" in body and body["model"] == "own temperature":
            return unfriendly.refusal(400, "Unsupported parameter: temperature", "x")
        seen.append(body)
        return unfriendly.completion("<think>so" if len(seen) % 2 else unfriendly.SENTENCE)

    for name in ("warm", "own temperature", "cold"):
        add_model(name, varies)
    cold = in_words("what?")
    warm = Question(cold.body | {"temperature": 0.7}, cold.read)
    for name, question, answer, calls in (
        ("warm", warm, unfriendly.SENTENCE, 2),
        ("own temperature", cold, unfriendly.SENTENCE, 2),
        ("cold", cold, None, 1),
    ):
        seen.clear()
        assert (
            Asker(Endpoint(judge_url, name, **QUICK))([question]) == [answer] and len(seen) == calls
        )


def test_a_dialect_is_learnt_once(judge_url, add_model):
    fields = ["max_tokens", "temperature", "chat_template_kwargs"]

    def strict(body):
        return next(
            (
                unfriendly.refusal(400, f"Unsupported parameter: {f}", "x")
                for f in fields
                if f in body
            ),
            unfriendly.completion(),
        )

    add_model("strict", strict)
    asked = judge(judge_url, "strict", reasons=False)
    assert all(asked(ITEMS))
    before = asked.asker.counts["attempts"], unfriendly.Handler.calls["strict"]
    assert all(asked(MANY[:5]))
    assert (
        unfriendly.Handler.calls["strict"] - before[1]
        == asked.asker.counts["attempts"] - before[0]
        == 5
    )
