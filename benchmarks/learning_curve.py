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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("out/curve"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    config = json.loads((args.run / "config.json").read_text())
    points = []
    for folder in sorted(args.run.glob("step-*"), key=lambda p: int(p.name[5:])):
        step = int(folder.name[5:])
        engine = Engine(Janus.load(folder), 96)
        settings = geneval.MiniGenEval(
            model=str(folder), samples=2, rounds=1, rows_per_task=args.rows
        )
        read_episodes = geneval.draw_and_read(engine, settings, SamplingConfig(guidance=1.0))
        result = geneval.summarize(read_episodes, settings)
        answered = ask_questions(engine, MiniQuestions(model=str(folder), questions=400))
        there = answered["is_there"]["balanced_accuracy"]
        point = {
            "step": step,
            "sequences": step * config["draws"],
            "first": result["overall"]["first"],
            "bound": result["binding"]["bound"],
            "position": result["position"]["given_both"],
            "judge": result["judge"]["first"]["balanced_accuracy"],
            "is_there": there,
        }
        points.append(point)
        print(
            step,
            point["sequences"],
            {k: round(point[k]["mean"], 3) for k in list(point)[2:]},
            flush=True,
        )
    write_json(args.out / "curve.json", points)
    figure, axis = plt.subplots(figsize=(7.5, 4))
    x = [p["sequences"] / 1000 for p in points]
    labels = {
        "first": "first image, overall",
        "bound": "bound, given both objects and colours",
        "position": "relation, given both objects",
        "judge": "judge, balanced accuracy",
        "is_there": "is there …?, balanced accuracy",
    }
    for name, label in labels.items():
        axis.plot(x, [p[name]["mean"] for p in points], marker="o", label=label)
        axis.fill_between(
            x, [p[name]["low"] for p in points], [p[name]["high"] for p in points], alpha=0.12
        )
    axis.axhline(0.5, color="grey", lw=0.8, ls=":")
    axis.axhline(geneval.chance_of_relation(), color="grey", lw=0.8, ls="--")
    axis.set_xlabel("thousand text-to-image sequences")
    axis.set_ylim(0, 1.03)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(args.out / "curve.png", dpi=120)


if __name__ == "__main__":
    main()
