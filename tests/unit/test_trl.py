"""GRPO's loss and gradient against trl's on one batch of texts (``pip install -e '.[parity]'``;
skipped without it)."""

import pytest
import torch
from transformers import LlamaForCausalLM

from secondlook.models import sampling
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import ChatTemplate
from secondlook.models.shipped import locate
from secondlook.train.rl.losses import policy_loss
from secondlook.train.rl.micro_batches import pack
from secondlook.train.rl.trajectory import TrajectoryTurn
from secondlook.train.rl.turn_weights import total_weight, weigh
from secondlook.types import SamplingParams, TokenIds, Turn

trl = pytest.importorskip("trl", reason="trl is not installed (the extra 'parity')")
datasets = pytest.importorskip("datasets")
LONGEST = 12
REDUCTIONS = {"grpo": "turn", "bnpo": "token", "dr_grpo": "constant"}


@pytest.mark.parametrize("kind", REDUCTIONS)
def test_loss_and_gradient_are_trls(kind, tmp_path):
    janus = Janus.load(locate("mini-base"), dtype=torch.float64)
    janus.requires_grad_(False)
    language = janus.net.model.language_model.requires_grad_(True)
    theirs = LlamaForCausalLM(language.config).double()
    theirs.model.load_state_dict(language.state_dict())
    theirs.lm_head.load_state_dict(janus.net.lm_head.state_dict())
    theirs.lm_head.requires_grad_(False)
    theirs.model.embed_tokens.requires_grad_(False)
    language.get_input_embeddings().requires_grad_(False)

    rng = torch.Generator().manual_seed(0)
    prompts = [torch.randint(20, 400, (n,), generator=rng).tolist() for n in (7, 5, 9, 6)]
    words = [torch.randint(20, 400, (n,), generator=rng).tolist() for n in (3, LONGEST, 8, 5)]
    advantages = [1.2, -0.7, 0.4, -0.9]
    sampling_params = SamplingParams("text")
    turns = [
        Turn("judge", (TokenIds(tuple(p)),), tuple(w), (0.0,) * len(w), sampling_params, 0)
        for p, w in zip(prompts, words, strict=True)
    ]
    template = ChatTemplate(janus.tokenizer)
    with torch.no_grad():
        now = sampling.score(janus, template, turns).split([len(w) for w in words])
    noise = [torch.randn(len(w), generator=rng).double() * 0.3 for w in words]
    behaviour, reference = (
        [a + n for a, n in zip(now, noise, strict=True)],
        [a - n / 2 for a, n in zip(now, noise, strict=True)],
    )

    turns = [
        Turn(t.kind, t.segments, t.tokens, tuple(b.tolist()), sampling_params, 0)
        for t, b in zip(turns, behaviour, strict=True)
    ]
    learned = []
    for turn, advantage, of_reference in zip(turns, advantages, reference, strict=True):
        learned.append(TrajectoryTurn("judge", 0.5, turn, advantage=advantage))
        learned[-1].reference_logprobs = tuple(of_reference.tolist())
        weigh(learned[-1], REDUCTIONS[kind], LONGEST)
    [batch] = pack(learned, 4)
    columns = [
        batch.behaviour_logprobs,
        batch.reference_logprobs,
        batch.advantages,
        batch.weights,
    ]
    logp = sampling.score(janus, template, batch.turns)
    denominator = total_weight(learned)
    ours = policy_loss(logp, *(c.double() for c in columns), denominator, 0.2, 0.05, 0.28)
    ours.loss.backward()

    def padded(values, left=False, fill=0.0):
        size = max(map(len, values))
        pad = [[fill] * (size - len(v)) for v in values]
        return torch.tensor(
            [[*p, *v] if left else [*v, *p] for v, p in zip(values, pad, strict=True)]
        )

    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        bf16=False,
        loss_type=kind,
        beta=0.0,
        epsilon=0.2,
        epsilon_high=0.28,
        max_completion_length=LONGEST,
        per_device_train_batch_size=4,
        num_generations=4,
        scale_rewards=False,
        use_bias_correction_kl=False,
    )
    prompts_only = datasets.Dataset.from_dict({"prompt": ["a"] * 4})
    trainer = trl.GRPOTrainer(
        theirs, lambda **_: [0.0], settings, prompts_only, processing_class=janus.tokenizer
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = 0.05  # set before, it would load a reference model by its name
    model = trainer.model.double().train()
    ids = {
        "prompt_ids": padded(prompts, left=True, fill=0).long(),
        "prompt_mask": padded([[1] * len(p) for p in prompts], left=True).long(),
        "completion_ids": padded(words, fill=0).long(),
        "completion_mask": padded([[1] * len(w) for w in words]).long(),
        "advantages": torch.tensor(advantages, dtype=torch.float64),
        "old_per_token_logps": padded([b.tolist() for b in behaviour]).double(),
        "ref_per_token_logps": padded([r.tolist() for r in reference]).double(),
        "num_items_in_batch": torch.tensor(sum(map(len, words))),
    }
    loss = trainer._compute_loss(model, ids)
    loss.backward()
    assert float(ours.loss.detach()) == pytest.approx(float(loss.detach()), abs=1e-5)
    found = {n: p.grad for n, p in theirs.model.named_parameters() if p.grad is not None}
    assert len(found) > 10
    for name, p in language.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, found[name], rtol=1e-3, atol=1e-5)
