"""Checks of all prompts before step 0, so that no run ends at the step that draws a bad one:
prompts that the model cannot read, sources that cannot be opened, and prompts of which the judge
scores no picture."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from secondlook.data.prompts import Line, check_prompts
from secondlook.errors import InputError
from secondlook.models.janus.template import ChatTemplate
from secondlook.rewards.reward import Reward, Weighted
from secondlook.train.distributed import ProcessGroup
from secondlook.types import Prompt


def check_lines(
    template: ChatTemplate,
    reward: Reward,
    lines: Sequence[Line],
    ranks: ProcessGroup = ProcessGroup(),
) -> None:
    """Read all prompts of a file, each rank its share, with the model's tokenizer, every source as
    a whole (a header does not tell whether a file is cut off), and ask the judge which ones it can
    score.

    Raises InputError, on all ranks, that names the first line and how many others are like it.
    """
    with ranks.all_raise():
        own_lines = ranks.local_part(lines)
        check_prompts(template, own_lines)
        with ThreadPoolExecutor() as pool:  # decoding is done without Python's lock
            # "" for every line without a fault
            faults = list(filter(None, pool.map(lambda line: _fault(reward, line), own_lines)))
        if faults:
            others = f" (and {len(faults) - 1} more such lines)" if len(faults) > 1 else ""
            raise InputError(f"{faults[0]}{others}")


def _fault(reward: Reward, line: Line) -> str:
    """What is wrong with a line; "" where nothing is."""
    try:
        prompt = line.prompt()
    except InputError as error:
        return str(error)
    reason = why_not(reward, prompt)
    return f"judge: {reason}, in {line.where}" if reason else ""


def why_not(reward: Reward, prompt: Prompt) -> str:
    """Why a judge will score no picture of a prompt, as far as it can tell without one; "" where it
    may."""
    if isinstance(reward, Weighted):  # what one of its judges does not score is missing
        for _, judge in reward.parts:
            judge_reason = why_not(judge, prompt)
            if judge_reason:
                return judge_reason
        return ""
    if prompt.source is not None and not hasattr(reward, "edits"):
        return f"{type(reward).__name__} cannot judge edits; use another for prompts with a source"
    return reward.why_not(prompt) if hasattr(reward, "why_not") else ""
