"""Judges' servers as people meet them: what is scored, what is missing and why; and that a judge
which can score nothing is found before anything is drawn."""

import asyncio
import gzip
import json

import pytest

from judge_server import ITEMS, MANY, QUICK, SCORE, judge, unfriendly
from secondlook.data.build_config import BuildConfig
from secondlook.data.build_pictures import row_of
from secondlook.data.generate import _judged, build
from secondlook.data.generators import GeneratorConfig, Picture, Shard
from secondlook.errors import InputError, Stopped
from secondlook.evals import records, runner
from secondlook.evals.benchmark import EvalSession, Row
from secondlook.evals.dsg import DSG
from secondlook.evals.gedit import GEdit
from secondlook.evals.scorers.vqa import Questions
from secondlook.llm import replies
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.missing import tell_missing, why_missing
from secondlook.rewards.reward import Weighted, try_out
from secondlook.rewards.vlm import ServedConfig, VLMReward, in_words
from secondlook.train.rl.config import RewardChecksConfig
from secondlook.train.rl.reward_checks import RewardChecks, check_reward
from secondlook.types import Prompt


@pytest.mark.parametrize(
    "model",
    ["fine", "thinks", "completion-tokens", "five-logprobs", "moved-301", "moved-307", "moved-308"],
)
def test_scored(judge_url, model):
    for score in judge(judge_url, model)(ITEMS):
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
def test_missing_with_the_reason(judge_url, model, words):
    asked = judge(judge_url, model)
    rows = [
        row_of(Picture(Prompt(p), image, "", 0), GeneratorConfig("render", "m"))
        for p, image in ITEMS
    ]
    with pytest.raises(
        InputError,
        match=f"not one of 2 pictures got a score.*{judge_url} for model '{model}': {words}",
    ):
        _judged(Shard(0, 0, (), 2), rows, asked, {})
    with pytest.raises(Stopped, match=f"2 of 2 sanity pictures.*{words}"):
        check_reward(asked, [(Prompt("a"), ITEMS[0][1])], [(Prompt("a"), ITEMS[1][1])])
    with pytest.raises(Stopped, match=f"100% of the scores are missing.*{words}"):
        RewardChecks(RewardChecksConfig()).check({"missing": 1.0}, [], why_missing(asked))


def test_edits_need_two_pictures(judge_url):
    asked = judge(judge_url, "one-image")
    assert asked.edits([("make it green", *(image for _, image in ITEMS))]) == [None]
    assert why_missing(asked).endswith("status 400: one request may show one image only")


@pytest.mark.parametrize(
    "model", ["short-context", "words-only", "thinking-tail", "thinks-too-long"]
)
def test_where_the_first_ones_get_no_answer_the_others_are_not_asked(judge_url, model):
    before = unfriendly.Handler.calls[model]
    with pytest.raises(InputError, match="the first 8 questions got no answer: http"):
        judge(judge_url, model)(MANY)
    assert unfriendly.Handler.calls[model] - before <= 32


def test_the_list_behind_the_thinking(judge_url):
    asked = judge(judge_url, "fine")
    asked.decomposer = Asker(Endpoint(judge_url, "thinks-list", **QUICK))
    assert [s.value for s in asked([("word " * 30, ITEMS[0][1])])] == [pytest.approx(SCORE)]
    assert asked.asker.counts["asked"] == 3, "two questions of the list and the reason"


def test_thinking_is_switched_off_or_has_room(judge_url, add_model):
    seen = []
    add_model("sees", lambda body: seen.append(body) or unfriendly.completion())
    judge(judge_url, "sees", reasons=False)(ITEMS[:1])
    Asker(Endpoint(judge_url, "sees", thinking=True))([in_words("what?", tokens=100)])
    assert (
        seen[0]["chat_template_kwargs"] == {"enable_thinking": False}
        and "chat_template_kwargs" not in seen[1]
    )
    assert seen[0]["max_tokens"] == 1 and seen[1]["max_tokens"] == 100 + replies.THINKING_ROOM
    config = ServedConfig(
        judge_url, "m", decomposer_model="d", decomposer_thinking=True, patience=3.0
    )
    assert (
        not config.endpoint().thinking
        and config.decomposer().thinking
        and config.decomposer().patience == 3
    )


def test_in_a_running_loop(judge_url, tmp_path):
    asked = VLMReward(Asker(Endpoint(judge_url, "fine", **QUICK), Answers(tmp_path / "a.db")))

    async def notebook():
        return asked(ITEMS)

    assert all(asyncio.run(notebook())) and asked(ITEMS) == asyncio.run(notebook())


def test_each_reason_is_told_once_with_its_count(judge_url, add_model, capsys):
    def some(body):
        text = str(body)
        n = int(text.split("number ")[1].split('"')[0])
        return unfriendly.refusal(400, f"number {n} is odd") if n % 2 else unfriendly.completion()

    add_model("some", some)
    asked = judge(judge_url, "some", reasons=False)
    assert sum(s is None for s in asked(MANY)) == 30
    tell_missing(asked)
    asked(MANY[:3])
    tell_missing(asked)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"secondlook: {judge_url} for model 'some': 30 answers are missing: status 400: number "
    )


def test_benchmarks_stop_with_the_reason(judge_url, tmp_path, monkeypatch):
    class Scorer:
        ask = Questions(Asker(Endpoint(judge_url, "article-first", **QUICK)))
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
def test_answers_that_are_none(judge_url, add_model, answer, words):
    add_model("odd", lambda _: answer)
    asked = judge(judge_url, "odd", reasons=False)
    assert asked(ITEMS) == [None, None] and words in why_missing(asked)


def test_a_charset_is_heeded(judge_url, add_model):
    said = json.dumps({"choices": [{"message": {"content": "größer."}}]}, ensure_ascii=False)
    add_model(
        "latin",
        lambda _: (
            200,
            said.encode("latin-1"),
            {"Content-Type": "application/json; charset=latin-1"},
        ),
    )
    assert Asker(Endpoint(judge_url, "latin", **QUICK))([in_words("what?")]) == ["größer."]


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
def test_an_endpoint_that_can_answer_nothing_is_found_by_a_trial(judge_url, model, words):
    fine, asked = judge(judge_url, "fine"), judge(judge_url, model)
    with pytest.raises(InputError, match=f"judge: {judge_url}.*{model}.*{words}"):
        try_out(Weighted([(2.0, fine), (1.0, asked)]))
    assert fine.asker.counts["attempts"] == 1


def test_benchmarks_try_who_answers_before_they_draw(judge_url, tmp_path):
    for benchmark in (
        DSG(model="mini", url=judge_url, vqa="no-logprobs"),
        GEdit(model="mini", url=judge_url, vqa="thinks-too-long"),
    ):
        with pytest.raises(InputError, match="gave a trial question no answer"):
            benchmark.try_out_judge()
    GEdit(model="mini", url=judge_url, vqa="no-logprobs").try_out_judge()  # asks in words

    class OneRow(DSG):
        def rows(self):
            return [Row("1", "a photo of a star", "single")]

    session = EvalSession("dsg", tmp_path, lambda _: pytest.fail("a model is loaded"))
    with pytest.raises(InputError, match="gave a trial question no answer"):
        runner.run_image_benchmark(OneRow(model="mini", url=judge_url, vqa="no-logprobs"), session)


def test_a_trial_that_fails_for_now_says_nothing(judge_url, add_model):
    add_model("ill", lambda _: unfriendly.refusal(500, "out of memory"))
    try_out(judge(judge_url, "ill"))
    try_out(lambda items: [None for _ in items])  # no endpoint, so it is not asked


def test_hopeless_judges_are_found_before_anything_is_drawn(judge_url, tmp_path):
    (tmp_path / "prompts.txt").write_text("a photo of a star\n")
    config = BuildConfig([GeneratorConfig("model", "mini-base")], str(tmp_path / "prompts.txt"))
    with pytest.raises(InputError, match=r"gave a trial question no answer .* status 413"):
        build(
            config, judge(judge_url, "too-large"), tmp_path / "out", lambda _: pytest.fail("loaded")
        )
