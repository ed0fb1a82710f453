"""Others' benchmark files: fetched once by a pinned revision, or taken from a given folder, and
checked by their hash."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx

from secondlook.errors import InputError
from secondlook.io import read_lines, write_bytes, write_json

SERVER = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Source:
    """A file of a public repository at one commit."""

    repository: str
    commit: str
    path: str
    sha256: str
    licence: str


FILES = {
    "dsg/tifa160-likert-anns.csv": Source(
        "j-min/DSG",
        "2fdce11f8028433fae16e497eac7277d05208cac",
        "dsg/data/tifa160-likert-anns.csv",
        "61c9ff41b9f9fc26a44bbaf5540caeb67c09a9e3039536567f3e45d40ad0e9f8",
        "Apache-2.0",
    ),
    "dsg/vqa_answers/mplug_dsg.csv": Source(
        "j-min/DSG",
        "94fc47e00c023f0294ab85d720ba36c0c5bd493f",
        "vqa_answers_release/mplug_dsg.csv",
        "80feb7ea352dadaca6de97149b9a43c122a5feaec985c32f2fffbf38a39a795c",
        "Apache-2.0",
    ),
    "tifa/human_annotations_with_scores.json": Source(
        "Yushi-Hu/tifa",
        "d20b20066a593183f3436ce5cbff33982bb8d02f",
        "human_annotations/human_annotations_with_scores.json",
        "1720bb802c3c0821dd56df0d8c20a1214ff5085d7e5d9236a75736b1d39b7b3c",
        "Apache-2.0",
    ),
    "geneval/evaluation_metadata.jsonl": Source(
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        "prompts/evaluation_metadata.jsonl",
        "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
        "MIT",
    ),
    "geneval/evaluation_metadata_long.jsonl": Source(
        "PKU-YuanGroup/UniWorld-V1",
        "8403e86",
        "univa/eval/geneval/eval_prompts/evaluation_metadata_long.jsonl",
        "b14d4a8043104114ff5b03636fb55180cb0a545819c6e7a9589c2cc84451159d",
        "MIT",
    ),
    "t2i_compbench/color_val.txt": Source(
        "Karine-Huang/T2I-CompBench",
        "1b70949",
        "examples/dataset/color_val.txt",
        "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d",
        "MIT",
    ),
    "t2i_compbench/shape_val.txt": Source(
        "Karine-Huang/T2I-CompBench",
        "1b70949",
        "examples/dataset/shape_val.txt",
        "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae",
        "MIT",
    ),
    "t2i_compbench/texture_val.txt": Source(
        "Karine-Huang/T2I-CompBench",
        "1b70949",
        "examples/dataset/texture_val.txt",
        "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f",
        "MIT",
    ),
    "t2i_compbench/non_spatial_val.txt": Source(
        "Karine-Huang/T2I-CompBench",
        "1b70949",
        "examples/dataset/non_spatial_val.txt",
        "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d",
        "MIT",
    ),
    "dsg/dsg-1k-anns.csv": Source(
        "j-min/DSG",
        "7330119",
        "dsg/data/dsg-1k-anns.csv",
        "b7ce06ea8a0478ccfd8fba105ecd26d7d301eb99d5c412987546c4cc8e08917a",
        "Apache-2.0",
    ),
    "pope/coco_pope_random.json": Source(
        "AoiDragon/POPE",
        "08d957b",
        "output/coco/coco_pope_random.json",
        "ac25245170b975a5bdf9080b23fd431dfe6be458bc038259c1f4f09a6bef7994",
        "MIT",
    ),
    "pope/coco_pope_popular.json": Source(
        "AoiDragon/POPE",
        "08d957b",
        "output/coco/coco_pope_popular.json",
        "72c1a8ad45d0c13514f5f22598261df41d3b533854d29682e924db50ed8aa753",
        "MIT",
    ),
    "pope/coco_pope_adversarial.json": Source(
        "AoiDragon/POPE",
        "08d957b",
        "output/coco/coco_pope_adversarial.json",
        "420b3407db1fa9f1187a805dca41cb7b97fd91504e6c2179706188c107fb8ef8",
        "MIT",
    ),
    "gedit/gedit_edit.json": Source(
        "PKU-YuanGroup/UniWorld-V1",
        "8403e86",
        "univa/eval/gedit/gedit_edit.json",
        "9d34f6fc8741b840c9ebd28b699b17823536b8adc65dbfb153059208a6d5bf24",
        "MIT",
    ),
}

SEEDS = {
    "color": "db5d3287027d453f8c977f0c7315f8a01a770f02f61fa54ae19406762982393f",
    "shape": "451bdfccd330d4cf979d45664817be7959e89250b93d5c591cc562b858175a87",
    "texture": "4846315c5972f9e9cc82e4833099e8ec2c28b999ca77269512715f3f56bde54f",
    "non_spatial": "dbac5a9ec83204dcd0c3538a12d3212e2ce66db6f7ba45b49a1d869b2d3f2430",
    "complex": "d214ac45cb3c5307dd14a144c8c69aa5ffdcc7be74ff71b5dac989f8ca9f924b",
    "spatial": "af14cdf2320057d98f94077e6211c2ddfaabfbb9e3842873657baabb17e00de6",
    "numeracy": "f66bb8708cb0be23c0406e14d892b25661b2b71e3e72abddc79c38466ab629c6",
}
"""The training prompts of T2I-CompBench by kind, 700 each, and their hashes: seeds of which a
language model makes captions."""
for _kind, _sha256 in SEEDS.items():
    FILES[f"t2i_compbench/{_kind}_train.txt"] = Source(
        "Karine-Huang/T2I-CompBench",
        "1b70949",
        f"examples/dataset/{_kind}_train.txt",
        _sha256,
        "MIT",
    )


def stated(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Repository, commit, path, hash and licence of files, for a result."""
    return {name: vars(FILES[name]) for name in names}


def cache() -> Path:
    """Where fetched files are kept."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache_home / "secondlook" / "benchmarks"


def file(name: str, data: Path | None = None, server: str = SERVER) -> Path:
    """The path of a benchmark's file: of ``data``/name where a folder is given, else of the cache,
    fetched if it is not there.

    Raises InputError for a file that is missing, cannot be fetched or has another hash than the
    pinned revision's.
    """
    source, path = FILES[name], (data or cache()) / name
    if not path.is_file():
        if data is not None:  # nothing is fetched into a folder that somebody else filled
            raise InputError(
                f"data: {str(path)!r} is missing; give a folder with {name}, or none to fetch it"
            )
        _fetch(source, path, server)
    # also of a file that was there: others write to the cache, and people mend files
    if sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise InputError(
            f"data: {str(path)!r} is not {source.repository}'s at {source.commit[:9]} (its hash "
            "differs)"
        )
    return path


def fetch_all(folder: Path, server: str = SERVER) -> dict[str, Source]:
    """Every file in ``folder``, with SOURCES.json, which says where each is from and under which
    licence. Raises InputError."""
    for name in FILES:
        if not (folder / name).is_file():
            _fetch(FILES[name], folder / name, server)
        file(name, folder)  # checks its hash
    write_json(folder / "SOURCES.json", stated(FILES))
    return FILES


def seeds(folder: Path) -> list[str]:
    """The distinct seed prompts of a folder that ``fetch_all`` filled. Raises InputError."""
    prompts = []
    for kind in SEEDS:
        for _, prompt in read_lines(file(f"t2i_compbench/{kind}_train.txt", folder)):
            prompts.append(prompt)
    return list(dict.fromkeys(prompts))  # without repetitions, in their order


def _fetch(source: Source, path: Path, server: str) -> None:
    address = f"{server}/{source.repository}/{source.commit}/{source.path}"
    try:
        response = httpx.get(address, timeout=60.0, follow_redirects=True).raise_for_status()
    except httpx.HTTPError as error:
        raise InputError(
            f"data: {address} cannot be fetched ({error}); give a folder that has {path.name}"
        ) from error
    if sha256(response.content).hexdigest() != source.sha256:
        raise InputError(
            f"data: {address} has another hash than it is known to have; nothing was kept"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, response.content)
