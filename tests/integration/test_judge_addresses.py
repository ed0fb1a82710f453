"""Addresses, keys, proxies and accounts of judges' servers, and the file of stored answers."""

import sqlite3
import threading
import time

import pytest

from judge_server import ITEMS, QUICK, Server, judge, unfriendly
from secondlook.errors import InputError
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question, question_key
from secondlook.llm.parsing import texts_of
from secondlook.rewards.config import RewardConfig
from secondlook.rewards.vlm import ServedConfig, yes_or_no

NOBODY = "http://127.0.0.1:9/v1"


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
def test_addresses_that_do_not_serve(judge_url, address, words):
    began = time.perf_counter()
    with pytest.raises(InputError, match=words):
        judge(address.format(judge_url.split("/")[2]), "fine")(ITEMS)
    assert time.perf_counter() - began < 5


def test_addresses_are_checked_with_the_config():
    with pytest.raises(
        InputError, match=r"^config: rewards: url is 'http://h:99999', whose port is 99999"
    ):
        ServedConfig("http://h:99999", "m")
    with pytest.raises(InputError, match=r"^config: rewards: patience is -1"):
        RewardConfig("vlm", settings={"url": "http://h", "model": "m", "patience": -1.0})


@pytest.mark.parametrize("key", ["sk-“quoted”", "sk-caf\u00e9", "sk-two words", "sk-\udce9"])
def test_keys_that_no_header_can_carry(judge_url, monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match="OPENAI_API_KEY holds") as error:
        judge(judge_url, "fine")
    assert "sk-" not in str(error.value)


def test_a_key_is_never_printed(judge_url, add_model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\r\n")
    add_model("tells", lambda _: unfriendly.refusal(401, "sk-secret is no key"))
    with pytest.raises(InputError, match=r"\*\*\* is no key"):
        judge(judge_url, "tells")(ITEMS)


def test_refused_keys_are_told_in_plain_words(judge_url, add_model, monkeypatch):
    add_model("closed", lambda _: unfriendly.refusal(401, "no entry"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(
        InputError, match=r"no entry \(it wants a key, and OPENAI_API_KEY is not set"
    ):
        judge(judge_url, "closed")(ITEMS)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with pytest.raises(
        InputError, match=r"no entry \(it does not accept the key in OPENAI_API_KEY\)"
    ):
        judge(judge_url, "closed")(ITEMS)


def test_proxies_and_certificates_concern_some_addresses(judge_url, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "nowhere.pem")
    for proxy in ("socks5://127.0.0.1:1089", "socks://127.0.0.1:1089"):
        monkeypatch.setenv("ALL_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert all(judge(judge_url, "fine")(ITEMS))
        monkeypatch.delenv("NO_PROXY")
        with pytest.raises(
            InputError,
            match=r"ALL_PROXY holds a proxy that is not to be used.*name 127.0.0.1 in NO_PROXY",
        ):
            judge(judge_url, "fine")
    monkeypatch.delenv("ALL_PROXY")
    with pytest.raises(InputError, match=r"SSL_CERT_FILE is 'nowhere.pem'"):
        judge("https://127.0.0.1:9/v1", "fine")
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:9")
    with pytest.raises(InputError, match=r"connection refused .by the proxy that HTTP_PROXY names"):
        judge(judge_url, "fine")(ITEMS)


def test_nothing_is_sent_to_another_host(judge_url, add_model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    met = []

    class Other(unfriendly.Handler):
        def do_POST(self):
            met.append(self.headers)

    with Server(handler=Other) as other:
        for place in (
            other.url + "/chat/completions",
            f"http://localhost:{judge_url.split(':')[2]}/chat/completions",
        ):
            add_model("moved", lambda _, place=place: (307, b"", {"Location": place}))
            with pytest.raises(
                InputError,
                match=f"has moved to {place.removesuffix('/chat/completions')}; .*give it as url",
            ):
                judge(judge_url, "moved")(ITEMS)
    assert not met
    add_model("round", lambda _: (308, b"", {"Location": "/v1/chat/completions"}))
    with pytest.raises(InputError, match="from one address to the next"):
        judge(judge_url, "round")(ITEMS)


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
def test_codes_of_an_empty_account_and_keys(judge_url, add_model, status, code):
    add_model("empty", lambda _: unfriendly.refusal(status, "no", code))
    with pytest.raises(InputError, match=f"answers {status} for model 'empty': no"):
        judge(judge_url, "empty", reasons=False)(ITEMS[:1])


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
def test_what_no_question_can_pass_stops_at_once(judge_url, model, words):
    before = unfriendly.Handler.calls[model]
    with pytest.raises(InputError, match=words):
        judge(judge_url, model)(ITEMS[:1])
    assert unfriendly.Handler.calls[model] - before <= 2  # one a kind of question


def test_stored_answers(judge_url, tmp_path):
    path, question, endpoint = (
        tmp_path / "a.db",
        yes_or_no("really?"),
        Endpoint(judge_url, "fine", **QUICK),
    )
    [value] = Asker(endpoint, Answers(path))([question])
    key = question_key([judge_url, "fine", False], question)
    assert Answers(path).get(key) == value
    other = Question(question.body, texts_of)
    assert question_key([judge_url, "fine", False], other) != key, (
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
