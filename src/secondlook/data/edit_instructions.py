"""Instructions to edit pictures that are there already: what the editing stages are taught from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from secondlook.data.choose_sanity_pairs import sure_rows
from secondlook.errors import InputError
from secondlook.io import writable_folder, write_bytes, write_text
from secondlook.llm.answer_store import Answers
from secondlook.llm.client import Asker
from secondlook.llm.endpoint import Endpoint, Question
from secondlook.rewards.vlm import in_words, questions_of

ASK = (
    "Write {n} instructions to edit an image of the description below. Each changes one thing "
    "and can be checked: it adds, "
    "removes, replaces, recolours or moves an object, or changes the background, the material "
    "or the style. At most 12 words "
    "each. Answer with a JSON list of {n} strings and nothing else.\nDescription: {prompt}"
)


def write_instructions(
    data: Path,
    out: Path,
    endpoint: Endpoint,
    pictures: int,
    each: int = 3,
    good: float = 0.8,
    seed: int = 0,
) -> tuple[Path, list[str]]:
    """Write edits.jsonl ({"prompt": the instruction, "source": a picture beside it}) to ``out``:
    ``each`` instructions, by a language model behind ``endpoint``, for ``pictures`` pictures of a
    folder of ``data build`` that scored ``good`` and more, one of a prompt. Returns the list and
    the prompts that got no instruction.

    Answers are kept in ``out``, so a stopped call goes on. Raises InputError where there are no
    such pictures or answers.
    """
    # one picture of a prompt, and no edits of edits
    picture_of = {row.prompt: row for row in sure_rows(data, good) if not row.source_id}
    prompts = list(picture_of)
    if not prompts:
        raise InputError(f"data: {data} has no picture with a score of {good} and more; build more")
    order = np.random.default_rng(seed).permutation(len(prompts))
    chosen_prompts = [prompts[i] for i in order[:pictures]]
    writable_folder(out)
    asker = Asker(endpoint, Answers(out / "answers.sqlite"))
    questions = []
    for prompt in chosen_prompts:
        request = in_words(ASK.format(n=each, prompt=prompt), tokens=512)
        questions.append(Question(request.body, questions_of))
    answers = asker(questions)
    lines = []
    prompts_without = []
    for i, instructions in enumerate(answers):
        prompt = chosen_prompts[i]
        if not instructions:
            prompts_without.append(prompt)
            continue
        image_name = f"{i:06d}.png"
        write_bytes(out / image_name, picture_of[prompt].file())
        for text in instructions[:each]:  # models may give more than they are asked for
            if text.strip():
                lines.append({"prompt": text.strip(), "source": image_name})
    if not lines:
        raise InputError(
            f"instructions: {endpoint.model!r} at {endpoint.url} gave none for "
            f"{len(chosen_prompts)} pictures"
        )
    list_path = out / "edits.jsonl"
    write_text(list_path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return list_path, prompts_without
