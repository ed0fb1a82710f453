"""Reading one reply of a judge's server: P(yes) of log-probabilities, words behind thoughts, lists,
error texts, headers."""

import time
from email.utils import formatdate

import httpx
import pytest

from secondlook.llm import replies
from secondlook.llm.parsing import p_yes, texts_of
from secondlook.rewards.vlm import in_words, yes_or_no


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
    ("header", "seconds"),
    [("7", 7), ("0.5", 0.5), ("date", 90), ("soon", None), ("-3", None), ("nan", None)],
)
def test_retry_after(header, seconds):
    if header == "date":
        header = formatdate(time.time() + 90, usegmt=True)
    found = replies.seconds_to_wait(httpx.Response(429, headers={"Retry-After": header}))
    assert found == (seconds and pytest.approx(seconds, abs=30 if seconds > 60 else 0))


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
