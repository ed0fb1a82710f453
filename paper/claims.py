"""What the paper claims of base, SFT and RL (arXiv 2506.01480, its GenEval and evaluator tables),
beside what was measured.

For models of these names: ``base``, ``sft``, ``rl``, and ``control``, which went on with SFT for as
long as RL took.
"""

from __future__ import annotations

from typing import Any

from secondlook.evals.intervals import Interval, above_zero

MIN_TASK, MIN_FINAL, MIN_JUDGE, MIN_FIXED, MAX_BROKEN = 0.6, 0.85, 0.92, 0.4, 0.05
"""Goals for the miniature after RL; the paper states none."""
NOT_MEASURED = "not measured"


def claims(result: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Rows of claim, published value, measured interval, and "yes", "no" or "not shown" (the
    interval holds zero). ``result`` is `compare.compare`'s; nothing is said of what it lacks."""
    models, rows = result["models"], []

    def add(claim: str, published: str, measured: Interval | None) -> None:
        if measured:
            row = {"claim": claim, "published": published, "measured": measured}
            rows.append(row | {"holds": above_zero(measured)})

    def over(a: str, b: str, what: str) -> Interval | None:
        for row in result["differences"]:
            if (row["of"], row["over"]) == (a, b):
                return row.get(what)
        return None

    def gain(name: str) -> Interval | None:
        return models[name]["overall"]["gain"] if name in models else None

    add("SFT lifts the first image over the base", "+.01", over("sft", "base", "first"))
    add("after SFT, looking again pays (final over first)", ".00: it does not", gain("sft"))
    add("RL lifts the first image over SFT", "+.02", over("rl", "sft", "first"))
    add("… and over as much further SFT", NOT_MEASURED, over("rl", "control", "first"))
    add("RL lifts the final image over SFT", "+.05", over("rl", "sft", "final"))
    add("… and over as much further SFT", NOT_MEASURED, over("rl", "control", "final"))
    add("after RL, looking again pays (final over first)", "+.03", gain("rl"))
    for point in result["curves"].get("rl", {}).get("curve", []):
        if point["rounds"] == rounds:
            at_equal_cost = "… by more than best-of-N by its own judge at as many images"
            add(at_equal_cost, NOT_MEASURED, point["over_best_of_n"])
            afresh = "… by more than drawing afresh until its own Yes, without memory"
            add(afresh, NOT_MEASURED, point["over_until_yes"])
    for where, what in (("the same images", "judge_same"), ("its own images", "judge")):
        improves = f"the judge improves from base to SFT on {where} (balanced accuracy)"
        add(improves, "72.3 to 72.7 %", over("sft", "base", what))
        add("… and from SFT to RL", "72.7 to 81.1 %", over("rl", "sft", what))
    return rows


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of goal, what was measured of ``rl``, and whether it is reached."""
    if "rl" not in result["models"]:
        return []
    rl, rows = result["models"]["rl"], []

    def add(goal: str, measured: float | None, reached: bool) -> None:
        rows.append({"goal": goal, "measured": measured, "reached": reached})

    final = rl["overall"]["final"]["mean"]
    add(f"final image at least {MIN_FINAL}", final, final >= MIN_FINAL)

    score_of_task = {task: row["final"]["mean"] for task, row in rl["tasks"].items()}
    worst_task = min(score_of_task, key=score_of_task.__getitem__)
    lowest_score = score_of_task[worst_task]
    goal = f"no task's final image below {MIN_TASK} ({worst_task})"
    add(goal, lowest_score, lowest_score >= MIN_TASK)

    judges = {"its own images": rl["judge"]["every round"]["balanced_accuracy"]["mean"]}
    if "rl" in result["judges"]:
        judges["the base's images"] = result["judges"]["rl"]["sampled"]["balanced_accuracy"]["mean"]
    for where, accuracy in judges.items():
        goal = f"judge's balanced accuracy on {where} at least {MIN_JUDGE}"
        add(goal, accuracy, accuracy >= MIN_JUDGE)

    # no data where no wrong image was drawn again
    fixed = rl["redraws"]["fixed"] if rl["redraws"]["wrong"] else None
    goal = f"redraws fix at least {MIN_FIXED} of wrong images"
    add(goal, fixed, fixed is not None and fixed >= MIN_FIXED)
    broken = rl["redraws"]["broken_of_all"]
    add(f"and break at most {MAX_BROKEN} of right ones", broken, broken <= MAX_BROKEN)
    return rows
