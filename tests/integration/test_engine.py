"""The engine: what it records is what a teacher-forced pass computes; forks, neighbours and seeds
change nothing."""

import copy

import pytest
import torch
from PIL import Image

from secondlook import episode as episode_module
from secondlook.engine import prefill
from secondlook.engine import running_batch as batch_module
from secondlook.engine.engine import Engine
from secondlook.engine.requests import GenerateRequest
from secondlook.engine.running_batch import RunningBatch
from secondlook.episode import SamplingConfig, run_episodes
from secondlook.errors import InputError
from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.segments import assemble, columns_of, in_common, length, rest
from secondlook.models.janus.template import ChatTemplate
from secondlook.train.activation_checkpointing import activation_checkpointing
from secondlook.types import ImageCodes, Prompt, Request, SamplingParams, TokenIds

PROMPTS = [
    "a photo of a red star",
    "a photo of two cats",
    "a photo of a blue cup left of an orange umbrella",
]


def episodes(engine, n, guidance, rounds=3, seeds=None):
    prompts = [Prompt(PROMPTS[i % len(PROMPTS)]) for i in range(n)]
    return run_episodes(
        engine,
        prompts,
        seeds or list(range(n)),
        rounds,
        SamplingConfig(guidance=guidance, code_top_k=50),
    )


@pytest.fixture(scope="module")
def exact(engine):
    """The model in float64: in float32 another batch rounds otherwise, and codes on the edge of the
    top-k change places."""
    return Engine(Janus(copy.deepcopy(engine.janus.net).double(), engine.janus.processor))


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("n", [1, 8])
def test_recorded_logprobs_equal_teacher_forced_ones(engine, n, guidance):
    turns = [t for e in episodes(engine, n, guidance) for t in e.turns]
    assert {t.kind for t in turns} >= {"draw", "judge"}
    for sampling_params in {t.sampling_params for t in turns}:
        mine = [t for t in turns if t.sampling_params == sampling_params]
        with torch.no_grad():
            scored = sampling.score(engine.janus, engine.template, mine)
        recorded = torch.tensor([p for t in mine for p in t.logprobs])
        assert torch.isfinite(recorded).all()
        assert (scored - recorded).abs().max() <= 1e-4


def test_rows_of_like_length_are_prefilled_together():
    lengths = [10, 3, 9, 10, 8, 1, 7]
    groups = sampling.bucket_by_length(lengths)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(
        min(lengths[i] for i in g) >= sampling.SHORTEST * max(lengths[i] for i in g) for g in groups
    )


def test_packed_turns_are_scored_as_alone(engine):
    """Turns of many lengths in one row do not see each other."""
    turns = [t for e in episodes(engine, 8, 1.0) for t in e.turns if t.kind == "judge"]
    assert len({len(t.segments) for t in turns}) > 1, "episodes of several rounds are needed here"
    with torch.no_grad():
        together = sampling.score(engine.janus, engine.template, turns)
        alone = torch.cat([sampling.score(engine.janus, engine.template, [t]) for t in turns])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_half_precision_on_a_cpu_scores_and_learns_the_same(engine):
    """There attention is in matrix products, for the fused function's gradient is slow."""
    turns = [t for e in episodes(engine, 8, 1.0) for t in e.turns if t.kind == "judge"]
    prompts = [turn.segments for turn in turns]
    completions = [TokenIds(turn.tokens) for turn in turns]
    found = {}
    for is_half in (False, True):
        janus = Janus(copy.deepcopy(engine.janus.net).train(), engine.janus.processor)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            losses, _ = sampling.cross_entropy(janus, prompts, completions)
        losses.mean().backward()
        weight = janus.net.model.language_model.layers[0].self_attn.k_proj.weight
        found[is_half] = losses.detach(), weight.grad
        assert losses.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0.05, atol=0.05)
    similarity = torch.cosine_similarity(found[True][1].flatten(), found[False][1].flatten(), dim=0)
    assert similarity > 0.995


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_gradients_of_scores(engine, guidance, monkeypatch):
    """Parts of the logits, and activations computed again, against everything at once."""
    janus = engine.janus
    turns = [t for e in episodes(engine, 4, guidance) for t in e.turns]
    parameters = [p for p in janus.net.parameters() if p.requires_grad]
    wanted = torch.linspace(-1, 1, sum(len(t.tokens) for t in turns))
    found = {}
    for name, at_once, how in (
        ("whole", 2**24, "none"),
        ("parts", 5000, "selective"),
        ("again", 2**24, "full"),
        ("plain", 0, "none"),
    ):
        for p in parameters:
            p.grad = None
        monkeypatch.setattr(sampling, "AT_ONCE", at_once)
        for sampling_params in sorted({t.sampling_params for t in turns}, key=repr):
            mine = [t for t in turns if t.sampling_params == sampling_params]
            with activation_checkpointing(janus, how):
                if name == "plain":  # autograd's own derivative of the same log-probabilities
                    done = [
                        ImageCodes(t.tokens)
                        if sampling_params.head == "code"
                        else TokenIds(t.tokens)
                        for t in mine
                    ]
                    sides = [
                        [t.segments for t in mine],
                        [engine.template.unconditional(t.segments) for t in mine],
                    ]
                    (cond, tokens, first), (uncond, *_) = (
                        sampling.completion_hidden(janus, s, done) for s in sides
                    )
                    logits = sampling.logits(janus, sampling_params, cond, uncond)
                    logp = (
                        sampling.log_probs(sampling_params, logits, first)
                        .gather(-1, tokens[:, None])
                        .squeeze(-1)
                    )
                else:
                    logp = sampling.score(janus, engine.template, mine)
                (logp * wanted[: len(logp)]).sum().backward()
        found[name] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        assert not janus.net.model.language_model.training
    for p in parameters:
        p.grad = None
    for name in ("parts", "again", "plain"):
        assert (found[name] - found["whole"]).norm() < 1e-5 * found["whole"].norm(), name


def test_rounds_go_on_only_after_no(engine):
    found = episodes(engine, 24, 1.0)
    assert {len(e.rounds) for e in found} > {1}, "the random judge must say both Yes and No here"
    for e in found:
        assert all(not r.yes for r in e.rounds[:-1])
        assert e.rounds[-1].yes or len(e.rounds) == 3
        assert [t.kind for t in e.turns] == ["draw", "judge", "redraw", "judge", "redraw", "judge"][
            : 2 * len(e.rounds)
        ]
        if not e.rounds[-1].yes:
            assert e.rounds[e.final].p_yes == max(r.p_yes for r in e.rounds)
        else:
            assert e.final == len(e.rounds) - 1


def test_results_do_not_depend_on_neighbours(exact):
    engine = exact
    together = episodes(engine, 6, 3.0)
    for i, e in enumerate(together):
        [alone] = run_episodes(
            engine, [e.prompt], [i], 3, SamplingConfig(guidance=3.0, code_top_k=50)
        )
        assert [r.codes for r in alone.rounds] == [r.codes for r in e.rounds]
        assert [r.reason for r in alone.rounds] == [r.reason for r in e.rounds]
        for a, b in zip(alone.turns, e.turns, strict=True):
            assert torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-4)


def test_seeds_decide(engine):
    sampling_params = SamplingParams("code", top_k=50)
    segments = engine.template.draw(PROMPTS[0])
    a, b, c = engine.draw([Request("draw", segments, s) for s in (1, 2, 1)], sampling_params)
    assert a.tokens == c.tokens != b.tokens


def test_forked_prefill_equals_separate_prefill(engine):
    sampling_params = SamplingParams("code", guidance=2.0)
    requests = [Request("draw", engine.template.draw(PROMPTS[i % 2]), i) for i in range(6)]
    grouped = engine.draw(requests, sampling_params)
    for request, turn in zip(requests, grouped, strict=True):
        [alone] = engine.draw([request], sampling_params)
        assert alone.tokens == turn.tokens
        assert torch.allclose(torch.tensor(alone.logprobs), torch.tensor(turn.logprobs), atol=1e-4)


def mixed(engine) -> list[GenerateRequest]:
    """Jobs of every kind, guidance and length, and pictures that are seen and drawn."""
    template, n = engine.template, engine.janus.n_codes
    [picture] = engine.pictures([tuple(range(n))])
    jobs = [
        GenerateRequest(Request("draw", template.draw(p), i), SamplingParams("code", g, 1.0, 50), n)
        for i, (p, g) in enumerate(zip(PROMPTS * 2, [1.0, 5.0, 2.0, 1.0, 2.0, 5.0], strict=True))
    ]
    judged = SamplingParams("text", first=(template.yes, template.no), top_k=50)
    jobs += [
        GenerateRequest(
            Request("judge", template.judge(p, [picture] * (i + 1), ["No, it is not."] * i), i),
            judged,
            5 + 3 * i,
        )
        for i, p in enumerate(PROMPTS)
    ]
    jobs.append(
        GenerateRequest(
            Request("ask", template.ask(picture, "what is it?"), 9),
            SamplingParams("text", temperature=0.0),
            12,
        )
    )
    codes = [tuple(range(n)), tuple(range(n, 2 * n))]
    redraw = template.redraw(PROMPTS[0], codes, ["No, it is not."] * 2)
    return [
        *jobs,
        GenerateRequest(Request("redraw", redraw, 4), SamplingParams("code", 3.0, 0.0), n),
    ]


async def one(job):
    return await job


def test_all_kinds_share_a_batch(exact):
    """Alone, together, in another order, and entering as others leave: the same tokens."""
    jobs = mixed(exact)
    alone = [exact.run([one(job)])[0] for job in jobs]
    order = torch.randperm(len(jobs), generator=torch.Generator().manual_seed(0)).tolist()
    for batch in (3, 64):
        engine = Engine(exact.janus, batch)
        for places in (range(len(jobs)), order):
            found = engine.run([one(jobs[i]) for i in places])
            for i, turn in zip(places, found, strict=True):
                assert turn.tokens == alone[i].tokens and turn.p_yes == pytest.approx(
                    alone[i].p_yes
                )
                assert turn.logprobs == pytest.approx(alone[i].logprobs, abs=1e-6)


def test_places_are_filled_as_they_fall_free(exact, monkeypatch):
    widths: list[int] = []
    advance = RunningBatch.advance
    monkeypatch.setattr(
        RunningBatch, "advance", lambda rows: (widths.append(len(rows.sequences)), advance(rows))[1]
    )
    jobs = mixed(exact)
    Engine(exact.janus, 4).run([one(job) for job in jobs])
    assert max(widths) == 4 and len(widths) < sum(
        sorted((j.max_tokens for j in jobs), reverse=True)[: len(jobs) // 2]
    )


@pytest.mark.parametrize("sees", ["chain", "last"])
@pytest.mark.parametrize("is_edit", [False, True])
def test_a_judge_that_rereads_fits_in_what_was_reckoned_for_it(engine, sees, is_edit):
    janus = Janus(copy.deepcopy(engine.janus.net), engine.janus.processor)
    janus.judge_rereads, janus.redraw_sees = True, sees
    rereading = Engine(janus)
    sampling_config = SamplingConfig(guidance=3.0, code_top_k=50, reason_tokens=20)
    source = Image.new("RGB", (48, 48), "white") if is_edit else None
    prompts = [Prompt(text, source) for text in PROMPTS] * 2
    need = episode_module._need(rereading, prompts, 3, sampling_config)
    drawn = run_episodes(rereading, prompts, list(range(6)), 3, sampling_config)
    longest = max(
        length(turn.segments, janus.n_patches) + len(turn.tokens)
        for episode in drawn
        for turn in episode.turns
    )
    assert any(len(episode.rounds) == 3 for episode in drawn)
    # a judge that sees the last image alone has less than what a redraw has
    unseen = janus.n_patches + 50 if sees == "last" else 0
    assert longest <= need.longest < longest + 3 * 20 + 30 + unseen, "reasons may end early"


def test_what_was_kept_is_not_computed_again(exact, monkeypatch):
    """A redraw goes on from the draw's cache, a second verdict from the first one's; without it the
    same is drawn."""
    prefilled: list[int] = []
    assemble = batch_module.assemble
    monkeypatch.setattr(
        batch_module,
        "assemble",
        lambda janus, parts: (
            prefilled.append(sum(length(p, janus.n_patches) for p in parts)),
            assemble(janus, parts),
        )[1],
    )
    kept = episodes(exact, 6, 3.0)
    assert any(len(e.rounds) == 3 for e in kept)
    short = sum(prefilled)
    prefilled.clear()
    monkeypatch.setattr(prefill, "in_common", lambda columns, earlier: 0)
    for a, b in zip(kept, episodes(exact, 6, 3.0), strict=True):
        assert [t.tokens for t in a.turns] == [t.tokens for t in b.turns]
        for t, u in zip(a.turns, b.turns, strict=True):
            assert t.logprobs == pytest.approx(u.logprobs, abs=1e-6)
    assert short < 0.7 * sum(prefilled)


def test_a_sequence_may_be_taken_up_anywhere(engine):
    template, patches = ChatTemplate(engine.janus.tokenizer, "reencode"), engine.janus.n_patches
    [picture] = engine.pictures([tuple(range(engine.janus.n_codes))])
    chain = template.redraw(PROMPTS[0], [(1, 2, 3), (4, 5)], ["No, it is not."] * 2)
    for segments in (chain, template.judge(PROMPTS[0], [picture, picture], ["No, it is not."])):
        columns = columns_of(segments, patches)
        assert len(columns) == length(segments, patches)
        batch = assemble(engine.janus, [segments])
        assert [position for position, _, _ in columns] == batch.positions[0].tolist()
        for start in {in_common(columns, columns[:n]) for n in range(len(columns) + 1)}:
            left, position = rest(segments, start, patches)
            assert columns[start:] == [
                (p + position, kind, v) for p, kind, v in columns_of(left, patches)
            ]
            torch.testing.assert_close(
                assemble(engine.janus, [left]).embeds[0], batch.embeds[0, start:]
            )


def test_joined_weights_are_still_the_layers_own(janus, tmp_path):
    """Layers of one input are multiplied as one; what trains, saves and copies them sees each one's
    own weights."""
    janus = copy.deepcopy(janus)
    engine, sampling_params = Engine(janus), SamplingParams("code", temperature=0.0)
    requests = [Request("draw", engine.template.draw(p), 0) for p in PROMPTS]
    drawn = [t.tokens for t in engine.draw(requests, sampling_params)]
    attention = janus.net.model.language_model.layers[0].self_attn
    assert (
        attention.q_proj.weight.untyped_storage().data_ptr()
        == attention.v_proj.weight.untyped_storage().data_ptr()
    )

    janus.save(tmp_path)
    assert [t.tokens for t in Engine(Janus.load(tmp_path)).draw(requests, sampling_params)] == drawn

    optimizer = torch.optim.SGD(janus.net.parameters(), lr=30.0)
    (janus.hidden(janus.embed_text(torch.arange(9)[None])) - 1).pow(2).mean().backward()
    optimizer.step()
    after = [t.tokens for t in engine.draw(requests, sampling_params)]
    assert after != drawn
    for layer in (
        janus.net.model.language_model.layers
    ):  # as an adapter's layers: anything that can be called
        layer.self_attn.k_proj = torch.nn.Sequential(layer.self_attn.k_proj)
        layer.mlp.up_proj = torch.nn.Sequential(layer.mlp.up_proj)
    assert [t.tokens for t in engine.draw(requests, sampling_params)] == after
    assert [t.tokens for t in Engine(copy.deepcopy(janus)).draw(requests, sampling_params)] == after


def test_batches_are_split(engine):
    requests = [Request("draw", engine.template.draw(PROMPTS[i % 3]), i) for i in range(5)]
    sampling_params = SamplingParams("code")
    assert [t.tokens for t in Engine(engine.janus, batch=2).draw(requests, sampling_params)] == [
        t.tokens for t in engine.draw(requests, sampling_params)
    ]


def test_greedy_drawing_equals_a_loop_without_cache(engine):
    """transformers' own image generation, guidance 3, against this engine."""
    janus = engine.janus
    [turn] = engine.draw(
        [Request("draw", engine.template.draw(PROMPTS[2]), 0)],
        SamplingParams("code", guidance=3.0, temperature=0.0),
    )
    ids = torch.tensor([[i for s in engine.template.draw(PROMPTS[2]) for i in s.ids]])
    embeds = janus.embed_text(ids)
    twin = janus.embed_text(
        torch.tensor(
            [
                [
                    i
                    for s in engine.template.unconditional(engine.template.draw(PROMPTS[2]))
                    for i in s.ids
                ]
            ]
        )
    )
    codes = []
    with torch.no_grad():
        for _ in range(janus.n_codes):
            cond, uncond = (janus.code_logits(janus.hidden(e)[:, -1]) for e in (embeds, twin))
            codes.append(int((uncond + 3 * (cond - uncond)).argmax()))
            step = janus.embed_codes(torch.tensor([[codes[-1]]]))
            embeds, twin = torch.cat([embeds, step], 1), torch.cat([twin, step], 1)
    assert tuple(codes) == turn.tokens


def test_restriction_applies_to_the_first_token_only(janus):
    logits = torch.randn(4, janus.net.lm_head.out_features)
    sampling_params = SamplingParams("text", top_k=10, first=(5, 7))
    first = sampling.log_probs(sampling_params, logits, first=True).exp()
    assert torch.allclose(first[:, [5, 7]].sum(-1), torch.ones(4))
    mixed = sampling.log_probs(
        sampling_params, logits, first=torch.tensor([True, False, False, True])
    ).exp()
    assert torch.allclose(mixed[0], first[0]) and (mixed[1] > 0).sum() == 10


def test_sampling_follows_the_distribution():
    torch.manual_seed(0)
    log_probs = torch.randn(1, 6).log_softmax(-1)
    uniform = (torch.arange(20000) + 0.5) / 20000
    tokens, chosen = sampling.choose(SamplingParams("text"), log_probs.expand(20000, -1), uniform)
    shares = torch.bincount(tokens, minlength=6) / 20000
    assert torch.allclose(shares, log_probs.exp()[0], atol=1e-3)
    assert torch.equal(chosen, log_probs[0, tokens])


def test_guidance_is_mixed_exactly_before_the_last_layer(janus):
    cond, uncond = torch.randn(2, 3, janus.net.config.text_config.hidden_size)
    mixed = sampling.logits(janus, SamplingParams("code", guidance=5.0), cond, uncond)
    full = janus.code_logits(uncond) + 5 * (janus.code_logits(cond) - janus.code_logits(uncond))
    assert torch.allclose(mixed, full, atol=1e-4)


@pytest.mark.parametrize(("rounds", "seeds"), [(0, [0]), (1, [0, 1])])
def test_bad_requests_are_refused(engine, rounds, seeds):
    with pytest.raises(InputError):
        run_episodes(engine, [Prompt("a photo of a cat")], seeds, rounds)


def test_wrong_head_is_refused(engine):
    with pytest.raises(ValueError, match="head"):
        engine.draw([], SamplingParams("text"))
