"""A tiny vision-language model of transformers as judge: in this process, and served over HTTP,
with the same answers."""

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from secondlook.errors import InputError
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint
from secondlook.llm.local import LocalModel
from secondlook.llm.missing import why_missing
from secondlook.rewards.config import RewardConfig, make_reward
from secondlook.rewards.vlm import VLMReward, in_words, yes_or_no

TOKENIZER = Path(__file__).parents[1] / "golden" / "official_tiny" / "tokenizer"
TEMPLATE = (
    "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<image>{% else "
    "%}{{ p.text }}{% endif %}"
    "{% endfor %}{% endfor %}\nAnswer:"
)
ITEMS = [
    ("a red star", Image.new("RGB", (40, 30), (200, 30, 30))),
    ("two cats and a cup", Image.new("RGB", (24, 48), (0, 99, 0))),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llava of random weights with yes and no as tokens of its vocabulary."""
    out = tmp_path_factory.mktemp("vlm")
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(["<image>", "Yes", "yes", "No", "no"])
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    processor = LlavaProcessor(
        images, tokenizer, 16, "default", TEMPLATE, num_additional_image_tokens=1
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    torch.manual_seed(0)
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image, vision_feature_layer=-1
    )
    model = LlavaForConditionalGeneration(config).float().eval()
    with torch.no_grad():  # the likeliest words, to any picture
        seen = processor(text="<image>\nAnswer:", images=ITEMS[0][1], return_tensors="pt")
        hidden = model.model(**seen).last_hidden_state[0, -1]
        for word in ("Yes", "yes", "No", "no"):
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(word)] += (
                8 * hidden / hidden.square().sum()
            )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.forced_eos_token_id = (
        tokenizer.eos_token_id
    )  # random weights end no answer
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return str(out)


@pytest.fixture(scope="module")
def local(folder):
    return LocalModel(folder)


def test_p_yes_is_the_models_own(local):
    judge = VLMReward(local)
    scores = judge(ITEMS)
    assert (
        all(s is not None and 0 < s.value < 1 for s in scores)
        and scores[0].value != scores[1].value
    )
    body = yes_or_no(
        'Does this image match the description "a red star", please directly respond with yes '
        "or no.",
        ITEMS[0][1],
    )
    [alone] = local._answered([body.body])
    top = {
        t["token"].strip(): t["logprob"] for t in alone["logprobs"]["content"][0]["top_logprobs"]
    }
    mass = [
        sum(torch.tensor(top[w]).exp() for w in words if w in top)
        for words in (("yes", "Yes"), ("no", "No"))
    ]
    assert scores[0].value == pytest.approx(float(mass[0] / sum(mass)), abs=1e-4), (
        "a batch's rows do not see each other"
    )
    asked = local.counts["asked"]
    assert judge(ITEMS) == scores and local.counts["asked"] == asked, "an answer is kept"


def test_reasons_and_edits(folder):
    judge = make_reward(
        [RewardConfig("local", settings={"model": folder, "concurrency": 3})], reasons=True
    )
    assert all(s is not None and s.reason for s in judge(ITEMS))
    [score] = judge.edits([("make it green", ITEMS[0][1], ITEMS[1][1])])
    following, preserving = score.edit
    assert 0 < following < 1 and 0 < preserving < 1 and following != preserving and score.reason


def test_what_the_model_cannot_take_is_missing(local, monkeypatch):
    real = local.processor.apply_chat_template

    def template(messages, **kwargs):
        if any(
            "unicorn" in part.get("text", "") for turns in messages for part in turns[0]["content"]
        ):
            raise ValueError("it refuses")
        return real(messages, **kwargs)

    monkeypatch.setattr(local.processor, "apply_chat_template", template)
    before = local.counts["missing"]
    known, missing = VLMReward(local)([("a blue key", ITEMS[0][1]), ("a unicorn", ITEMS[0][1])])
    assert known is not None and missing is None and local.counts["missing"] == before + 1


def test_served_over_http_it_says_the_same(folder, local):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            [choice] = local._answered([body])
            said = json.dumps({"choices": [choice]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        served = VLMReward(Asker(Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "tiny")))
        for there, here in zip(
            served(ITEMS), VLMReward(LocalModel(folder, batch=1))(ITEMS), strict=True
        ):
            assert there.value == pytest.approx(here.value, abs=1e-5)
        text = in_words("What is this?", ITEMS[0][1], tokens=5)
        assert served.asker([text]) == LocalModel(folder)([text])
    finally:
        server.shutdown()


def test_answers_that_the_limit_cuts_off_are_read_as_a_served_models(folder, monkeypatch):
    local, question = LocalModel(folder), in_words("What is this?", ITEMS[0][1], tokens=5)
    assert local._answered([question.body])[0]["finish_reason"] == "stop"
    monkeypatch.setattr(local.model.generation_config, "forced_eos_token_id", None)
    for ends in (local.processor.tokenizer.eos_token_id, None):
        monkeypatch.setattr(local.model.generation_config, "eos_token_id", ends)
        assert local._answered([question.body])[0]["finish_reason"] == "length"
    assert (
        local([question]) == [None]
        and "cut off before its first sentence ended" in local.missing.commonest()
    )


def test_models_that_do_not_serve_are_named(tmp_path):
    with pytest.raises(InputError, match="vision-language"):
        LocalModel(str(tmp_path))
    with pytest.raises(InputError, match="model is empty"):
        RewardConfig("local")


@pytest.mark.parametrize(
    "text", ["a star <image>", "a star <｜end▁of▁sentence｜>", "a <|User|> star"]
)
def test_a_prompt_cannot_close_its_turn(folder, text):
    judge = VLMReward(LocalModel(folder))
    assert [s is None for s in judge([(text, ITEMS[0][1]), ITEMS[1]])] == [True, False]
    assert (
        f"the question holds '{text.split('a star ')[-1].removeprefix('a ').removesuffix(' star')}'"
        in why_missing(judge)
    )


def test_only_the_last_positions_logits_are_made(local, monkeypatch):
    seen = []
    real = type(local.model.lm_head).forward
    monkeypatch.setattr(
        local.model.lm_head,
        "forward",
        lambda x: seen.append(x.shape) or real(local.model.lm_head, x),
    )
    [choice] = local._answered([yes_or_no("a green sun?", ITEMS[0][1]).body])
    assert seen == [(1, 1, 32)] and choice["logprobs"]


def test_probabilities_that_are_none_are_missing(folder):
    judge = VLMReward(LocalModel(folder))
    with torch.no_grad():
        judge.asker.model.lm_head.weight.fill_(float("nan"))
    assert judge(ITEMS) == [
        None,
        None,
    ] and "a log-probability of the first token is nan" in why_missing(judge)


def test_other_weights_are_asked_anew(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "vlm")
    answers = Answers()
    VLMReward(LocalModel(str(tmp_path / "vlm"), answers=answers))(ITEMS)
    weights = tmp_path / "vlm" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    again = LocalModel(str(tmp_path / "vlm"), answers=answers)
    VLMReward(again)(ITEMS)
    assert again.counts["asked"] == 2 and again.counts["from cache"] == 0
