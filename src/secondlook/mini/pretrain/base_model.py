"""Pretrain a base model: text-to-image, questions about pictures, description, verdicts, and some
chains of redraws.

The seeing encoder and the image tokenizer are frozen (as in Janus-Pro's later stages). Departures,
all for the miniature's two cores: the generation embeddings and the last layer of the generation
head start from the codebook's own vectors (similar codes start near each other; an earlier study
learned colours only so; not run without here); Muon for matrices. Verdicts and chains are a taste
of the protocol, so that the base can be run in the loop; teaching them properly is SFT's job.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionModel,
    JanusVQVAE,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from secondlook.errors import InputError
from secondlook.mini import datasets
from secondlook.models.device import resolve_device
from secondlook.models.janus.model import Janus
from secondlook.models.janus.template import (
    AGAIN,
    ASSISTANT,
    MATCH,
    SPECIALS,
    SYSTEM,
    USER,
    ChatTemplate,
)
from secondlook.models.sampling import cross_entropy
from secondlook.train.muon import Optimizer
from secondlook.train.optim import Average, freeze, hidden_modules, trainable
from secondlook.train.trainer import Trainer
from secondlook.types import ImageCodes, Segment, TokenIds


@dataclass
class BaseConfig:
    """``train base``; ``steps`` may be changed when a run is resumed."""

    start: str = ""
    """A checkpoint to go on from, with its text tokenizer; then the sizes and parts below are its
    own."""
    tokenizer: str = "out/tokenizer/final"
    vision: str = "out/vision/final"
    vocabulary: int = 640
    width: int = 192
    layers: int = 6
    heads: int = 6
    inner: int = 512
    pool: int = 60000
    """Pictures that are encoded once and drawn from again and again."""
    steps: int = 2300
    draws: int = 24
    """Text-to-image sequences a step."""
    questions: int = 40
    """Sequences about a picture a step."""
    kinds: dict[str, float] = field(default_factory=lambda: dict(datasets.KINDS))
    """Shares of the kinds of prompts that are drawn and asked about."""
    asked: dict[str, float] = field(default_factory=lambda: dict(datasets.ASKED))
    """Shares of the kinds of questions (there, parts, describe, verdict); comparing stays at chance
    as one task of many (docs/LOG.md), so that one stage asks nothing but "is there …?"."""
    alone: float = 0.0
    """Share of the pictures asked about that show one object; comparing is learned on these
    first."""
    objects: int = datasets.N_OBJECTS
    """How many classes of objects (the first ones) are asked about; relations are learned on few
    first."""
    aimed: float = 0.0
    """Share of the near misses asked about that attack what the prompt asks for: a relation, a
    count, who has which colour."""
    judge_context: int = 1
    """Most pictures in a verdict's context, the judged one included."""
    chains: int = 8
    """Redraws every ``chain_every`` steps."""
    chain_every: int = 4
    drop_prompt: float = 0.1
    muon_lr: float = 0.02
    adam_lr: float = 3e-3
    weight_decay: float = 0.01
    warmup: int = 100
    """Steps over which the learning rates rise."""
    cooldown: float = 0.35
    """Share of the steps, at the end, over which the learning rates fall linearly to zero."""
    ema: float = 0.995
    seed: int = 0
    threads: int = 2
    device: str = "auto"
    log_every: int = 50
    save_every: int = 250
    guidance: float = 1.0
    """Written to the checkpoint's generation config: the guidance it is sampled with unless told
    otherwise."""
    snapshot_every: int = 250
    """Steps between averaged checkpoints (step-N), for curves of what was learned when."""

    def __post_init__(self) -> None:
        datasets.check_shares("asked", self.asked, datasets.ASKED)
        datasets.check_shares("kinds", self.kinds, datasets.KINDS)
        if not 4 <= self.objects <= datasets.N_OBJECTS:
            raise InputError(
                f"config: objects is {self.objects}; give 4 to {datasets.N_OBJECTS} of the "
                "world's classes"
            )


def text_tokenizer(sentences: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Janus's special tokens, trained on ``sentences`` and the protocol's own
    strings."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fixed = [MATCH, AGAIN, SYSTEM, USER + "a" + ASSISTANT, "Yes", "No"] * 50
    tokenizer.train_from_iterator(sentences + fixed, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    bos = SPECIALS[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=SPECIALS[1],
        pad_token=SPECIALS[2],
        extra_special_tokens={
            "image_token": SPECIALS[3],
            "boi_token": SPECIALS[4],
            "eoi_token": SPECIALS[5],
        },
        additional_special_tokens=list(SPECIALS[6:]),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _part(kind, name: str, path: str):
    """A trained part. transformers fills a foreign folder's missing tensors with random ones; here
    that is an error."""
    if not Path(path).is_dir():
        raise InputError(f"config: {name} = {path!r} is not a folder; run train {name} first")
    try:
        part, info = kind.from_pretrained(path, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"config: {name} = {path!r} could not be loaded ({str(error).splitlines()[0]})"
        ) from error
    if info["missing_keys"] or info["mismatched_keys"]:
        raise InputError(
            f"config: {name} = {path!r} is not what train {name} writes: it lacks "
            f"{sorted(info['missing_keys'])[0]}"
        )
    return part


def new_janus(config: BaseConfig, words: PreTrainedTokenizerFast | None = None) -> Janus:
    """A Janus around a trained tokenizer and seeing encoder, its language model and heads fresh;
    ``words`` is its text tokenizer, else one is trained on the world's sentences."""
    vq = _part(JanusVQVAE, "tokenizer", config.tokenizer)
    vision = _part(JanusVisionModel, "vision", config.vision)
    torch.manual_seed(config.seed)
    words = words or text_tokenizer(datasets.corpus(config.seed, 4000), config.vocabulary)
    vq_config = vq.config.to_dict() | {
        "projection_dim": config.width,
        "image_token_embed_dim": config.width,
    }
    vision_config = vision.config.to_dict() | {"projection_dim": config.width}
    text_config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=config.width,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=2048,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )
    net = JanusForConditionalGeneration(
        JanusConfig(
            text_config=text_config,
            vision_config=vision_config,
            vq_config=vq_config,
            image_token_id=words.convert_tokens_to_ids(SPECIALS[3]),
            tie_word_embeddings=False,
        )
    )
    net.model.vqmodel.load_state_dict(vq.state_dict())
    net.model.vision_model.load_state_dict(vision.state_dict())
    _start(net)
    net.generation_config.guidance_scale = net.generation_config.edit_guidance_scale = (
        config.guidance
    )
    net.generation_config.history = "codes"
    # transformers' own image generation looks for the image's opening there, unless it may derive
    # the config anew
    net.generation_config._from_model_config = False
    net.generation_config.generation_kwargs = {
        "boi_token_id": words.convert_tokens_to_ids(SPECIALS[4])
    }
    size = net.config.vision_config.image_size
    images = JanusImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = JanusProcessor(
        images, words, num_image_tokens=net.config.vision_config.num_image_tokens
    )
    return Janus(net, processor)


@torch.no_grad()
def _start(net: JanusForConditionalGeneration) -> None:
    """Fan-in initialisation, and code tables that start from the codebook's vectors."""
    model = net.model
    for module in (
        model.language_model,
        model.aligner,
        model.generation_aligner,
        model.generation_head,
    ):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
    for layer in model.language_model.layers:
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.mul_((2 * len(model.language_model.layers)) ** -0.5)
    model.language_model.embed_tokens.weight.normal_(std=0.5)
    net.lm_head.weight.normal_(std=0.01)
    codebook = model.vqmodel.quantize.embedding.weight
    model.generation_embeddings.weight.copy_(3 * codebook)
    head = model.generation_head.vision_head
    projection = torch.randn(codebook.shape[1], head.in_features)
    head.weight.copy_(0.02 * codebook @ projection + 0.002 * torch.randn_like(head.weight))
    head.bias.zero_()


class BaseJob:
    """The loop's step and probe, and the model they train."""

    def __init__(self, config: BaseConfig, out: Path):
        self.config = config
        self.janus = Janus.load(config.start).train() if config.start else self._fresh(out)
        self.janus.to(resolve_device(config.device))
        freeze(self.janus)
        self.template = ChatTemplate(self.janus.tokenizer, self.janus.history)
        net = self.janus.net
        self.optimizer = Optimizer(
            net, hidden_modules(net), config.muon_lr, config.adam_lr, config.weight_decay
        )
        self.average = Average(net, config.ema)
        self.trainable = trainable(self.janus)
        self.prompts, self.codes = self._pool(out) if config.draws else ([], torch.empty(0))

    def _fresh(self, out: Path) -> Janus:
        """A new model; a resumed run keeps its text tokenizer, whatever has become of the
        corpus."""
        stored = out / "words"
        words = PreTrainedTokenizerFast.from_pretrained(stored) if stored.is_dir() else None
        janus = new_janus(self.config, words)
        if words is None:
            janus.tokenizer.save_pretrained(stored)
        return janus

    def _pool(self, out: Path) -> tuple[list[str], Tensor]:
        """Prompts and codes of the pool; encoded once and kept in the run's folder."""
        c, path = self.config, out / "pool.pt"
        if path.exists():
            stored = torch.load(path, weights_only=True)
            return stored["prompts"], stored["codes"]
        prompts: list[str] = []
        codes: list[Tensor] = []
        for start in track(range(0, c.pool, 500), "encoding the pool"):
            rng = np.random.default_rng([c.seed, 10**6, start])
            items = datasets.pictures(rng, min(500, c.pool - start), kinds=c.kinds)
            prompts += [p.spec.prompt for p in items]
            with torch.no_grad():
                codes.append(self.janus.to_codes([p.image for p in items]).to("cpu", torch.int16))
        out.mkdir(parents=True, exist_ok=True)
        torch.save({"prompts": prompts, "codes": torch.cat(codes)}, path)
        return prompts, torch.cat(codes)

    def _drop(self, rng: np.random.Generator, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        return (
            self.template.unconditional(segments)
            if rng.random() < self.config.drop_prompt
            else segments
        )

    def draws(self, rng: np.random.Generator, n: int):
        picks = rng.integers(len(self.prompts), size=n)
        rows = [self._drop(rng, self.template.draw(self.prompts[i])) for i in picks]
        return rows, [ImageCodes(tuple(self.codes[i].tolist())) for i in picks]

    def questions(self, rng: np.random.Generator, n: int):
        rows, answers = [], []
        c = self.config
        pictures = datasets.pictures(rng, n, c.alone, c.kinds, c.objects)
        for q in datasets.questions(rng, pictures, c.asked, c.aimed, c.judge_context):
            if q.prompt is None:
                rows.append(self.template.ask(q.image, q.question))
            else:
                images, reasons = (
                    [image for image, _ in q.earlier],
                    [reason for _, reason in q.earlier],
                )
                rows.append(self.template.judge(q.prompt, [*images, q.image], reasons))
            answers.append(TokenIds(self.template.answer(q.answer)))
        return rows, answers

    @torch.no_grad()
    def chains(self, rng: np.random.Generator, n: int):
        chains = datasets.chains(rng, datasets.pictures(rng, n, kinds=self.config.kinds))
        every = self.janus.to_codes(
            [image for c in chains for image in (*c.wrong, c.right)]
        ).tolist()
        rows, rights = [], []
        for c in chains:
            wrong, every = every[: len(c.wrong)], every[len(c.wrong) :]
            rows.append(
                self._drop(
                    rng, self.template.redraw(c.prompt, [tuple(w) for w in wrong], list(c.reasons))
                )
            )
            rights.append(ImageCodes(tuple(every.pop(0))))
        return rows, rights

    def step(self, step: int) -> dict[str, float]:
        c = self.config
        rng = np.random.default_rng([c.seed, step])
        sizes = {
            "draw": c.draws,
            "question": c.questions,
            "chain": 0 if step % c.chain_every else c.chains,
        }
        makers = {"draw": self.draws, "question": self.questions, "chain": self.chains}
        parts = {name: makers[name](rng, n) for name, n in sizes.items() if n}
        metrics: dict[str, float] = {}
        for name, (rows, completions) in parts.items():
            losses, first = cross_entropy(self.janus, rows, completions)
            if name == "question":
                # the answer itself weighs as much as all the words after it, else yes and no are
                # lost among the captions
                loss = losses[first].mean() + losses[~first].mean()
                metrics |= {
                    "answer_loss": losses[first].mean().item(),
                    "words_loss": losses[~first].mean().item(),
                }
            else:
                loss = losses.mean()
                metrics[f"{name}_loss"] = loss.item()
            loss.backward()
        left = (c.steps - step) / max(1.0, c.cooldown * c.steps)
        self.optimizer.step(min(1.0, (step + 1) / c.warmup, left))
        self.average.update(step)
        return metrics


def train_base(config: BaseConfig, out: str | Path) -> None:
    """Train, resume if ``out`` holds a state, and write the averaged checkpoint there
    (transformers' layout)."""
    torch.set_num_threads(config.threads)
    out = Path(out)
    job = BaseJob(config, out)
    run = Trainer(
        out,
        config,
        {"net": job.trainable, "optimizer": job.optimizer, "average": job.average},
        may_change=("steps",),
    )

    def snapshot(step: int) -> dict[str, float]:
        job.average.swap()
        job.janus.save(out / f"step-{step}")
        job.average.swap()
        return {}

    run.loop(
        config.steps,
        job.step,
        log_every=config.log_every,
        save_every=config.save_every,
        every={config.snapshot_every: snapshot},
    )
    job.average.swap()
    job.janus.save(out / "final")
    job.average.swap()
