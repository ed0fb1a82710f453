"""The tokenizer of a checkpoint folder, and the processor that transformers wraps it in.

Every complaint is an InputError that names the folder.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Tokenizer
from transformers import (
    JanusConfig,
    JanusImageProcessorPil,
    JanusProcessor,
    PreTrainedTokenizerFast,
)

from secondlook.errors import InputError
from secondlook.io import read_text
from secondlook.models.janus import weight_files

IMAGE_TOKENS = {
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
SENTENCE_TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
}
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
TEMPLATE_FILES = ("chat_template.json", "chat_template.jinja")


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a checkpoint folder's tokenizer.json. Raises InputError where it is missing,
    damaged, or not Janus's (it lacks one of the tokens above)."""
    if not weight_files.exists(folder / "tokenizer.json"):
        raise InputError(
            f"model: {str(folder)!r} holds no tokenizer.json; a checkpoint folder has one"
        )
    file_texts = {}
    for file_name in (*TOKENIZER_FILES, *TEMPLATE_FILES):
        if weight_files.exists(folder / file_name):
            file_texts[file_name] = read_text(weight_files.readable_file(folder / file_name))
            if file_name.endswith(".json"):
                weight_files.read_object(folder / file_name)
    try:
        vocabulary = Tokenizer.from_str(file_texts["tokenizer.json"])
        tokenizer = _tokenizer_of(file_texts)
        tokenizer.name_or_path = str(folder)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers' Rust panics are no Exception
        raise InputError(
            f"model: no tokenizer can be made of {', '.join(file_texts)} in {str(folder)!r}: "
            f"{weight_files.one_line(error)}"
        ) from error
    for token in (*SENTENCE_TOKENS.values(), *IMAGE_TOKENS.values()):
        if vocabulary.token_to_id(token) is None:
            raise InputError(
                f"model: the tokenizer in {str(folder)!r} has no {token}; it must be Janus's"
            )
    for role, token in SENTENCE_TOKENS.items():
        if getattr(tokenizer, role) is None:  # the original code looks the pad up by its name
            setattr(tokenizer, role, token)
    tokenizer.padding_side = "left"
    return tokenizer


def _tokenizer_of(file_texts: dict[str, str]) -> PreTrainedTokenizerFast:
    """transformers' tokenizer of the texts of a tokenizer's files, by their names."""
    # transformers reads plain UTF-8 only, and whatever else a folder holds
    with TemporaryDirectory() as plain_folder:
        for file_name, text in file_texts.items():
            (Path(plain_folder) / file_name).write_text(text, encoding="utf-8")
        # the class that tokenizer_config.json names may build another tokenizer than the one in
        # tokenizer.json
        return PreTrainedTokenizerFast.from_pretrained(
            plain_folder, extra_special_tokens=IMAGE_TOKENS
        )


def processor_of(tokenizer: PreTrainedTokenizerFast, config: JanusConfig) -> JanusProcessor:
    """transformers' processor for this tokenizer and the config's pictures."""
    image_size, half = config.vision_config.image_size, [0.5, 0.5, 0.5]
    image_processor = JanusImageProcessorPil(
        size={"height": image_size, "width": image_size}, image_mean=half, image_std=half
    )
    num_image_tokens = config.vision_config.num_image_tokens
    return JanusProcessor(image_processor, tokenizer, num_image_tokens=num_image_tokens)
