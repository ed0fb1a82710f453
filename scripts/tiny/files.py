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
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    layer_sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    text_config = layer_sizes | {"vocab_size": len(tokenizer), "projection_dim": 8}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text_config[name] = getattr(tokenizer, name)
    vision_config = layer_sizes | {"image_size": 32, "patch_size": 16, "projection_dim": 8}
    clip_config = CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=8)
    CLIPModel(clip_config).save_pretrained(folder / "clip")
    image_size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=image_size, crop_size=image_size).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")
    dino_config = ViTConfig(**layer_sizes, image_size=32, patch_size=16)
    ViTModel(dino_config).save_pretrained(folder / "dino")


DPG_COLUMNS = (
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
)


def write_dpg_bench(folder: Path) -> None:
    """Two prompts of a red thing, each with two questions: the second (is it red?) depends on the
    first (is it there?)."""
    prompts_folder = writable_folder(folder / "prompts", claimed=False)
    with open(folder / "dpg_bench.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(DPG_COLUMNS)
        for i, thing in enumerate(THINGS[:2]):
            text = f"a photo of a red {thing}"
            write_text(prompts_folder / f"{i}.txt", f"{text}\n")
            entity, question = f"entity - whole ({thing})", f"Is there a {thing}?"
            writer.writerow((i, text, "", 1, 0, "entity", "whole", entity, question))
            colour, question = f"attribute - color ({thing}, red)", f"Is the {thing} red?"
            writer.writerow((i, text, "", 2, 1, "attribute", "color", colour, question))


def write_pie_bench(folder: Path) -> None:
    """Two pictures of noise with an instruction and a mask each."""
    images_folder = writable_folder(folder / "annotation_images", claimed=False)
    edits = {}
    for i, colour in enumerate(COLOURS[:2]):
        Image.effect_noise((512, 512), 60).convert("RGB").save(images_folder / f"{i}.png")
        edits[f"{i:012d}"] = {
            "image_path": f"{i}.png",
            "original_prompt": "a photo of a cat",
            "editing_prompt": f"a photo of a [{colour}] cat",
            "editing_instruction": f"make the cat {colour}",
            "editing_type_id": "6",
            "mask": [0, 60000],  # the first pixel and how many from it on, row by row
        }
    write_text(folder / "mapping_file.json", json.dumps(edits))


if __name__ == "__main__":
    target = writable_folder(Path(sys.argv[1]), claimed=False)
    seed_prompts = [f"a {colour} {thing}\n" for colour in COLOURS for thing in THINGS]
    write_text(target / "seeds.txt", "".join(seed_prompts))
    write_dpg_bench(target / "files" / "dpg_bench")
    write_pie_bench(target / "files" / "pie_bench")
    write_parts(target / "parts")
    tiny_janus(target / "parts").save(target / "model")
    write_scorers(target)
