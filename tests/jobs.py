"""Settings of the small jobs that run on one rank and on two."""

COMMON = {
    "model": "mini-base",
    "steps": 3,
    "threads": 1,
    "log_every": 1,
    "save_every": 1,
    "lr": 1e-4,
    "warmup": 0,
}
SFT = COMMON | {"batch": 9, "micro": 2, "muon": 5.0, "drop_prompt": 0.3}
RL = COMMON | {
    "prompts_per_step": 4,
    "group": 3,
    "rounds": 2,
    "form": "expected",
    "balanced": True,
    "patience": 100,
}
RL |= {"epochs": 1, "micro": 5, "value_warmup": 1, "value_epochs": 2}
