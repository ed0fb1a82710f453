"""Judging pictures, and questions about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondlook.arguments import at_least, check_threshold
from secondlook.cli.common import (
    Attention,
    Device,
    Dtype,
    Model,
    load_model,
    name_left_out,
    progress_bar,
    say,
)
from secondlook.errors import InputError
from secondlook.io import finite
from secondlook.models.shipped import locate


def judge(
    images: Annotated[
        Path,
        typer.Argument(
            help="A picture, a folder (also one of draw or edit), or a .jsonl or .parquet of pairs."
        ),
    ],
    prompt: Annotated[
        str,
        typer.Argument(help="What it should show; of several pictures, those without a prompt."),
    ] = "",
    source: Annotated[
        Path | None,
        typer.Option(help="The picture that was edited; the prompt is then the instruction."),
    ] = None,
    model: Annotated[
        str, typer.Option(help="As elsewhere; default: mini, or mini-edit if there is a source.")
    ] = "",
    threshold: Annotated[float, typer.Option(help="P(Yes) above which the verdict is Yes.")] = 0.5,
    calibration: Annotated[
        Path | None, typer.Option(help="A folder of eval mini-judging, whose threshold is used.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the verdicts on several pictures.")] = Path(
        "out/judge"
    ),
    batch: Annotated[int, typer.Option(help="Pictures judged together.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Ask the model whether pictures match their prompts: verdict, p(yes) and reason (greedy)."""
    from secondlook.data.labelled_images import is_list, lines_of, read_pairs
    from secondlook.data.prompts import check_prompts
    from secondlook.io import writable_folder

    at_least("batch", batch)
    threshold = threshold if calibration is None else _calibrated_threshold(calibration)
    check_threshold(threshold)
    left_out: list[str] = []
    pairs = read_pairs(images, prompt, source, left_out.append)
    model = model or ("mini-edit" if any(pair.source for pair in pairs) else "mini")
    locate(model)
    if is_list(images):
        writable_folder(out)
        judge_model = load_model(model, device, batch, dtype, attention)
        check_prompts(judge_model.engine.template, lines_of(pairs))
        name_left_out("no picture, left out", left_out)
        settings = (model, str(images), threshold, str(source or ""))
        _judge_all(judge_model.engine, pairs, settings, out)
        return
    [pair] = pairs
    # opened first: a picture that cannot be read is told before a model is loaded
    judged_image, asked_prompt = pair.open(), pair.asked()
    judge_model = load_model(model, device, batch, dtype, attention)
    verdict = judge_model.judge(judged_image, asked_prompt.text, asked_prompt.source, threshold)
    say(f"{'Yes' if verdict.yes else 'No'}  p(yes) {verdict.p_yes:.3f}  {verdict.reason}")


def _calibrated_threshold(folder: Path) -> float:
    """The threshold that a folder of ``eval mini-judging`` holds. Raises InputError."""
    from secondlook.io import read_json

    overall = read_json(folder / "result.json", dict).get("overall")
    calibrated = overall.get("calibrated") if isinstance(overall, dict) else None
    if not isinstance(calibrated, dict) or not finite(calibrated.get("threshold"), 0, 1):
        raise InputError(
            f"calibration: {str(folder)!r} has no threshold; give a folder that eval mini-judging "
            "wrote"
        )
    return calibrated["threshold"]


def _judge_all(engine: Any, pairs: list[Any], settings: tuple[Any, ...], out: Path) -> None:
    """Write the verdicts on many pictures; goes on where an earlier call was interrupted.
    ``settings`` are the fields of ``evaluator.Settings`` in order."""
    from secondlook.evals import evaluator
    from secondlook.io import read_json

    with progress_bar() as progress:
        task_id = progress.add_task("judging", total=len(pairs))
        for num_judged in evaluator.write(engine, pairs, evaluator.Settings(*settings), out):
            progress.update(task_id, completed=num_judged)
    result = read_json(out / "result.json", dict)
    threshold = result["settings"]["threshold"]
    images_per_second = result["images_per_second"]  # none where all verdicts were there
    speed_text = f", {images_per_second:.1f} images/s" if images_per_second else ""
    say(f"{result['yes']} of {result['pairs']} match (p(yes) above {threshold:.3f}){speed_text}")
    name_left_out("not judged", result["unreadable"])
    say(f"written to {out}: verdicts.jsonl, result.json")


def ask(
    image: Annotated[Path, typer.Argument(help="The picture to ask about.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    model: Model = "mini",
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Ask the model a question about a picture (greedy)."""
    from secondlook.io import read_image

    at_least("max_tokens", max_tokens)
    shown_image = read_image(image)
    asked_model = load_model(model, device, dtype=dtype, attention=attention)
    say(asked_model.ask(shown_image, question, max_tokens))
