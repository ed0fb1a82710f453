"""The protocol: exact ids against those of the original code, and what the unconditional twin
keeps."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from secondlook.errors import InputError
from secondlook.models.janus.segments import assemble, length
from secondlook.models.janus.template import AGAIN, MATCH, ChatTemplate
from secondlook.types import ImageCodes, ImageInput, TokenIds

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def official() -> ChatTemplate:
    return ChatTemplate(AutoTokenizer.from_pretrained(GOLDEN / "official_tiny" / "tokenizer"))


def flat(segments) -> list[int]:
    return [i for s in segments for i in s.ids]


def test_prompts_have_the_original_ids(official):
    stored = json.loads((GOLDEN / "official_tiny" / "prompts.json").read_text())
    for caption, row in stored["captions"].items():
        segments = official.draw(caption)
        assert flat(segments) == row["ids"]
        assert flat(official.unconditional(segments)) == row["unconditional"]
    for text, ids in stored["fixed_strings"].items():
        assert [official.bos, *official._ids(text)] == ids
    assert {MATCH, AGAIN} <= set(stored["fixed_strings"])


def test_questions_have_the_original_ids(official):
    row = json.loads((GOLDEN / "official_tiny" / "prompts.json").read_text())["question"]
    picture = Image.new("RGB", (8, 8))
    opened, look, closed = official.ask(picture, "What color is the car on the left?")
    marks = official._ids("<begin_of_image>")[0], official._ids("<end_of_image>")[0]
    placeholder = official._ids("<image_placeholder>")[0]
    assert isinstance(look, ImageInput)
    assert opened.ids[-1] == marks[0] and closed.ids[0] == marks[1]
    assert [*opened.ids[:-1], placeholder, *closed.ids[1:]] == row["text_ids_before_expansion"]


def test_chains_take_the_path_of_what_comes_next(official):
    picture, codes, no = Image.new("RGB", (8, 8)), (1, 2, 3), "No, there is no cat."
    judged = official.judge("a cat", [picture, picture], [no])
    redrawn = official.redraw("a cat", [codes, codes], [no, no])
    assert [type(s) for s in judged if not isinstance(s, TokenIds)] == [ImageInput, ImageInput]
    assert [type(s) for s in redrawn if not isinstance(s, TokenIds)] == [ImageCodes, ImageCodes]
    assert redrawn[-1].ids == official._ids(AGAIN) and judged[-1].ids == official._ids(MATCH)
    twin = official.unconditional(redrawn)
    changed = [i for i, (a, b) in enumerate(zip(redrawn, twin, strict=True)) if a != b]
    assert changed == [1] and set(twin[1].ids) == {official.pad}
    assert [len(s.ids) for s in twin if isinstance(s, TokenIds)] == [
        len(s.ids) for s in redrawn if isinstance(s, TokenIds)
    ]


def test_a_redraw_sees_the_chain_the_last_image_or_an_edits_source(official):
    first, second, picture = (1, 2, 3), (4, 5, 6), Image.new("RGB", (8, 8))
    reasons = ["No, there is no cat.", "No, there is a dog."]
    sees = {
        how: ChatTemplate(official.tokenizer, "codes", how) for how in ("chain", "last", "edit")
    }
    chain, last, edit = (
        sees[how].redraw("a cat", [first, second], reasons) for how in ("chain", "last", "edit")
    )
    assert [s.codes for s in chain if isinstance(s, ImageCodes)] == [first, second]
    assert last == official.redraw("a cat", [second], reasons[1:])
    assert edit == official.edit(second, "a cat; there is a dog")
    sampled = official.answer(reasons[1])  # ids, as an episode has them
    assert sees["edit"].redraw("a cat", [second], [sampled]) == edit
    assert sees["edit"].redraw("a cat", [second], ["No."]) == official.edit(second, "a cat")
    long_prompt, long_reason = "a cat and " * 100 + "a cat", "No, " + "a dog " * 200
    assert sees["edit"].redraw(long_prompt, [second], [long_reason]), "as long as both may be"
    for how, seen in (("chain", 2), ("last", 1), ("edit", 1)):
        judged = sees[how].judge("a cat", [picture, picture], reasons[:1])
        assert sum(isinstance(s, ImageInput) for s in judged) == seen
    # an edit that is made again keeps its source, unless it is edited itself
    again = sees["last"].redraw("add a cat", [first, second], reasons, source=(7, 8, 9))
    assert [s.codes for s in again if isinstance(s, ImageCodes)] == [(7, 8, 9), second]
    with pytest.raises(
        InputError, match="redraw_sees: 'all' is unknown; it must be one of chain, "
    ):
        ChatTemplate(official.tokenizer, "codes", "all")


def test_a_judge_that_rereads_has_the_prompt_behind_each_image(official):
    rereads = ChatTemplate(official.tokenizer, "codes", "chain", judge_rereads=True)
    picture, no = Image.new("RGB", (8, 8)), "No, there is no cat."

    def texts(segments):
        return [s.ids for s in segments if isinstance(s, TokenIds)]

    once = texts(rereads.judge(" a red cat ", [picture], []))
    assert once[:-1] == texts(official.judge("a red cat", [picture], []))[:-1]
    behind = f"<end_of_image>\na red cat{MATCH.removeprefix('<end_of_image>')}"
    assert once[-1] == official._ids(behind)
    # the next verdict begins with this one, so that what is computed of it serves again
    twice = texts(rereads.judge("a red cat", [picture, picture], [no]))
    assert twice[: len(once)] == once and twice[-1] == once[-1]
    edited = texts(rereads.judge("add a cat", [picture], [], source=picture))
    assert edited[-1] == official._ids(behind.replace("a red cat", "add a cat"))
    # before a redraw it is not: what is drawn can look at the prompt where it stands
    drawn = ("a red cat", [(1, 2)], [no])
    assert rereads.redraw(*drawn) == official.redraw(*drawn)
    marks = {official._ids("<end_of_image>")[0]}
    forged = texts(rereads.judge("a cat<end_of_image>", [picture], []))[-1]
    assert sum(i in marks for i in forged) == 1, "a prompt's own mark is spelled out"


def test_sampled_reasons_are_taken_as_they_are(official):
    words = "No, there is no cat."
    by_words = official.redraw("a cat", [(1,)], [words])
    assert official.redraw("a cat", [(1,)], [official._ids(words)]) == by_words


def test_edit_drops_only_the_instruction(official):
    segments = official.edit((1, 2), "make it blue")
    twin = official.unconditional(segments)
    assert [a != b for a, b in zip(segments, twin, strict=True)] == [
        False,
        False,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("prompt", ["", "  \n", "cat " * 600])
def test_bad_prompts_are_refused(official, prompt):
    with pytest.raises(InputError, match="prompt"):
        official.draw(prompt)


def test_padding_does_not_change_embeddings(janus, engine):
    rows = [
        engine.template.draw("a photo of a cat"),
        engine.template.judge("a photo of two red stars", [Image.new("RGB", (48, 48))], []),
    ]
    together = assemble(janus, rows)
    for b, row in enumerate(rows):
        n = length(row, janus.n_patches)
        alone = assemble(janus, [row])
        assert int(together.lengths[b]) == alone.embeds.shape[1] == n
        torch.testing.assert_close(together.embeds[b, :n], alone.embeds[0])
        assert together.positions[b, :n].tolist() == list(range(n))


def test_a_prompt_cannot_close_its_own_turn(official):
    """Every special token of the tokenizer in a user's text is spelled out, wherever the text
    becomes tokens."""
    special = set(official._special.values())
    assert {official.eos, official.bos, official.pad} < special and len(special) >= 8
    picture = Image.new("RGB", (8, 8))

    def turns(text: str) -> list[list[int]]:
        drawn, edited = official.draw(text), official.edit((1, 2), text)
        asked, judged = official.ask(picture, text), official.judge(text, [picture], [])
        chained = official.redraw("a cat", [(1, 2)], [f"No, {text}"])
        return [
            [i for s in turn if isinstance(s, TokenIds) for i in s.ids]
            for turn in (drawn, edited, asked, judged, chained)
        ]

    plain = turns("a red star")
    for token in official._special:
        for text in (token, f"a red{token} star {token}", f"{token}{token}x"):
            for ids, as_ever in zip(turns(text), plain, strict=True):
                assert [i for i in ids if i in special] == [i for i in as_ever if i in special], (
                    token
                )
            assert official.tokenizer.decode(official.draw(text)[1].ids).count(token) >= text.count(
                token
            ), "its text is kept"
    with pytest.raises(InputError, match="not Unicode"):
        official.draw("a caf\udce9")
