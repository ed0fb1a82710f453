"""Every recorded output of the original code: parts, preprocessing, prompts, and greedy introspection stage by stage.

The weights are made from names (tests/golden/make_weights.py). Between the first image and what follows lies a truncation to 8
bits, so each stage starts from the stored output of the one before it.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from folders import GOLDEN
from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.models import sampling
from secondlook.models.janus.model import Janus, cover, decode, encode, letterbox, to_bytes
from secondlook.models.janus.segments import assemble
from secondlook.types import ImageCodes, PositionSkip, Prompt, Request, SamplingParams, TokenIds, Turn

TINY = GOLDEN / "official_tiny"
RUNS = json.loads((TINY / "introspection.json").read_text())["runs"]
PROMPTS = json.loads((TINY / "prompts.json").read_text())
GUIDED = SamplingParams("code", guidance=5.0, temperature=0.0)


@pytest.fixture(scope="module")
def janus(official_folder):
    return Janus.load(official_folder)


@pytest.fixture(scope="module")
def engine(janus):
    return Engine(janus)


@pytest.fixture(scope="module")
def stored():
    return np.load(TINY / "golden.npz")


@pytest.fixture(scope="module")
def runs():
    return np.load(TINY / "introspection.npz")


@pytest.fixture(scope="module")
def near(stored):
    """Assert that a tensor equals a stored array within its stated tolerance."""
    tolerance = {k: v["tolerance"] for k, v in json.loads((TINY / "golden.json").read_text())["arrays"].items()}

    def check(name, got):
        want = stored[name]
        got = np.asarray(got.detach() if isinstance(got, torch.Tensor) else got).reshape(want.shape)
        assert np.abs(got.astype(np.float64) - want.astype(np.float64)).max() <= tolerance[name], name

    return check


def picture(name):
    return Image.open(TINY / f"image_{name}.png").convert("RGB")


def noise(seed, uniform=False):
    rng = np.random.default_rng(seed)
    shape = (1, 3, 384, 384)
    drawn = rng.uniform(-1, 1, shape).astype(np.float32) if uniform else rng.standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(drawn)


@pytest.mark.parametrize("name", ["wide", "tall", "large", "small", "thin"])
def test_preprocessing(near, name, janus):
    near(f"seen_{name}", np.asarray(letterbox(picture(name), 384)))
    if name != "thin":
        near(f"drawn_{name}", np.asarray(cover(picture(name), 384)))
    pixels = janus.seen([picture(name)])[0].permute(1, 2, 0)
    assert (pixels - (torch.tensor(np.asarray(letterbox(picture(name), 384))) / 255 - 0.5) / 0.5).abs().max() <= 1.2e-7


@torch.inference_mode()
def test_seeing(near, janus):
    features = janus.net.model.vision_model(noise(101)).last_hidden_state
    near("siglip_features_every16", features[0, ::16])
    near("aligned_features", janus.embed_seen(noise(101))[0])
    near("aligned_features_png", janus.embed_seen(janus.seen([picture("wide")]))[0, ::4])


@torch.inference_mode()
def test_text_and_code_embeddings(near, janus, stored):
    ids = torch.tensor(stored["text_ids"]).long()
    near("text_logits", janus.text_logits(janus.hidden(janus.embed_text(ids))))
    near("code_embeddings", janus.embed_codes(torch.tensor(stored["codes"][:, :64]).long()))


@torch.inference_mode()
def test_drawing_logits(near, janus, engine, stored):
    prompt = engine.template.draw(next(iter(PROMPTS["captions"])))
    codes = tuple(stored["codes"][0].tolist())
    twin = engine.template.unconditional(prompt)
    cond, uncond = (sampling.completion_hidden(janus, [p], [ImageCodes(codes)])[0] for p in (prompt, twin))
    steps = stored["draw_logit_positions"] - stored["draw_logit_positions"][0]
    near("draw_hidden", cond[steps])
    near("draw_logits", janus.code_logits(cond[steps]))
    near("draw_logits_unconditional", janus.code_logits(uncond[steps]))
    sampling_params = SamplingParams("code", guidance=5.0)
    near("draw_logits_guided_top8", sampling.logits(janus, sampling_params, cond[steps], uncond[steps]).topk(8).indices)
    near("draw_logprobs", sampling.score(janus, engine.template, [Turn("draw", prompt, codes, (), sampling_params, 0)]).double())


@torch.inference_mode()
def test_codes_to_pixels_and_back(near, janus, stored):
    vq = janus.net.model.vqmodel
    pixels = decode(vq, torch.tensor(stored["codes"]).long())
    near("decoded_float16", pixels[0])
    near("decoded_crop", pixels[0, :, 100:164, 200:264])
    near("decoded_png_crop", to_bytes(pixels)[0, 100:164, 200:264])
    latents = []
    with vq.quant_conv.register_forward_hook(lambda module, inputs, latent: latents.append(latent)):
        codes = janus.to_codes([picture("wide")])
    near("encoded_wide_latent", latents[0][0])
    near("encoded_wide_quantised", F.normalize(vq.quantize.embedding(codes[0]), dim=-1).T)
    settled = {name: stored[f"encoded_{name}_margin"] > 1e-5 for name in ("wide", "noise")}
    for name, got in (("wide", codes[0]), ("noise", encode(vq, noise(303, uniform=True))[0])):
        assert (got.numpy() == stored[f"encoded_{name}_codes"])[settled[name]].all()


@torch.inference_mode()
def test_an_image_question(near, janus, engine, stored):
    row = engine.template.ask(picture("wide"), "What color is the car on the left?")
    batch = assemble(janus, [row])
    ids = [i for s in row for i in (s.ids if isinstance(s, TokenIds) else [janus.net.config.image_token_id] * 576)]
    near("question_input_ids", np.array([ids]))
    near("question_images_seq_mask", np.array([i == janus.net.config.image_token_id for i in ids]))
    near("question_embeddings_every24", batch.embeds[0, ::24])
    near("question_logits_last16", janus.text_logits(janus.hidden(batch.embeds))[0, -16:])


@pytest.fixture(scope="module")
def first_codes(engine):
    """Codes of every caption of the runs, drawn together."""
    captions = sorted({c for run in RUNS.values() for c in run["captions"]})
    turns = engine.draw([Request("draw", engine.template.draw(c), 0) for c in captions], GUIDED)
    return {caption: turn.tokens for caption, turn in zip(captions, turns, strict=True)}


@pytest.mark.parametrize("name", list(RUNS))
def test_first_codes(name, first_codes, runs):
    """Also those of the padded pair: its padding is masked while it draws."""
    for b, caption in enumerate(RUNS[name]["captions"]):
        assert list(first_codes[caption]) == runs[f"{name}/codes1"][b].tolist()


@pytest.mark.parametrize(
    "name", ["single_a", *(pytest.param(n, marks=pytest.mark.slow) for n in RUNS if n != "single_a")]
)
def test_first_pictures(name, engine, runs):
    """Pixels of the stored codes; decoding one picture of full size takes seconds."""
    stored = [tuple(codes) for codes in runs[f"{name}/codes1"].tolist()]
    for image, recorded in zip(engine.pictures(stored), runs[f"{name}/image1"], strict=True):
        levels = np.abs(np.asarray(image).astype(int) - recorded)
        assert levels.max() <= 1 and (levels > 0).sum() <= 1000


ALONE = ["single_a", "single_b", "pair_equal"]
"""Runs without left padding, to which the public code lets its judge and its redraw attend."""


def rows(name, runs, template):
    """(stored first image, caption, reason as sampled, the redraw's segments from what is stored) of a run's rows."""
    run = RUNS[name]
    for b, caption in enumerate(run["captions"]):
        kept = [i for i in run["reason_ids"][b] if i != template.pad]
        masked = run["reason_attention_mask"][b].count(0)
        segments = template.redraw(caption, [tuple(runs[f"{name}/reencoded"][b].tolist())], [tuple(kept)])
        # a short reason is filled up to the batch's longest; what is masked keeps its positions
        segments = tuple(PositionSkip(masked) if isinstance(s, PositionSkip) else s for s in segments)
        yield Image.fromarray(runs[f"{name}/image1"][b]), caption, tuple(kept), segments


@pytest.mark.parametrize("name", ALONE)
def test_verdicts_and_reasons(name, engine, runs):
    template, longest = engine.template, RUNS[name]["max_reflect_len"]
    sampling_params = SamplingParams("text", temperature=0.0, first=(template.yes, template.no))
    stored = list(rows(name, runs, template))
    asked = [template.judge(caption, [image], []) for image, caption, _, _ in stored]
    turns = engine.write([Request("judge", a, 0) for a in asked], sampling_params, longest)
    assert [t.tokens for t in turns] == [reason for _, _, reason, _ in stored]
    for b, turn in enumerate(turns):
        hidden, _, _ = sampling.completion_hidden(engine.janus, [turn.segments], [TokenIds(turn.tokens)])
        logits = engine.janus.text_logits(hidden).detach().numpy()
        assert np.abs(logits - runs[f"{name}/text_logits"][: len(turn.tokens), b]).max() <= 1e-3


@pytest.mark.parametrize("name", [pytest.param("single_b", marks=pytest.mark.slow), "pair_equal"])
def test_encoding_again(name, engine, runs):
    codes = np.array(engine.codes([Image.fromarray(i) for i in runs[f"{name}/image1"]]))
    settled = runs[f"{name}/reencode_margin"] > 1e-5
    assert (codes == runs[f"{name}/reencoded"])[settled].all()


@pytest.fixture(scope="module")
def redrawn(engine, runs):
    """The redraws of all runs in ALONE, drawn together: run -> one turn a row."""
    segments = {name: [row[3] for row in rows(name, runs, engine.template)] for name in ALONE}
    requests = [Request("redraw", s, 0) for name in ALONE for s in segments[name]]
    turns = iter(engine.draw(requests, GUIDED))
    return {name: [next(turns) for _ in segments[name]] for name in ALONE}


@pytest.mark.parametrize("name", ALONE)
def test_redraws(name, engine, runs, redrawn):
    turns = redrawn[name]
    for turn in turns:
        assert len([s for s in turn.segments if isinstance(s, PositionSkip)]) == 1
    assert [list(t.tokens) for t in turns] == runs[f"{name}/codes2"].tolist()
    for number, kind in ((1, "draw"), (2, "redraw")):
        for b, turn in enumerate(turns):
            if kind == "draw":
                turn = replace(turn, segments=turn.segments[:3], tokens=tuple(runs[f"{name}/codes1"][b].tolist()))
            cond, uncond = (
                sampling.completion_hidden(engine.janus, [s], [ImageCodes(turn.tokens)])[0]
                for s in (turn.segments, engine.template.unconditional(turn.segments))
            )
            guided = sampling.logits(engine.janus, GUIDED, cond, uncond)
            for step in (0, 1, 575):
                top = guided[step].topk(8)
                assert top.indices.tolist() == runs[f"{name}/draw{number}_step{step}_top8_ids"][b].tolist()
                wanted = torch.tensor(runs[f"{name}/draw{number}_step{step}_top8_guided"][b])
                assert (top.values - wanted).abs().max() <= 2e-3


def test_the_whole_loop_encodes_again(engine, runs, monkeypatch):
    """A published checkpoint says nothing of its history: it is drawn, judged and redrawn as the public code does.

    The codes become the stored picture, which between the stages lost all but 8 bits a channel.
    """
    caption = "a clock above a fireplace"
    assert RUNS["single_b"]["captions"] == [caption]
    # (1, 3, 384, 384) in [-1, 1]; half a level more, since pixels are truncated to bytes
    drawn = (torch.from_numpy(runs["single_b/image1"]).permute(0, 3, 1, 2) + 0.5) / 127.5 - 1
    monkeypatch.setattr("secondlook.engine.image_codec.decode", lambda vq, codes: drawn)
    [episode] = run_episodes(engine, [Prompt(caption)], [0], 2, SamplingConfig(5.0, 0.0, 0, 0, 24))
    assert list(episode.rounds[0].codes) == runs["single_b/codes1"][0].tolist() and not episode.rounds[0].yes
    assert np.array_equal(np.asarray(episode.rounds[0].image), runs["single_b/image1"][0])
    history = [s for s in episode.turns[2].segments if not isinstance(s, TokenIds)]
    codes_again, gap = history
    settled = (runs["single_b/reencode_margin"] > 1e-5).reshape(-1)
    assert (np.array(codes_again.codes) == runs["single_b/reencoded"][0])[settled].all()
    assert gap == PositionSkip(1)
