"""What a base run had learned when: first-image score, binding and position of every snapshot, over
drawn sequences.

python benchmarks/learning_curve.py out/base [--rows 40] [--out out/curve]
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from secondlook.engine.engine import Engine
from secondlook.episode import SamplingConfig
from secondlook.io import write_json
from secondlook.mini.evals import geneval
from secondlook.mini.evals.questions import MiniQuestions, ask_questions
from secondlook.models.janus.model import Janus

LABELS = {
    "first": "first image, overall",
    "bound": "bound, given both objects and colours",
    "position": "relation, given both objects",
    "judge": "judge, balanced accuracy",
    "is_there": "is there …?, balanced accuracy",
}
"""What is measured of a snapshot, each with its interval."""


def measure(folder: Path, rows_per_task: int) -> dict[str, dict[str, float]]:
    """A snapshot's value of each of ``LABELS``."""
    engine = Engine(Janus.load(folder), 96)
    settings = geneval.MiniGenEval(
        model=str(folder), samples=2, rounds=1, rows_per_task=rows_per_task
    )
    read_episodes = geneval.draw_and_read(engine, settings, SamplingConfig(guidance=1.0))
    result = geneval.summarize(read_episodes, settings)
    answered = ask_questions(engine, MiniQuestions(model=str(folder), questions=400))
    return {
        "first": result["overall"]["first"],
        "bound": result["binding"]["bound"],
        "position": result["position"]["given_both"],
        "judge": result["judge"]["first"]["balanced_accuracy"],
        "is_there": answered["is_there"]["balanced_accuracy"],
    }


def plot(points: list[dict], image_path: Path) -> None:
    figure, axis = plt.subplots(figsize=(7.5, 4))
    thousand_sequences = [point["sequences"] / 1000 for point in points]
    for name, label in LABELS.items():
        measured = [point[name] for point in points]
        means = [interval["mean"] for interval in measured]
        lows = [interval["low"] for interval in measured]
        highs = [interval["high"] for interval in measured]
        axis.plot(thousand_sequences, means, marker="o", label=label)
        axis.fill_between(thousand_sequences, lows, highs, alpha=0.12)
    axis.axhline(0.5, color="grey", lw=0.8, ls=":")  # chance of a judge and of binding
    axis.axhline(geneval.chance_of_relation(), color="grey", lw=0.8, ls="--")
    axis.set_xlabel("thousand text-to-image sequences")
    axis.set_ylim(0, 1.03)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(image_path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.run / "config.json").read_text())
    snapshots = {int(folder.name[5:]): folder for folder in args.run.glob("step-*")}
    points = []
    for step in sorted(snapshots):
        measured = measure(snapshots[step], args.rows)
        points.append({"step": step, "sequences": step * config["draws"]} | measured)
        rounded_means = {name: round(measured[name]["mean"], 3) for name in LABELS}
        print(step, points[-1]["sequences"], rounded_means, flush=True)
    write_json(args.out / "curve.json", points)
    plot(points, args.out / "curve.png")


if __name__ == "__main__":
    main()
