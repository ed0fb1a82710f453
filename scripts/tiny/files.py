"""What a trial of a script needs and nobody should download: python scripts/tiny/files.py FOLDER.

FOLDER gets model/ (a Janus of transformers' own classes, 48 pixels wide, with random weights), a
CLIP and a DINO likewise, seeds.txt (prompts), files/dpg_bench (two prompts with questions in
DPG-Bench's layout) and files/pie_bench (two edits).
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, ViTConfig, ViTModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from secondlook.io import writable_folder, write_text
from tiny_model import tiny_janus, write_parts

COLOURS, THINGS = ("red", "blue", "green", "white"), ("cat", "cup", "star", "key")


def write_scorers(folder: Path) -> None:
    """A CLIP and a DINO in transformers' layout, with the model's tokenizer."""
    words = AutoTokenizer.from_pretrained(folder / "model")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    special = {f"{n}_token_id": getattr(words, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    text = small | special | {"vocab_size": len(words), "projection_dim": 8}
    seen = small | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=8)).save_pretrained(
        folder / "clip"
    )
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(folder / "clip")
    words.save_pretrained(folder / "clip")
    ViTModel(ViTConfig(**small, image_size=32, patch_size=16)).save_pretrained(folder / "dino")


def write_benchmarks(folder: Path) -> None:
    dpg = writable_folder(folder / "dpg_bench" / "prompts", claimed=False)
    with open(dpg.parent / "dpg_bench.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        names = (
            "item_id",
            "text",
            "keywords",
            "proposition_id",
            "dependency",
            "category_broad",
            "category_detailed",
            "tuple",
        )
        table.writerow((*names, "question_natural_language"))
        for i, thing in enumerate(THINGS[:2]):
            text = f"a photo of a red {thing}"
            write_text(dpg / f"{i}.txt", f"{text}\n")
            table.writerow(
                (
                    i,
                    text,
                    "",
                    1,
                    0,
                    "entity",
                    "whole",
                    f"entity - whole ({thing})",
                    f"Is there a {thing}?",
                )
            )
            colour = f"attribute - color ({thing}, red)"
            table.writerow(
                (i, text, "", 2, 1, "attribute", "color", colour, f"Is the {thing} red?")
            )
    pie = writable_folder(folder / "pie_bench" / "annotation_images", claimed=False)
    edits = {}
    for i, colour in enumerate(COLOURS[:2]):
        Image.effect_noise((512, 512), 60).convert("RGB").save(pie / f"{i}.png")
        edits[f"{i:012d}"] = {
            "image_path": f"{i}.png",
            "original_prompt": "a photo of a cat",
            "editing_prompt": f"a photo of a [{colour}] cat",
            "editing_instruction": f"make the cat {colour}",
            "editing_type_id": "6",
            "mask": [0, 60000],
        }
    write_text(pie.parent / "mapping_file.json", json.dumps(edits))


if __name__ == "__main__":
    target = writable_folder(Path(sys.argv[1]), claimed=False)
    write_text(
        target / "seeds.txt",
        "".join(f"a {colour} {thing}\n" for colour in COLOURS for thing in THINGS),
    )
    write_benchmarks(target / "files")
    write_parts(target / "parts")
    tiny_janus(target / "parts").save(target / "model")
    write_scorers(target)
