"""Drawing and editing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from secondlook.arguments import at_least, check_sampling, check_text
from secondlook.cli.common import (
    Attention,
    Device,
    Dtype,
    Model,
    Seed,
    console,
    load_model,
    say,
)
from secondlook.cli.drawn_folder import CONFIG, open_drawn_folder
from secondlook.errors import InputError
from secondlook.models.shipped import locate
from secondlook.types import Episode, digest

Guidance = Annotated[
    float | None, typer.Option(help="Classifier-free guidance; default: the checkpoint's own.")
]
Temperature = Annotated[float, typer.Option(help="Of codes, verdicts and reasons; 0 is greedy.")]


UNLIKELY_VERDICT = (
    "           (sampled from p(yes), as all verdicts here; --temperature 0 is greedy)"
)
"""Said below a round whose verdict is the less likely one."""


def draw(
    prompt: Annotated[str, typer.Argument(help="What to draw; or --prompts.")] = "",
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A file with one prompt a line, or a .jsonl of prompt and, for edits, source."
        ),
    ] = None,
    model: Model = "mini",
    rounds: Annotated[int, typer.Option(help="At most this many images an episode.")] = 3,
    n: Annotated[
        int | None,
        typer.Option("--n", help="Episodes of a prompt; default: 4, of a file's prompts 1."),
    ] = None,
    seed: Seed = 0,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; default: out/draw, or the next of out/draw-2, … that is "
            "free; of a file out/ITS-NAME."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Episodes drawn together.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Draw a prompt, look at the image, judge it, and redraw while the verdict is No.

    With --prompts all prompts of a file are drawn; the same command goes on where it was
    interrupted.
    """
    at_least("rounds", rounds)
    at_least("n", 1 if n is None else n)
    at_least("batch", batch)
    check_sampling(guidance, temperature)
    loading = {"device": device, "batch": batch, "dtype": dtype, "attention": attention}
    if prompts is not None:
        if prompt:
            raise InputError("prompt: it is given and --prompts too; give one of them")
        from secondlook.cli.draw_list import ListSettings, draw_list

        settings = ListSettings(model, n or 1, rounds, seed, guidance, temperature)
        draw_list(prompts, settings, out or Path("out") / prompts.stem, loading)
        return
    check_text("prompt", prompt, "say what to draw")
    sampling = {"rounds": rounds, "seed": seed, "guidance": guidance, "temperature": temperature}
    _draw_one(prompt, model, n or 4, sampling, out, loading)


def _draw_one(
    prompt: str,
    model_name: str,
    num_samples: int,
    sampling: dict[str, Any],
    out: Path | None,
    loading: dict[str, Any],
) -> None:
    """Draw one prompt and write its episodes. ``sampling`` are arguments of ``Model.draw``,
    ``loading`` those of ``load_model``."""
    from dataclasses import asdict

    from secondlook.io import write_json
    from secondlook.report import write_episode

    # all that can be wrong with the names is found before a model is loaded
    locate(model_name)
    config = {"command": "draw", "prompt": prompt, "model": model_name, "n": num_samples} | sampling
    out = open_drawn_folder(out, Path("out/draw"), config)
    model = load_model(model_name, **loading)
    with console.status("drawing, looking, redrawing …"):
        episodes = model.draw([prompt], num_samples, **sampling)
    sampling_config = model.sampling(sampling["guidance"], sampling["temperature"])
    settings = {"model": model_name, "max_rounds": sampling["rounds"]} | asdict(sampling_config)
    write_json(out / CONFIG, config)
    for episode_number, episode in enumerate(episodes, 1):
        write_episode(out if num_samples == 1 else out / str(episode_number), episode, settings)
    for episode_number, episode in enumerate(episodes, 1):
        _print_episode(episode, f"{episode_number}/{num_samples}" if num_samples > 1 else "")
    folders = " (one folder each)" if num_samples > 1 else ""
    say(f"written to {out}: round-1.png …, final.png, episode.json, episode.html{folders}")


def edit(
    image: Annotated[Path, typer.Argument(help="The picture to edit.")],
    instructions: Annotated[
        list[str], typer.Argument(help="What to change; several are carried out one after another.")
    ],
    model: Model = "mini-edit",
    rounds: Annotated[int, typer.Option(help="At most this many images an instruction.")] = 3,
    seed: Seed = 0,
    guidance: Guidance = None,
    temperature: Temperature = 1.0,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results; default: out/edit, or the next of out/edit-2, … that is "
            "free."
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "sdpa",
) -> None:
    """Edit a picture, look at the edit, judge it, and edit again while the verdict is No."""
    from dataclasses import asdict

    from secondlook.io import read_image, write_image, write_json
    from secondlook.report import write_episode

    at_least("rounds", rounds)
    check_sampling(guidance, temperature)
    for instruction in instructions:
        check_text("instruction", instruction, "say what to change")
    source_image = read_image(image)
    locate(model)
    sampling: dict[str, Any] = {"rounds": rounds, "seed": seed}
    sampling |= {"guidance": guidance, "temperature": temperature}
    config = {"command": "edit", "image": str(image), "image_digest": digest(source_image)}
    config |= {"instructions": list(instructions), "model": model} | sampling
    out = open_drawn_folder(out, Path("out/edit"), config)
    editor = load_model(model, device, dtype=dtype, attention=attention)
    with console.status("editing, looking, editing again …"):
        episodes = editor.edit(source_image, instructions, **sampling)
    sampling_config = editor.sampling(guidance, temperature)
    settings = {"model": model, "image": str(image), "max_rounds": rounds} | asdict(sampling_config)
    write_json(out / CONFIG, config)
    are_several = len(episodes) > 1
    for episode_number, episode in enumerate(episodes, 1):
        write_episode(out / str(episode_number) if are_several else out, episode, settings)
        _print_episode(episode, f"{episode_number}/{len(episodes)}" if are_several else "")
    folders = ""
    if are_several:
        write_image(out / "final.png", episodes[-1].image)
        folders = " (one folder an instruction, final.png of the last beside them)"
    say(
        f"written to {out}: source.png, round-1.png …, final.png, episode.json, "
        f"episode.html{folders}"
    )


def _print_episode(episode: Episode, position_text: str) -> None:
    """A line of the prompt and one of each round. ``position_text``: "2/4" of several episodes."""
    seed_text = f"  seed {episode.seed} {position_text}".rstrip()
    say((episode.prompt.text, "bold"), (seed_text, "dim"))
    for round_index, episode_round in enumerate(episode.rounds):
        verdict = ("Yes", "green") if episode_round.yes else ("No ", "red")
        final_mark = ("  <- final", "blue") if round_index == episode.final else ""
        reason = f" p(yes) {episode_round.p_yes:.2f}  {episode_round.reason}"
        say(f"  round {round_index + 1}: ", verdict, reason, final_mark)
        if episode_round.yes != (episode_round.p_yes > 0.5):
            say((UNLIKELY_VERDICT, "dim"))
