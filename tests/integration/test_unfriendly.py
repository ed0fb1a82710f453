"""Judges' servers as people meet them: what is scored, what is missing and why, what stops a job,
what is waited for."""

import asyncio
import gzip
import importlib.util
import json
import os
import signal
import sqlite3
import threading
import time
from email.utils import formatdate
from http.server import ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from PIL import Image

from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import row_of
from secondlook.data.generate import _judged, build
from secondlook.data.generators import GeneratorConfig, Picture, Shard
from secondlook.end_request import EndRequest, EndRequested
from secondlook.errors import InputError, Stopped
from secondlook.evals import records, runner
from secondlook.evals.benchmark import EvalSession, Row
from secondlook.evals.dsg import DSG
from secondlook.evals.gedit import GEdit
from secondlook.evals.scorers.vqa import Questions
from secondlook.llm import replies
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question, question_key
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.llm.parsing import p_yes, texts_of
from secondlook.rewards.config import RewardConfig
from secondlook.rewards.reward import Weighted, try_out
from secondlook.rewards.vlm import ServedConfig, VLMReward, in_words, yes_or_no
from secondlook.train.rl.config import RewardChecksConfig
from secondlook.train.rl.reward_checks import RewardChecks, check_reward
from secondlook.types import Prompt

CASE = Path(__file__).parents[1] / "cases" / "unfriendly_judge.py"
SPEC = importlib.util.spec_from_file_location("unfriendly_judge", CASE)
unfriendly = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(unfriendly)

QUICK = {"timeout": 5.0, "attempts": 2, "backoff": 0.01, "start_patience": 0.002}
NOBODY = "http://127.0.0.1:9/v1"
SCORE = 0.905 / (0.905 + 0.091)
ITEMS = [("a photo of a red star", Image.new("RGB", (8, 8), (i, 0, 0))) for i in range(2)]
MANY = [(f"prompt number {i}", Image.new("RGB", (8, 8))) for i in range(60)]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port=0, handler=unfriendly.Handler):
        super().__init__(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *_):
        pass


@pytest.fixture(scope="module")
def url():
    with Server() as server:
        yield server.url


@pytest.fixture
def serve(monkeypatch):
    """Adds a model to the server."""
    return lambda name, answer: monkeypatch.setitem(unfriendly.MODELS, name, answer)


def judge(url, model, reasons=True, **how) -> VLMReward:
    return VLMReward(Asker(Endpoint(url, model, **(QUICK | how))), reasons=reasons)


@pytest.mark.parametrize(
    "model",
    ["fine", "thinks", "completion-tokens", "five-logprobs", "moved-301", "moved-307", "moved-308"],
)
def test_scored(url, model):
    for score in judge(url, model)(ITEMS):
        assert score.value == pytest.approx(SCORE) and score.answer == "Yes, There is a star."


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "thinking-tail",
            "yes and no hold 2e-06 of the first token's probability, less than 0.5; likeliest "
            "are 'So' 0.56",
        ),
        ("article-first", "yes and no hold 0.05"),
        ("markdown-first", "yes and no hold 0.025"),
        ("thinks-too-long", "it thinks and comes to no answer"),
        (
            "no-logprobs",
            "status 400: logprobs: this model gives none; P.yes. needs the log-probabilities",
        ),
        ("words-only", "it gives no log-probabilities"),
        ("too-large", "status 413: 413: the request is too large for this proxy"),
        ("short-context", "status 400: the request is longer than the context of 4096 tokens"),
    ],
)
def test_missing_with_the_reason(url, model, words):
    asked = judge(url, model)
    rows = [
        row_of(Picture(Prompt(p), image, "", 0), GeneratorConfig("render", "m"))
        for p, image in ITEMS
    ]
    with pytest.raises(
        InputError, match=f"not one of 2 pictures got a score.*{url} for model '{model}': {words}"
    ):
        _judged(Shard(0, 0, (), 2), rows, asked, {})
    with pytest.raises(Stopped, match=f"2 of 2 sanity pictures.*{words}"):
        check_reward(asked, [(Prompt("a"), ITEMS[0][1])], [(Prompt("a"), ITEMS[1][1])])
    with pytest.raises(Stopped, match=f"100% of the scores are missing.*{words}"):
        RewardChecks(RewardChecksConfig()).check({"missing": 1.0}, [], why_missing(asked))


def test_edits_need_two_pictures(url):
    asked = judge(url, "one-image")
    assert asked.edits([("make it green", *(image for _, image in ITEMS))]) == [None]
    assert why_missing(asked).endswith("status 400: one request may show one image only")


@pytest.mark.parametrize(
    "model", ["short-context", "words-only", "thinking-tail", "thinks-too-long"]
)
def test_where_the_first_ones_get_no_answer_the_others_are_not_asked(url, model):
    before = unfriendly.Handler.calls[model]
    with pytest.raises(InputError, match="the first 8 questions got no answer: http"):
        judge(url, model)(MANY)
    assert unfriendly.Handler.calls[model] - before <= 32


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-quota", "answers 429 for model 'no-quota': the quota of this key is used up"),
        (
            "no-balance",
            "answers 402 for model 'no-balance': the balance of this account is too low",
        ),
        ("nobody", "answers 404 for model 'nobody': there is no model 'nobody' here"),
    ],
)
def test_what_no_question_can_pass_stops_at_once(url, model, words):
    before = unfriendly.Handler.calls[model]
    with pytest.raises(InputError, match=words):
        judge(url, model)(ITEMS[:1])
    assert unfriendly.Handler.calls[model] - before <= 2  # one a kind of question


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "insufficient_user_quota"),
        (429, "exceeded_current_quota_error"),
        (400, "Arrearage"),
        (429, "AccountOverdueError"),
        (429, "billing_hard_limit_reached"),
        (401, "invalid_api_key"),
    ],
)
def test_codes_of_an_empty_account_and_keys(url, serve, status, code):
    serve("empty", lambda _: unfriendly.refusal(status, "no", code))
    with pytest.raises(InputError, match=f"answers {status} for model 'empty': no"):
        judge(url, "empty", reasons=False)(ITEMS[:1])


def test_the_list_behind_the_thinking(url):
    asked = judge(url, "fine")
    asked.decomposer = Asker(Endpoint(url, "thinks-list", **QUICK))
    assert [s.value for s in asked([("word " * 30, ITEMS[0][1])])] == [pytest.approx(SCORE)]
    assert asked.asker.counts["asked"] == 3, "two questions of the list and the reason"


def test_thinking_is_switched_off_or_has_room(url, serve):
    seen = []
    serve("sees", lambda body: seen.append(body) or unfriendly.completion())
    judge(url, "sees", reasons=False)(ITEMS[:1])
    Asker(Endpoint(url, "sees", thinking=True))([in_words("what?", tokens=100)])
    assert (
        seen[0]["chat_template_kwargs"] == {"enable_thinking": False}
        and "chat_template_kwargs" not in seen[1]
    )
    assert seen[0]["max_tokens"] == 1 and seen[1]["max_tokens"] == 100 + replies.THINKING_ROOM
    config = ServedConfig(url, "m", decomposer_model="d", decomposer_thinking=True, patience=3.0)
    assert (
        not config.endpoint().thinking
        and config.decomposer().thinking
        and config.decomposer().patience == 3
    )


def test_waits_as_told(url, monkeypatch, capsys):
    monkeypatch.setattr(unfriendly, "WAIT", 0.3)
    asked = judge(url, "wait", attempts=1)
    assert [s.value for s in asked(ITEMS)] == [pytest.approx(SCORE)] * 2
    assert capsys.readouterr().err.count("too many requests; wait") == 1
    impatient = judge(url, "wait", patience=0.001)
    monkeypatch.setattr(unfriendly, "WAIT", 3600)
    monkeypatch.setitem(unfriendly.MODELS, "wait", unfriendly.Patience())
    assert impatient(ITEMS) == [None, None] and "wait 3600 s" in why_missing(impatient)


def test_a_busy_server_that_names_no_time_is_waited_for(url, serve, capsys):
    """429 without Retry-After: no attempt is counted, and the patience is the limit."""
    calls = []

    def busy(body):
        calls.append(body)
        return (
            unfriendly.refusal(429, "too many requests", "rate_limit_exceeded")
            if len(calls) < 10
            else unfriendly.completion()
        )

    serve("busy", busy)
    asked = judge(url, "busy", attempts=1, reasons=False)
    assert all(asked(ITEMS)) and len(calls) >= 10
    assert (
        capsys.readouterr().err.count("too many requests); it is waited for up to 20 minutes") == 1
    )
    serve("busy", lambda _: unfriendly.refusal(429, "too many requests"))
    impatient, began = judge(url, "busy", patience=0.005, reasons=False), time.perf_counter()
    assert impatient(ITEMS) == [None, None] and 0.3 <= time.perf_counter() - began < 5
    assert "status 429: too many requests (patience is 0.005 minutes)" in why_missing(impatient)


def test_a_question_beyond_the_limit_is_not_waited_for(url, serve):
    """OpenAI's words for a request that is larger than what a minute allows."""
    serve(
        "tpm",
        lambda _: unfriendly.refusal(
            429, "Request too large on tokens per min (TPM): Limit 30000, Requested 31000"
        ),
    )
    asked = judge(url, "tpm", reasons=False)
    assert asked(ITEMS) == [None, None] and asked.asker.counts["attempts"] == 2


def test_pauses_double_up_to_a_minute(url, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    endpoint = Endpoint(url, "fine")
    assert [endpoint.retry_pause(n) for n in (0, 1, 2, 6, 7, 10**6)] == [0.5, 1, 2, 32, 60, 60]
    assert Endpoint(url, "fine", backoff=0.0).retry_pause(3) == pytest.approx(0.08)


def test_unreadable_answers_are_asked_for_again_where_they_are_sampled(url, serve):
    seen = []

    def varies(body):
        if "temperature" in body and body["model"] == "own temperature":
            return unfriendly.refusal(400, "Unsupported parameter: temperature", "x")
        seen.append(body)
        return unfriendly.completion("<think>so" if len(seen) % 2 else unfriendly.SENTENCE)

    for name in ("warm", "own temperature", "cold"):
        serve(name, varies)
    cold = in_words("what?")
    warm = Question(cold.body | {"temperature": 0.7}, cold.read)
    for name, question, answer, calls in (
        ("warm", warm, unfriendly.SENTENCE, 2),
        ("own temperature", cold, unfriendly.SENTENCE, 2),
        ("cold", cold, None, 1),
    ):
        seen.clear()
        assert Asker(Endpoint(url, name, **QUICK))([question]) == [answer] and len(seen) == calls


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("date", 90), ("soon", None), ("-3", None), ("nan", None)],
)
def test_retry_after(header, seconds):
    if header == "date":
        header = formatdate(time.time() + 90, usegmt=True)
    found = replies.seconds_to_wait(httpx.Response(429, headers={"Retry-After": header}))
    assert found == (seconds and pytest.approx(seconds, abs=30 if seconds > 60 else 0))


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (NOBODY, "127.0.0.1:9/v1 does not answer: connection refused"),
        ("http://nowhere.invalid/v1", "nowhere.invalid/v1 cannot be asked: its host is unknown"),
        ("https://{}/v1", "cannot be asked: it does not speak TLS"),
        ("http://127.0.0.1:99999/v1", "port is 99999"),
        ("http://127.0.0.1:0/v1", "port is 0"),
        ("http://127.0.0.1:x/v1", "is no address"),
        ("http:///v1", "names no host"),
        ("localhost:8000", "must begin with http"),
    ],
)
def test_addresses_that_do_not_serve(url, address, words):
    began = time.perf_counter()
    with pytest.raises(InputError, match=words):
        judge(address.format(url.split("/")[2]), "fine")(ITEMS)
    assert time.perf_counter() - began < 5


def test_addresses_are_checked_with_the_config():
    with pytest.raises(
        InputError, match=r"^config: rewards: url is 'http://h:99999', whose port is 99999"
    ):
        ServedConfig("http://h:99999", "m")
    with pytest.raises(InputError, match=r"^config: rewards: patience is -1"):
        RewardConfig("vlm", settings={"url": "http://h", "model": "m", "patience": -1.0})


@pytest.mark.parametrize("key", ["sk-“quoted”", "sk-caf\u00e9", "sk-two words", "sk-\udce9"])
def test_keys_that_no_header_can_carry(url, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds") as error:
        judge(url, "fine")
    assert "sk-" not in str(error.value)


def test_a_key_is_never_printed(url, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\n")
    serve("tells", lambda _: unfriendly.refusal(401, "sk-secret is no key"))
    with pytest.raises(InputError, match=r"\*\*\* is no key"):
        judge(url, "tells")(ITEMS)


def test_proxies_and_certificates_concern_some_addresses(url, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere.pem")
    for proxy in ("socks5://127.0.0.1:1089", "socks://127.0.0.1:1089"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert all(judge(url, "fine")(ITEMS))
        monkeypatch.delenv("NO_PROXY")
        with pytest.raises(
            InputError,
            match=r"ALL_PROXY holds a proxy that is not to be used.*name 127.0.0.1 in NO_PROXY",
        ):
            judge(url, "fine")
    monkeypatch.delenv("ALL_PROXY")
    with pytest.raises(InputError, match=r"SSL_CERT_FILE is 'nowhere.pem'"):
        judge("https://127.0.0.1:9/v1", "fine")
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:9")
    with pytest.raises(InputError, match=r"connection refused .by the proxy that HTTP_PROXY names"):
        judge(url, "fine")(ITEMS)


def test_nothing_is_sent_to_another_host(url, serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    met = []

    class Other(unfriendly.Handler):
        def do_POST(self):
            met.append(self.headers)

    with Server(handler=Other) as other:
        for place in (
            other.url + "/chat/completions",
            f"http://localhost:{url.split(':')[2]}/chat/completions",
        ):
            serve("moved", lambda _, place=place: (307, b"", {"Location": place}))
            with pytest.raises(
                InputError,
                match=f"has moved to {place.removesuffix('/chat/completions')}; .*give it as url",
            ):
                judge(url, "moved")(ITEMS)
    assert not met
    serve("round", lambda _: (308, b"", {"Location": "/v1/chat/completions"}))
    with pytest.raises(InputError, match="from one address to the next"):
        judge(url, "round")(ITEMS)


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
def test_a_server_that_loads_again_is_waited_for(url, serve, status):
    until = []

    def loads(_):
        if until and time.time() < until[0]:
            return unfriendly.refusal(status, "loading")
        return unfriendly.completion()

    serve("loads", loads)
    asked = judge(url, "loads", attempts=1, reasons=False, patience=1.0)
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


def test_a_server_that_is_started_with_the_job(url, serve):
    began = time.time()
    serve(
        "late",
        lambda _: (
            unfriendly.completion()
            if time.time() > began + 0.4
            else unfriendly.refusal(503, "loading")
        ),
    )
    assert all(judge(url, "late", start_patience=1.0, attempts=1)(ITEMS))
    began = time.time()
    with pytest.raises(InputError, match="does not answer: status 503: loading"):
        judge(url, "late")(ITEMS)


def test_one_question_that_a_server_cannot_take_does_not_stop_the_others(url, serve):
    def poisoned(body):
        return (
            unfriendly.refusal(502, "it broke")
            if "poison" in str(body)
            else unfriendly.completion()
        )

    serve("broken", poisoned)
    asked = judge(url, "broken", reasons=False)
    assert [s is None for s in asked([*ITEMS, ("poison", ITEMS[0][1])])] == [False, False, True]
    assert "status 502: it broke" in why_missing(asked)


@pytest.mark.parametrize("why", ["429", "429 with a time", "away"])
def test_a_wait_ends_when_the_job_is_asked_to(url, serve, why):
    """Its question is not missing: a resumed run would learn from other scores."""
    after = {"Retry-After": "600"} if why == "429 with a time" else {}
    status = 503 if why == "away" else 429
    serve("waits", lambda _: unfriendly.refusal(status, "later", **after))
    asked = judge(url, "waits", reasons=False, start_patience=10.0)
    began = time.monotonic()
    with EndRequest(), pytest.raises(EndRequested, match="asked to end"):
        threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGTERM)).start()
        asked(ITEMS)
    assert time.monotonic() - began < 10 and asked.asker.counts["missing"] == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-logprobs", "status 400: logprobs: this model gives none"),
        ("words-only", "it gives no log-probabilities"),
        ("article-first", "yes and no hold 0.05"),
        ("too-large", "status 413"),
        ("no-quota", "the quota of this key is used up"),
        ("nobody", "there is no model 'nobody' here"),
    ],
)
def test_an_endpoint_that_can_answer_nothing_is_found_by_a_trial(url, model, words):
    fine, asked = judge(url, "fine"), judge(url, model)
    with pytest.raises(InputError, match=f"judge: {url}.*{model}.*{words}"):
        try_out(Weighted([(2.0, fine), (1.0, asked)]))
    assert fine.asker.counts["attempts"] == 1


def test_benchmarks_try_who_answers_before_they_draw(url, tmp_path):
    for benchmark in (
        DSG(model="mini", url=url, vqa="no-logprobs"),
        GEdit(model="mini", url=url, vqa="thinks-too-long"),
    ):
        with pytest.raises(InputError, match="gave a trial question no answer"):
            benchmark.try_out_judge()
    GEdit(model="mini", url=url, vqa="no-logprobs").try_out_judge()  # asks in words

    class OneRow(DSG):
        def rows(self):
            return [Row("1", "a photo of a star", "single")]

    session = EvalSession("dsg", tmp_path, lambda _: pytest.fail("a model is loaded"))
    with pytest.raises(InputError, match="gave a trial question no answer"):
        runner.run_image_benchmark(OneRow(model="mini", url=url, vqa="no-logprobs"), session)


def test_a_trial_that_fails_for_now_says_nothing(url, serve):
    serve("ill", lambda _: unfriendly.refusal(500, "out of memory"))
    try_out(judge(url, "ill"))
    try_out(lambda items: [None for _ in items])  # no endpoint, so it is not asked


def test_hopeless_judges_are_found_before_anything_is_drawn(url, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photo of a star\n")
    config = BuildConfig([GeneratorConfig("model", "mini-base")], str(tmp_path / "prompts.txt"))
    with pytest.raises(InputError, match=r"gave a trial question no answer .* status 413"):
        build(config, judge(url, "too-large"), tmp_path / "out", lambda _: pytest.fail("loaded"))


def test_refused_keys_are_told_in_plain_words(url, serve, monkeypatch):
    serve("closed", lambda _: unfriendly.refusal(401, "no entry"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(
        InputError, match=r"no entry \(it wants a key, and OPENAI_API_KEY is not set"
    ):
        judge(url, "closed")(ITEMS)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(
        InputError, match=r"no entry \(it does not accept the key in OPENAI_API_KEY\)"
    ):
        judge(url, "closed")(ITEMS)


def test_in_a_running_loop(url, tmp_path):
    asked = VLMReward(Asker(Endpoint(url, "fine", **QUICK), Answers(tmp_path / "a.db")))

    async def notebook():
        return asked(ITEMS)

    assert all(asyncio.run(notebook())) and asked(ITEMS) == asyncio.run(notebook())


def test_each_reason_is_told_once_with_its_count(url, serve, capsys):
    def some(body):
        text = str(body)
        n = int(text.split("number ")[1].split('"')[0])
        return unfriendly.refusal(400, f"number {n} is odd") if n % 2 else unfriendly.completion()

    serve("some", some)
    asked = judge(url, "some", reasons=False)
    assert sum(s is None for s in asked(MANY)) == 30
    tell_missing(asked)
    asked(MANY[:3])
    tell_missing(asked)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"secondlook: {url} for model 'some': 30 answers are missing: status 400: number "
    )


def test_benchmarks_stop_with_the_reason(url, tmp_path, monkeypatch):
    class Scorer:
        ask = Questions(Asker(Endpoint(url, "article-first", **QUICK)))
        missing = property(lambda self: self.ask.missing)

        def __call__(self, items):
            answers = self.ask([("a star?", image) for _, image in items])
            return [
                f"no answer{why_missing(self.ask)}" if p is None else {"value": p} for p in answers
            ]

    (tmp_path / "pictures").mkdir()
    ITEMS[0][1].save(tmp_path / "pictures" / "0.png")
    monkeypatch.setattr(records, "unscored", lambda *_: [(0, "0.png")])
    monkeypatch.setattr(
        records, "own_episodes", lambda *_: [{"rounds": [{"picture": "0.png"}], "fresh": []}]
    )
    with pytest.raises(Stopped, match=r"1 of 1 pictures got none.*yes and no hold 0.05"):
        runner.score_pictures(Scorer(), [None], None, tmp_path)


def respond(status=400, content=b"", **headers) -> httpx.Response:
    return httpx.Response(
        status, content=content, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@pytest.mark.parametrize(
    ("content", "headers", "words"),
    [
        (b'{"error": {"message": "too long", "code": 400}}', {}, "too long"),
        (b'{"error": "too long"}', {}, "too long"),
        (b'{"object": "error", "message": "too long", "code": 40303}', {}, "too long"),
        (b'{"detail": "Not Found"}', {}, "Not Found"),
        (
            b'{"detail": [{"loc": ["body", "n"], "msg": "Extra inputs", "type": "x"}]}',
            {},
            "body.n: Extra inputs",
        ),
        (b'{"errors": [{"message": "a"}, {"message": "b"}]}', {}, "a; b"),
        (
            b"<html><head><style>p {}</style></head><p>Bad&nbsp;<b>gateway</b></p>",
            {"content_type": "text/html"},
            "Bad gateway",
        ),
        (b"", {}, ""),
        ("größe".encode("latin-1"), {"content_type": "text/plain; charset=latin-1"}, "größe"),
        ("größe".encode(), {"content_type": "text/plain; charset=nonsense"}, "größe"),
        (b"\xff\xfe broken", {}, "\ufffd\ufffd broken"),
        (b"\x1b[31mred\x07\n\nlines", {}, "[31mred lines"),
        (b"[" * 100_000, {}, "[" * replies.MAX_SHOWN + "…"),
        (b"word " * 1000, {}, ("word " * 1000)[: replies.MAX_SHOWN] + "…"),
    ],
)
def test_the_servers_words(content, headers, words):
    assert replies.words_of(respond(content=content, **headers)) == words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"", {}), "an empty answer"),
        ((200, b"<html>log in</html>", {"Content-Type": "text/html"}), "no completion: log in"),
        ((200, b'{"choices": [{"message": {"content": "\xff"}}]}', {}), "no completion"),
        ((200, b'{"choices": []}', {}), "no completion"),
        ((200, b'{"choices": ["yes"]}', {}), "no object"),
        ((200, b'{"error": {"message": "overloaded"}}', {}), "no completion: overloaded"),
        ((200, b"[" * 100_000, {}), "no completion"),
        ((200, b"no gzip", {"Content-Encoding": "gzip"}), "DecodingError"),
        ((200, gzip.compress(b"cut off")[:-12], {"Content-Encoding": "gzip"}), "no completion"),
        ((204, b"", {}), "status 204: No Content"),
        ((303, b"", {"Location": "/login"}), "status 303"),
        ((418, b"tea", {}), "status 418: tea"),
        ((500, b"{}", {}), "status 500: Internal Server Error"),
    ],
)
def test_answers_that_are_none(url, serve, answer, words):
    serve("odd", lambda _: answer)
    asked = judge(url, "odd", reasons=False)
    assert asked(ITEMS) == [None, None] and words in why_missing(asked)


def test_a_charset_is_heeded(url, serve):
    said = json.dumps({"choices": [{"message": {"content": "größer."}}]}, ensure_ascii=False)
    serve(
        "latin",
        lambda _: (
            200,
            said.encode("latin-1"),
            {"Content-Type": "application/json; charset=latin-1"},
        ),
    )
    assert Asker(Endpoint(url, "latin", **QUICK))([in_words("what?")]) == ["größer."]


@pytest.mark.parametrize(
    ("refusal", "changed"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported; use 'max_completion_tokens' "
            "instead.",
            "max_completion_tokens",
        ),
        (
            "Unsupported value: 'temperature' does not support 0; only the default (1) is "
            "supported",
            "temperature is left out",
        ),
        (
            "Requested sample logprobs of 20, which is greater than max allowed: 5",
            "top_logprobs is 5",
        ),
        ("top_logprobs is too large", "top_logprobs is 10"),
        ("top_logprobs must be between 0 and 8", "top_logprobs is 8"),
        ("body.chat_template_kwargs: Extra inputs are not permitted", "chat_template_kwargs"),
        ("Unrecognized request argument supplied: chat_template_kwargs", "chat_template_kwargs"),
        (
            "'max_tokens' or 'max_completion_tokens' is too large: 1. The maximum context "
            "length is 4096",
            "",
        ),
        ("the request is longer than the context", ""),
        ("logprobs: this model gives none", ""),
        ("image input is not supported", ""),
    ],
)
def test_a_dialect_is_learnt(refusal, changed):
    dialect, asked = replies.Dialect(thinking=False), yes_or_no("really?").body
    before = dialect.body(asked)
    said = dialect.learn(refusal, before)
    assert changed in said and bool(said) == bool(changed) == (dialect.body(asked) != before)


def test_a_dialect_is_learnt_once(url, serve):
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

    serve("strict", strict)
    asked = judge(url, "strict", reasons=False)
    assert all(asked(ITEMS))
    before = asked.asker.counts["attempts"], unfriendly.Handler.calls["strict"]
    assert all(asked(MANY[:5]))
    assert (
        unfriendly.Handler.calls["strict"] - before[1]
        == asked.asker.counts["attempts"] - before[0]
        == 5
    )


def test_stored_answers(url, tmp_path):
    path, question, endpoint = (
        tmp_path / "a.db",
        yes_or_no("really?"),
        Endpoint(url, "fine", **QUICK),
    )
    [value] = Asker(endpoint, Answers(path))([question])
    key = question_key([url, "fine", False], question)
    assert Answers(path).get(key) == value
    other = Question(question.body, texts_of)
    assert question_key([url, "fine", False], other) != key, (
        "how an answer is read is part of its name"
    )
    sqlite3.connect(path).execute("update answers set value = 'NaN'").connection.commit()
    with pytest.raises(InputError, match=r"answers is '.*a.db', which cannot be used"):
        Asker(endpoint, Answers(path))([question])
    whole = path.read_bytes()
    for content in (b"no database", whole[:100], whole[:-5000] + b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(InputError, match="answers is"):
            Answers(path).get(key)
    foreign = tmp_path / "foreign.db"
    sqlite3.connect(foreign).execute("create table songs (name text)")
    with pytest.raises(InputError, match="another program's"):
        Answers(foreign)
    with pytest.raises(InputError, match="answers is"):
        Answers(tmp_path)


def test_several_processes_share_a_file_of_answers(tmp_path):
    def write(n):
        answers = Answers(tmp_path / "a.db")
        for i in range(20):
            answers.put(f"{n} {i}", i)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = Answers(tmp_path / "a.db")
    assert all(answers.get(f"{n} {i}") == i for n in range(4) for i in range(20))


def first_token(*tokens, **choice) -> dict:
    import math

    listed = [{"token": t, "logprob": math.log(p)} for t, p in tokens]
    return {"logprobs": {"content": [{"token": "?", "top_logprobs": listed}]}, **choice}


@pytest.mark.parametrize(
    "word",
    [
        "yes",
        " Yes",
        "YES",
        "▁Yes",
        "ĠYes",
        "YES.",
        "Yes,",
        "**Yes",
        '"Yes',
        "\nYes",
        "Yes\n",
        "_yes_",
        "<yes>",
    ],
)
def test_forms_of_yes(word):
    assert p_yes(first_token((word, 0.6), ("No", 0.2), ("The", 0.2))) == pytest.approx(0.75)
    listed = [
        {"token": None, "bytes": list(word.encode()), "logprob": -0.1},
        {"token": "No", "logprob": -3},
    ]
    assert p_yes({"logprobs": {"content": [{"top_logprobs": listed}]}}) > 0.9
    assert p_yes({"logprobs": {"tokens": ["x"], "top_logprobs": [{word: -0.1, "No": -3}]}}) > 0.9


def test_the_other_word_may_be_unlisted_where_it_does_not_matter():
    assert (
        p_yes(first_token(("Yes", 0.97))) == 1
        and p_yes(first_token(("No", 0.97), ("The", 0.02))) == 0
    )
    assert p_yes(first_token(("Yes", 0.7), ("The", 0.25), ("A", 0.01))) == 1
    assert (
        p_yes({"logprobs": {"content": [{"token": "Yes", "logprob": -0.01, "top_logprobs": []}]}})
        == 1
    )
    twice = first_token(("Yes", 0.9), ("Yes", 0.9), ("No", 0.1))
    assert p_yes(twice) == pytest.approx(0.9)
    with pytest.raises(replies.Unanswered, match="only one of yes and no is listed"):
        p_yes(first_token(("Yes", 0.6)))


@pytest.mark.parametrize(
    "word", ["Yesterday", "Not", "None", "Nope", "Eyes", "y", "n", "Noon", "预", ""]
)
def test_other_words_are_neither(word):
    with pytest.raises(replies.Unanswered, match="less than"):
        p_yes(first_token((word, 0.6), ("Yes", 0.2), ("No", 0.1)))


@pytest.mark.parametrize(
    "value", [None, float("nan"), 0.2, "−0.1", True, [], -(10**400), float("-inf")]
)
def test_log_probabilities_that_are_none(value):
    listed = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": value}]
    choice = {"logprobs": {"content": [{"top_logprobs": listed}]}}
    if value in (-(10**400), float("-inf")):
        assert p_yes(choice) == 1
    else:
        with pytest.raises(replies.Unanswered, match="a log-probability of the first token is"):
            p_yes(choice)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<think>a [b]</think>\n\nIt is.", "It is."),
        ("a [b]</think>\n\nIt is.", "It is."),  # the template has opened it
        ("<think>a</think><think>b</think>It is.", "It is."),
        ("<Thinking>a</Thinking>It is.", "It is."),
        ("<seed:think>a</seed:think>It is.", "It is."),
        ("[THINK]a[/THINK]It is.", "It is."),
        ("◁think▷a◁/think▷It is.", "It is."),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>It "
            "is.",
            "It is.",
        ),
        ("<think></think><answer>It is.</answer>", "It is."),
        ([{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "It is."}], "It is."),
        ("<think>a", None),
        ("It is. <think>a", None),
        ("<think>a</think>", None),
        ("", None),
        (None, None),
        (7, None),
        ("a \ud800", None),
        ("gr\ufffd", None),
    ],
)
def test_thoughts_are_no_answer(text, found):
    read = in_words("what?").read
    choice = {"message": {"content": text, "reasoning_content": "no, wait"}}
    if found:
        assert read(choice) == found
    else:
        with pytest.raises(replies.Unanswered):
            read(choice)


def test_answers_that_were_ended():
    read = in_words("what?").read
    assert read({"message": {"content": "It is. And it"}, "finish_reason": "length"}) == "It is."
    with pytest.raises(replies.Unanswered, match="cut off"):
        read({"message": {"content": "It is a"}, "finish_reason": "length"})
    for choice in (
        {"finish_reason": "content_filter"},
        {"message": {"content": None, "refusal": "I cannot"}},
    ):
        for reader in (read, p_yes):
            with pytest.raises(replies.Refused):
                reader(
                    first_token(("Yes", 0.9), ("No", 0.1))
                    | {"message": {"content": "Yes."}}
                    | choice
                )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Here [as asked]: ["a", "b"] [end]', ["a", "b"]),
        ('```json\n{"questions": ["a [b]", "c"]}\n```', ["a [b]", "c"]),
        ('First ["draft"], then ["a"]', ["a"]),
        ('["a", ""]', None),
        ('["a", 1]', None),
        (r'["a \ud800"]', None),
        ("[" * 5000, None),
    ],
)
def test_lists_among_words(text, found):
    choice = {"message": {"content": text}}
    if found:
        assert texts_of(choice) == found
    else:
        with pytest.raises(replies.Unanswered):
            texts_of(choice)
