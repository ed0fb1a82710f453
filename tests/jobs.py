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
RL = {
    "model": "mini-base",
    "steps": 3,
    "rollout": {"prompts_per_step": 4, "group_size": 3, "rounds": 2},
    "advantage": {"credit": "expected", "balance_verdicts": True},
    "ppo": {"value_warmup_steps": 1, "value_epochs": 2},
    "optim": {"lr": 1e-4, "warmup_steps": 0, "epochs": 1},
    "runtime": {
        "device": "cpu",
        "threads": 1,
        "micro_batch_size": 5,
        "log_every": 1,
        "save_every": 1,
    },
    "reward_checks": {"max_flat_steps": 100},
}
