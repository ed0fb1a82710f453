"""The Python interface: what users call, on a tiny untrained model."""

import asyncio
import json
from html import unescape

import numpy as np
import pytest
from PIL import Image

import secondlook
from secondlook.api import Model
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.streaming import GREY
from secondlook.types import Episode, EpisodeFinished, Prompt, Verdict, VerdictGiven

STAR, CAT = "a photo of a red star", "a photo of a cat"


@pytest.fixture(scope="module")
def model(janus) -> Model:
    return Model(Engine(janus), "tiny")


@pytest.fixture(scope="module")
def episode(model) -> Episode:
    return model.draw(STAR, rounds=3, seed=5)


def codes(episodes) -> list:
    return [[r.codes for r in e.rounds] for e in episodes]


def test_draw_gives_one_episode_or_a_list(model, episode):
    """Sample j of prompt i has the seed seed + i * n + j, and is the same alone."""
    many = model.draw([CAT, STAR], n=2, rounds=3, seed=3)
    assert [e.prompt.text for e in many] == [CAT, CAT, STAR, STAR]
    assert [e.seed for e in many] == [3, 4, 5, 6]
    assert isinstance(episode, Episode) and codes([many[2]]) == codes([episode])
    assert [e.seed for e in model.draw(STAR, n=2, rounds=1)] == [0, 1]
    [alone] = model.draw([STAR], rounds=3, seed=5)
    assert codes([alone]) == codes([episode])
    numpy_numbers = model.draw(STAR, n=np.int64(1), rounds=np.int64(3), seed=np.int64(5))
    assert codes([numpy_numbers]) == codes([episode])


def test_an_empty_list_gives_an_empty_list(model, episode):
    assert model.draw([]) == model.edit(episode.image, []) == []
    assert model.judge([], STAR) == model.ask([], "is there a cat?") == []


def test_draw_samples_as_it_is_told(model):
    own = SamplingConfig.of(model.janus.net.generation_config)
    assert model.sampling() == own
    other = model.draw(STAR, rounds=1, seed=1, guidance=2.0, temperature=0.5)
    first = other.turns[0].sampling_params
    assert (first.guidance, first.temperature) == (2.0, 0.5)
    expected = SamplingConfig(guidance=2.0, edit_guidance=2.0, temperature=0.5)
    [same] = run_episodes(model.engine, [Prompt(STAR)], [1], 1, expected)
    assert codes([same]) == codes([other])


def test_edits_are_drawn_together_too(model, episode):
    edit = Prompt("make the star blue", source=episode.image)
    both = model.draw([STAR, edit], rounds=1, seed=2)
    assert [e.turns[0].kind for e in both] == ["draw", "edit"]


def test_edit_in_turns(model, episode):
    """The next instruction edits the codes that were drawn, not the picture encoded again."""
    steps = model.edit(episode.image, ["make it blue", "add a cat"], rounds=2, seed=7)
    assert [e.seed for e in steps] == [7, 8]
    before = steps[0].rounds[steps[0].final]
    assert steps[1].prompt.codes == before.codes and steps[1].prompt.source is before.image
    once = model.edit(episode.image, "make it blue", rounds=2, seed=7)
    assert isinstance(once, Episode) and codes([once]) == codes(steps[:1])


def test_judge_and_ask(model, episode, tmp_path):
    path = tmp_path / "image.png"
    episode.image.save(path)
    verdict = model.judge(path, STAR)
    assert isinstance(verdict, Verdict) and verdict == model.judge(episode.image, STAR)
    assert f"{verdict.p_yes:.2f}" in str(verdict)
    several = model.judge([path, episode.image], [STAR, CAT])
    assert [v.yes for v in several] == [v.p_yes > 0.5 for v in several]
    assert several[0].p_yes == pytest.approx(verdict.p_yes, abs=1e-5)
    assert several[1].p_yes == pytest.approx(model.judge(path, CAT).p_yes, abs=1e-5)
    assert not model.judge(path, STAR, threshold=1.0).yes
    edited = model.judge(path, "make it blue", source=episode.image)
    assert edited.p_yes != verdict.p_yes
    answer = model.ask(path, "is there a cat?", max_tokens=4)
    assert isinstance(answer, str)
    assert model.ask([path, path], "is there a cat?", max_tokens=4) == [answer, answer]


def test_it_works_inside_a_running_event_loop(model, episode):
    async def notebook() -> tuple[Episode, list]:
        drawn = model.draw(STAR, rounds=3, seed=5)
        return drawn, [type(event) for event in model.stream(STAR, rounds=1)]

    drawn, events = asyncio.run(notebook())
    assert codes([drawn]) == codes([episode]) and events[-1] is EpisodeFinished


def test_stream_tells_rows_then_verdicts_then_the_episode(model, episode):
    events = list(model.stream(STAR, rounds=3, seed=5))
    finished = events.pop()
    assert isinstance(finished, EpisodeFinished)
    assert codes([finished.episode]) == codes([episode])
    side = round(model.codes_per_image**0.5)
    for k, r in enumerate(episode.rounds):
        drawn, told = events[:side], events[side]
        del events[: side + 1]
        assert [e.rows for e in drawn] == list(range(1, side + 1))
        assert {(e.round_index, e.total_rows) for e in drawn} == {(k, side)}
        assert isinstance(told, VerdictGiven) and told.round.verdict == r.verdict
        assert drawn[-1].image.tobytes() == r.image.tobytes()
        half = drawn[side // 2 - 1].image
        edge = half.height // 2
        below = half.crop((0, edge, half.width, half.height))
        assert below.getcolors() == [(below.width * below.height, GREY)]
        assert half.crop((0, 0, half.width, edge)).getcolors() != [(half.width * edge, GREY)]
    assert not events


def test_ending_a_stream_early_ends_the_drawing(model):
    stream = model.stream(STAR)
    next(stream)
    stream.close()
    assert model.engine.idle
    assert isinstance(model.draw(STAR, rounds=1), Episode)


def test_an_episode_shows_and_saves_itself(episode, tmp_path):
    assert episode.image is episode.rounds[episode.final].image
    assert episode.verdict == episode.rounds[episode.final].verdict
    shown = episode._repr_html_()
    assert shown.count("data:image/png") == len(
        episode.rounds
    ) and episode.verdict.reason in unescape(shown)
    assert "<html" not in shown and "<style" not in shown, "a notebook's own page stays as it is"
    folder = episode.save(tmp_path / "new" / "out")
    assert Image.open(folder / "final.png").tobytes() == episode.image.tobytes()
    stored = json.loads((folder / "episode.json").read_text())
    assert [tuple(r["codes"]) for r in stored["rounds"]] == [r.codes for r in episode.rounds]
    assert not (folder / ".lock").exists()


def test_a_saved_model_is_the_same_one(model, episode, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    folder = model.save(tmp_path / "model")
    assert not capsys.readouterr().err, "no bars of transformers"
    again = secondlook.load(folder, device="cpu")
    assert codes([again.draw(STAR, rounds=3, seed=5)]) == codes([episode])
    facts = (again.image_size, again.codes_per_image, again.parameters)
    assert facts == (model.image_size, model.codes_per_image, model.parameters)
    assert str(folder) in repr(again) and "float32 on cpu" in repr(again)
    with pytest.raises(secondlook.InputError, match="is not empty; name a new folder"):
        model.save(folder)


BAD = {
    "empty prompt": (lambda m, i: m.draw(" "), "prompt: it is empty"),
    "no text": (lambda m, i: m.draw([3]), "prompt: 3 is no text"),
    "no samples": (lambda m, i: m.draw(STAR, n=0), "n: 0 is too small; it must be at least 1"),
    "no rounds": (lambda m, i: m.stream(STAR, rounds=0), "rounds: 0 is too small"),
    "temperature": (lambda m, i: m.draw(STAR, temperature=-1.0), "temperature: -1.0"),
    "guidance": (lambda m, i: m.edit(i, "add a cat", guidance=-1.0), "guidance: -1.0"),
    "empty instruction": (lambda m, i: m.edit(i, ["add a cat", ""]), "instruction: it is empty"),
    "no picture": (lambda m, i: m.judge(3, STAR), "image: int is no picture"),
    "no file": (lambda m, i: m.judge("none.png", STAR), "image: 'none.png' is not a file"),
    "half a sample": (lambda m, i: m.draw(STAR, n=1.5), "n: 1.5 is no whole number; give 1 or"),
    "samples as text": (lambda m, i: m.draw(STAR, n="2"), "n: '2' is no whole number"),
    "samples as truth": (lambda m, i: m.draw(STAR, n=True), "n: True is no whole number"),
    "rounds as text": (lambda m, i: m.edit(i, "add a cat", rounds="3"), "rounds: '3' is no whole"),
    "rounds of a stream": (lambda m, i: m.stream(STAR, rounds=1.5), "rounds: 1.5 is no whole"),
    "no seed": (lambda m, i: m.draw(STAR, seed=None), "seed: None is no whole number; give 0 or"),
    "seed below 0": (lambda m, i: m.draw(STAR, seed=-1), "seed: -1 is too small"),
    "seed of an edit": (lambda m, i: m.edit(i, "add a cat", seed=-1), "seed: -1 is too small"),
    "seed of a stream": (lambda m, i: m.stream(STAR, seed=-1), "seed: -1 is too small"),
    "temperature as truth": (lambda m, i: m.draw(STAR, temperature=False), "temperature: False"),
    "Prompt without text": (lambda m, i: m.draw(Prompt(None)), "prompt: None is no text; say"),
    "bytes": (lambda m, i: m.draw(b"cup"), "prompt: b'cup' is no text"),
    "source": (lambda m, i: m.draw(Prompt("add a cat", 3)), "source: int is no picture"),
    "codes": (
        lambda m, i: m.draw(Prompt("add a cat", i, (1, 2))),
        r"codes: \(1, 2\) are not",
    ),
    "codes without source": (
        lambda m, i: m.draw(Prompt(STAR, None, (1,))),
        "codes: they are",
    ),
    "code beyond": (
        lambda m, i: m.draw(Prompt("add a cat", i, (10**6,) * m.codes_per_image)),
        "codes: 1000000 is above the last one, ",
    ),
    "no instruction": (lambda m, i: m.edit(i, None), "instruction: None is no text; say what to"),
    "instruction": (lambda m, i: m.edit(i, [3]), "instruction: 3 is no text"),
    "nothing to judge by": (lambda m, i: m.judge(i, None), "prompt: None is no text; say what the"),
    "judged by a number": (lambda m, i: m.judge([i, i], 3), "prompt: 3 is no text"),
    "judged by a blank": (
        lambda m, i: m.judge(i, " "),
        "prompt: it is empty; say what the image should show",
    ),
    "judged source": (lambda m, i: m.judge(i, "add a cat", source=3), "source: int is no picture"),
    "no question": (lambda m, i: m.ask(i, None), "question: None is no text; ask something"),
    "questions": (lambda m, i: m.ask([i], [None]), "question: None is no text"),
    "longest answer": (
        lambda m, i: m.ask(i, "why?", max_tokens="3"),
        "max_tokens: '3' is no",
    ),
    "part of a token": (lambda m, i: m.ask(i, "why?", max_tokens=1.5), "max_tokens: 1.5 is no"),
    "batch_size": (lambda m, i: secondlook.load("mini", batch_size="3"), "batch_size: '3' is no"),
    "saved nowhere": (lambda m, i: m.save(None), "out: None is no path; give a text or a Path"),
    "pushed nowhere": (lambda m, i: m.push_to_hub(None), "repo: None is not a name on the hub"),
    "lengths": (lambda m, i: m.judge([i, i], [STAR]), "prompt: 1 are given for 2 images"),
    "threshold": (lambda m, i: m.judge(i, STAR, threshold=2.0), "threshold: 2.0"),
    "question": (lambda m, i: m.ask(i, ""), "question: it is empty"),
    "dtype": (lambda m, i: secondlook.load("mini", dtype="half"), "dtype: 'half' is unknown"),
    "device": (lambda m, i: secondlook.load("mini", device="cuda:99"), "device: 'cuda:99' is not"),
    "saved in 8 bits": (lambda m, i: Model(m.engine, "", True).save("x"), "dtype: weights in 8"),
    "model": (lambda m, i: secondlook.load("nonesuch"), "model: 'nonesuch': no such folder; it is"),
    "no model": (lambda m, i: secondlook.load(""), "model: it is empty; give one of mini, "),
    "model's path": (lambda m, i: secondlook.load("./out/typo"), "'./out/typo': no such folder"),
    "model with a slash": (lambda m, i: secondlook.load("typo/"), "'typo/': no such folder; it is"),
}


def test_a_mistyped_folder_may_look_like_a_hub_id(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("401 Client Error")

    monkeypatch.setattr("secondlook.models.janus.checkpoint.snapshot_download", refuse)
    sentence = (
        "^model: 'out/typo': no such folder, and it could not be fetched from the hub: "
        "401 Client Error$"
    )
    with pytest.raises(secondlook.InputError, match=sentence):
        secondlook.load("out/typo")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case, model, episode):
    call, words = BAD[case]
    with pytest.raises(secondlook.InputError, match=words) as raised:
        call(model, episode.image)
    assert "\n" not in str(raised.value)
