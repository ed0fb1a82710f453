"""A generator whose pictures are there already: a folder with metadata.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os.path import relpath
from pathlib import Path

from secondlook.data.generators import GeneratorConfig, Picture, Shard
from secondlook.errors import InputError
from secondlook.io import EXTENSIONS, beside, read_image, read_rows, text_field
from secondlook.registry import register_generator
from secondlook.types import Prompt


@register_generator("folder")
class Folder:
    """Pictures that are there: a folder's metadata.jsonl has a line {"file_name": …, "prompt": …}
    for each, and for an edit its "source". Raises InputError for a folder without that list."""

    def __init__(self, model: str, images: int):
        self.folder, self.images = model, images
        self.list_path = Path(model) / "metadata.jsonl"
        self.files_by_prompt: dict[str, list[tuple[Path, str]]] = {}
        """By ``Prompt.key``: the pictures' files, with the lines that name them."""
        self.named_files: set[Path] = set()
        """Pictures and sources that the list names."""
        for number, row in read_rows(self.list_path):
            where = f"line {number} of {self.list_path}"
            text = text_field(row, "prompt", where)
            image_path = beside(self.list_path, text_field(row, "file_name", where))
            if not image_path.is_file():
                raise InputError(
                    f"generators: {where}: {str(image_path)!r} is not a file; give a path beside "
                    "the list"
                )
            source_image = None
            if row.get("source") is not None:
                source_path = beside(self.list_path, text_field(row, "source", where))
                source_image = read_image(source_path)
                self.named_files.add(source_path)
            self.named_files.add(image_path)
            # sources are read here: an edit is known by its source's pixels, not by a file's name
            prompt_key = Prompt(text, source_image).key
            self.files_by_prompt.setdefault(prompt_key, []).append((image_path, where))

    def __call__(self, shard: Shard) -> list[Picture]:
        return list(self._pictures_of(shard.prompts))

    def left_out(self, prompts: Iterable[Prompt]) -> dict[str, list[str]]:
        """Pictures that a build of ``prompts`` does not use, and prompts without a picture, by the
        reason. Raises InputError where no prompt has one."""
        text_by_key = {prompt.key: prompt.text for prompt in prompts}
        if not self.files_by_prompt.keys() & text_by_key.keys():
            first_text = next(iter(text_by_key.values()))
            raise InputError(
                f"generators: {str(self.list_path)!r} has no picture of any of the "
                f"{len(text_by_key)} prompts (the first: {first_text!r}); "
                "its prompts must be written as they are asked"
            )
        other_prompts: list[str] = []  # pictures of prompts that are not asked
        beyond_images: list[str] = []  # pictures of a prompt that has more than are wanted
        for prompt_key, files in self.files_by_prompt.items():
            file_names = [relpath(image_path, self.list_path.parent) for image_path, _ in files]
            if prompt_key in text_by_key:
                beyond_images += file_names[self.images :]
            else:
                other_prompts += file_names
        without_picture = []
        for prompt_key, text in text_by_key.items():
            if prompt_key not in self.files_by_prompt:
                without_picture.append(text)
        return {
            "pictures of prompts that are not asked": other_prompts,
            f"pictures beyond images = {self.images}": beyond_images,
            f"pictures that {self.list_path.name} does not name": self._unlisted_names(),
            "prompts without a picture": without_picture,
        }

    def _unlisted_names(self) -> list[str]:
        """Pictures in the folder that the list does not name, hidden files left out."""
        unlisted_names = []
        for path in sorted(self.list_path.parent.iterdir()):
            is_picture = path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")
            if is_picture and path not in self.named_files:
                unlisted_names.append(path.name)
        return unlisted_names

    def _pictures_of(self, prompts: tuple[Prompt, ...]) -> Iterator[Picture]:
        for prompt in prompts:
            for image_path, where in self.files_by_prompt.get(prompt.key, [])[: self.images]:
                try:
                    yield Picture(prompt, read_image(image_path), self.folder)
                except InputError as error:
                    raise InputError(f"generators: {where}: {error}") from error


def left_out(
    configs: Sequence[GeneratorConfig], shards: Sequence[Shard]
) -> dict[str, dict[str, list[str]]]:
    """Of each folder: what a build does not use of it, and what it lacks, by the reason. Raises
    InputError."""
    all_prompts: list[Prompt] = []
    for shard in shards:
        all_prompts += shard.prompts
    left_out_by_folder = {}
    for config in configs:
        if config.kind == "folder":
            folder = Folder(config.model, config.images)
            left_out_by_folder[config.model] = folder.left_out(all_prompts)
    return left_out_by_folder
