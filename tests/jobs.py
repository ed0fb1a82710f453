"""Settings of the small jobs that run on one rank and on two."""

SFT = {
    "model": "mini-base",
    "steps": 3,
    "batch_size": 9,
    "prompt_dropout": 0.3,
    "optim": {"lr": 1e-4, "warmup_steps": 0, "muon_lr_ratio": 5.0},
    "runtime": {
        "device": "cpu",
        "threads": 1,
        "micro_batch_size": 2,
        "log_every": 1,
        "save_every": 1,
    },
}
BASE = {
    "start": "mini-base",
    "steps": 3,
    "draws": 5,
    "questions": 3,
    "chains": 0,
    "lessons": {"repair": 3, "judge_edit": 1},
    "optim": {"warmup_steps": 0},
    "runtime": {"device": "cpu", "threads": 1, "log_every": 1, "save_every": 1},
}
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
