"""What the paper claims of base, SFT and RL (arXiv 2506.01480, its GenEval and evaluator tables),
beside what was measured.

For models of these names: ``base``, ``sft``, ``rl``, and ``control``, which went on with SFT for as
long as RL took.
"""

from __future__ import annotations

from typing import Any

from secondlook.evals.intervals import Interval

TASK_LEAST, FINAL_LEAST, JUDGE_LEAST, FIXED_LEAST, BROKEN_MOST = 0.6, 0.85, 0.92, 0.4, 0.05
"""Goals for the miniature after RL; the paper states none."""


def holds(measured: Interval) -> str:
    """ "yes", "no", or "not shown" where the interval holds zero."""
    return "yes" if measured["low"] > 0 else "no" if measured["high"] < 0 else "not shown"


def claims(result: dict, rounds: int) -> list[dict[str, Any]]:
    """Rows of claim, published value, measured interval, and "yes", "no" or "not shown" (the
    interval holds zero)."""
    models, rows = result["models"], []

    def add(claim: str, published: str, measured: Interval | None) -> None:
        if measured:
            rows.append(
                {
                    "claim": claim,
                    "published": published,
                    "measured": measured,
                    "holds": holds(measured),
                }
            )

    def over(a: str, b: str, what: str) -> Interval | None:
        return next(
            (d.get(what) for d in result["differences"] if (d["of"], d["over"]) == (a, b)), None
        )

    def gain(name: str) -> Interval | None:
        return models[name]["overall"]["gain"] if name in models else None

    add("SFT lifts the first image over the base", "+.01", over("sft", "base", "first"))
    add("after SFT, looking again pays (final over first)", ".00: it does not", gain("sft"))
    add("RL lifts the first image over SFT", "+.02", over("rl", "sft", "first"))
    add("… and over as much further SFT", "not measured", over("rl", "control", "first"))
    add("RL lifts the final image over SFT", "+.05", over("rl", "sft", "final"))
    add("… and over as much further SFT", "not measured", over("rl", "control", "final"))
    add("after RL, looking again pays (final over first)", "+.03", gain("rl"))
    at = [c for c in result["curves"].get("rl", {}).get("curve", []) if c["rounds"] == rounds]
    for what, baseline in (
        ("over_best_of_n", "best-of-N by its own judge at as many images"),
        ("over_until_yes", "drawing afresh until its own Yes, without memory"),
    ):
        add(f"… by more than {baseline}", "not measured", at[0][what] if at else None)
    for where, what in (("the same images", "judge_same"), ("its own images", "judge")):
        add(
            f"the judge improves from base to SFT on {where} (balanced accuracy)",
            "72.3 to 72.7 %",
            over("sft", "base", what),
        )
        add("… and from SFT to RL", "72.7 to 81.1 %", over("rl", "sft", what))
    return rows


def goals(result: dict) -> list[dict[str, Any]]:
    """Rows of goal, what was measured of ``rl``, and whether it is reached."""
    if "rl" not in result["models"]:
        return []
    rl = result["models"]["rl"]
    task, least = min(
        ((name, row["final"]["mean"]) for name, row in rl["tasks"].items()),
        key=lambda pair: pair[1],
    )
    final = rl["overall"]["final"]["mean"]
    judges = {"its own images": rl["judge"]["every round"]["balanced_accuracy"]["mean"]}
    if "rl" in result["judges"]:
        judges["the base's images"] = result["judges"]["rl"]["sampled"]["balanced_accuracy"]["mean"]
    fixed = (
        rl["redraws"]["fixed"] if rl["redraws"]["wrong"] else None
    )  # no wrong image was drawn again: no data
    broken = rl["redraws"]["broken_of_all"]
    return [
        {
            "goal": f"final image at least {FINAL_LEAST}",
            "measured": final,
            "reached": final >= FINAL_LEAST,
        },
        {
            "goal": f"no task's final image below {TASK_LEAST} ({task})",
            "measured": least,
            "reached": least >= TASK_LEAST,
        },
        *(
            {
                "goal": f"judge's balanced accuracy on {on} at least {JUDGE_LEAST}",
                "measured": j,
                "reached": j >= JUDGE_LEAST,
            }
            for on, j in judges.items()
        ),
        {
            "goal": f"redraws fix at least {FIXED_LEAST} of wrong images",
            "measured": fixed,
            "reached": fixed is not None and fixed >= FIXED_LEAST,
        },
        {
            "goal": f"and break at most {BROKEN_MOST} of right ones",
            "measured": broken,
            "reached": broken <= BROKEN_MOST,
        },
    ]
