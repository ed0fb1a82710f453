"""A generator whose pictures are there already: a folder with metadata.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import relpath
from pathlib import Path

from secondlook.data.generators import GeneratorConfig, Picture, Shard
from secondlook.errors import InputError
from secondlook.io import EXTENSIONS, beside, read_image, read_rows, text_field
from secondlook.registry import register_generator
from secondlook.types import Prompt

FAULTS_TOLD = 3
"""Pictures that one sentence names."""


@register_generator("folder")
class Folder:
    """Pictures that are there: a folder's metadata.jsonl has a line {"file_name": …, "prompt": …}
    for each, and for an edit its "source". Raises InputError for a folder without that list, and
    one for all that it names and that are not there."""

    def __init__(self, model: str, images: int):
        self.folder, self.images = model, images
        self.list_path = Path(model) / "metadata.jsonl"
        self.files_by_prompt: dict[str, list[tuple[Path, str]]] = {}
        """By ``Prompt.key``: the pictures' files, with the lines that name them."""
        self.named_files: set[Path] = set()
        """Pictures and sources that the list names."""
        faults: list[str] = []
        for number, row in read_rows(self.list_path):
            where = f"line {number} of {self.list_path}"
            text = text_field(row, "prompt", where)
            image_path = beside(self.list_path, text_field(row, "file_name", where))
            if not image_path.is_file():
                faults.append(
                    f"{where}: {str(image_path)!r} is not a file; give a path beside the list"
                )
                continue
            source_image = None
            if row.get("source") is not None:
                source_path = beside(self.list_path, text_field(row, "source", where))
                try:
                    source_image = read_image(source_path)
                except InputError as error:
                    faults.append(f"{where}: {error}")
                    continue
                self.named_files.add(source_path)
            self.named_files.add(image_path)
            # sources are read here: an edit is known by its source's pixels, not by a file's name
            prompt_key = Prompt(text, source_image).key
            self.files_by_prompt.setdefault(prompt_key, []).append((image_path, where))
        _refuse(faults)

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
        # files are named as they lie beside the list
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

    def check_pictures(self, prompts: Iterable[Prompt]) -> None:
        """Read every picture that a build of ``prompts`` uses. Raises one InputError for all that
        cannot be read."""
        files: list[tuple[Path, str]] = []
        for prompt in prompts:
            files += self.files_by_prompt.get(prompt.key, [])[: self.images]

        def fault_of(file_and_line: tuple[Path, str]) -> str:
            image_path, where = file_and_line
            try:
                read_image(image_path)
            except InputError as error:
                return f"{where}: {error}"
            return ""

        with ThreadPoolExecutor() as pool:  # decoding is done without Python's lock
            _refuse([fault for fault in pool.map(fault_of, files) if fault])

    def _pictures_of(self, prompts: tuple[Prompt, ...]) -> Iterator[Picture]:
        for prompt in prompts:
            for image_path, where in self.files_by_prompt.get(prompt.key, [])[: self.images]:
                try:
                    yield Picture(prompt, read_image(image_path), self.folder)
                except InputError as error:
                    raise InputError(f"generators: {where}: {error}") from error


def _refuse(faults: Sequence[str]) -> None:
    """Raises one InputError for the ``faults`` of a folder's pictures, the first few in words."""
    if not faults:
        return
    num_others = len(faults) - FAULTS_TOLD
    others = f"; and {num_others} more" if num_others > 0 else ""
    count = f"{len(faults)} pictures cannot be used: " if len(faults) > 1 else ""
    raise InputError(f"generators: {count}{'; '.join(faults[:FAULTS_TOLD])}{others}")


def check_folders(configs: Sequence[GeneratorConfig], shards: Sequence[Shard]) -> None:
    """Read all pictures of folders that ``shards`` use, before anything is drawn. Raises
    InputError."""
    all_prompts: list[Prompt] = []
    for shard in shards:
        all_prompts += shard.prompts
    for config in configs:
        if config.kind == "folder":
            Folder(config.model, config.images).check_pictures(all_prompts)


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
