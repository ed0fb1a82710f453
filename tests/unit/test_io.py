"""Text, tables and folders as people have them: read as they were meant, or refused in one sentence
that names the file and the line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from secondlook.errors import InputError
from secondlook.io import (
    append_rows,
    beside,
    check_unicode,
    disk_failure,
    finite,
    is_file,
    parse_json,
    read_json,
    read_lines,
    read_parquet,
    read_rows,
    read_table,
    read_text,
    stored_rows,
    whole_file,
    whole_folder,
    writable_folder,
    write_json,
)
from secondlook.mini.world import edits
from secondlook.mini.world.language import parse
from secondlook.mini.world.scene import Scene


def sentence(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_text_of_another_system_is_read_as_it_was_meant(tmp_path, encoding, ending):
    path = tmp_path / "prompts.txt"
    path.write_bytes(f"a café\u2028 and a cup{ending}{ending}  a cat {ending}".encode(encoding))
    assert read_lines(path) == [(1, "a café\u2028 and a cup"), (3, "a cat")]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(f'{{"prompt": "a\u2028\u0085b"}}{ending}{{"prompt": "c"}}'.encode(encoding))
    assert [row["prompt"] for _, row in read_rows(path)] == ["a\u2028\u0085b", "c"]
    path = tmp_path / "table.csv"
    path.write_bytes(f'id,text{ending}1,"a\u2028b"{ending}'.encode(encoding))
    assert read_table(path) == [{"id": "1", "text": "a\u2028b"}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"a cat\na caf\xe9\n", "line 2 .*UTF-8"),
        ("a cat\n".encode("utf-16-le"), "line 1 .*holds a NUL .*UTF-16 without its mark"),
        (b"a cat\na \0 dog\n", "line 2 .*holds a NUL"),
        (b"\xff\xfea\x00b", "UTF-16"),
        (b"a cat\ra dog\r", "carriage return"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ],
)
def test_text_that_cannot_be_read_is_refused_with_its_line(tmp_path, data, words):
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=words) as error:
        read_lines(path)
    assert "prompts.txt" in sentence(error)


@pytest.mark.parametrize(
    ("character", "words"),
    [
        ("\u00a0", "holds a no-break space (U+00A0)"),
        ("\u200b", "holds a zero width space (U+200B)"),
        ("\u2003", "holds an em space (U+2003)"),
        ("\t", "holds a tab (U+0009)"),
    ],
)
def test_characters_that_look_like_a_space_or_nothing_are_named(character, words):
    with pytest.raises(InputError) as error:
        parse(f"a photo of a red{character}star")
    assert words in str(error.value)
    with pytest.raises(InputError) as error:
        edits.parse(f"make the star{character}blue", Scene.of([]))
    assert words in str(error.value)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        "[1]",
        "3",
        "null",
        "[" * 100_000,
        '{"a": "\u0001"}',
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"line 2 of .*rows\.jsonl") as error:
        read_rows(path)
    sentence(error)


def test_a_row_of_a_table_with_other_cells_is_named(tmp_path):
    path = tmp_path / "t.csv"
    for row in ("1,2,3", "1"):
        path.write_text(f"a,b\n1,2\n{row}\n")
        with pytest.raises(InputError, match="line 3 of"):
            read_table(path)


def test_what_is_no_number_is_none():
    assert finite(0.5, 0, 1) and finite(1, 0, 1)
    for value in (float("nan"), float("inf"), True, "0.5", None, 2, [0.5]):
        assert not finite(value, 0, 1)
    assert parse_json('{"a": 1.5}') == {"a": 1.5}


def test_missing_folders_and_other_kinds_are_refused(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"a": ')
    for path, kind in (
        (tmp_path, dict),
        (tmp_path / "none", dict),
        (tmp_path / "list.json", dict),
        (tmp_path / "cut.json", dict),
    ):
        with pytest.raises(InputError) as error:
            read_json(path, kind)
        assert str(path) in sentence(error)
    with pytest.raises(InputError, match="no\\\\x00name"):
        read_text(Path("no\0name"))


def test_own_rows_survive_a_killed_writer(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_rows(path, [{"a": "x\u2028y"}, {"a": 2}])
    with open(path, "ab") as file:
        file.write('{"a": "é'.encode()[:-1])  # torn inside of a character
    append_rows(path, [{"a": "caf\udce9"}])
    assert [row["a"] for row in stored_rows(path)] == ["x\u2028y", 2, "caf\udce9"]


def test_names_of_other_systems_are_found(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "caf\u00e9.png").touch()
    listed = tmp_path / "list.jsonl"
    for name in ("pictures/caf\u00e9.png", "pictures\\caf\u00e9.png", "pictures/cafe\u0301.png"):
        assert beside(listed, name).is_file()
    assert not beside(listed, "pictures/none.png").is_file()


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    (tmp_path / "x.json").write_text("old")
    with pytest.raises(TypeError):
        write_json(tmp_path / "x.json", object())
    with pytest.raises(OSError), whole_file(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        raise OSError(28, os.strerror(28), str(temporary))
    with pytest.raises(OSError), whole_folder(tmp_path / "folder") as temporary:
        (temporary / "half").touch()
        raise OSError(28, os.strerror(28))
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"] and (
        tmp_path / "x.json"
    ).read_text() == "old"


def test_a_failed_disk_is_told_whoever_met_it():
    try:
        try:
            raise OSError(28, os.strerror(28), "/full/x")
        except OSError as error:
            raise RuntimeError("saving failed") from error
    except RuntimeError as error:
        assert disk_failure(error) == "No space left on device: '/full/x'"
    assert (
        disk_failure(ValueError("I/O error: No space left on device (os error 28)"))
        == "No space left on device"
    )
    assert disk_failure(ValueError("something else")) is None


def test_a_folder_belongs_to_one_process(tmp_path):
    other = (
        "import sys, pathlib; from secondlook.io import writable_folder; "
        "writable_folder(pathlib.Path(sys.argv[1]))"
    )
    writable_folder(tmp_path / "out")
    writable_folder(tmp_path / "out")  # again, by the same process

    def try_it(folder, **environment):
        command = [sys.executable, "-c", other, str(folder)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)

    refused = try_it(tmp_path / "out" / ".." / "out")
    assert refused.returncode == 1 and f"in use by process {os.getpid()} on" in refused.stderr
    assert try_it(tmp_path / "out", RANK="1").returncode == 0, (
        "torchrun's other ranks share the first one's folder"
    )
    assert try_it(tmp_path / "free").returncode == 0
    writable_folder(tmp_path / "free")  # whoever had it has ended


def test_a_number_that_no_float_holds_is_none():
    assert not finite(10**400, 0, 1) and not finite(10**400)


def test_what_stands_twice_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "prompt": "b"}\n')
    with pytest.raises(InputError, match="'prompt' stands twice"):
        read_rows(path)


def test_marks_inside_joined_files_are_no_part_of_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"\xef\xbb\xbfa cat\n\xef\xbb\xbfa dog\n")
    assert read_lines(path) == [(1, "a cat"), (2, "a dog")]
    for text in ("\u200b", "a\0b", "\u2060\u200b"):
        with pytest.raises(InputError, match="visible"):
            check_unicode(text, "prompt")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    for read in (read_json, read_text, read_parquet):
        with pytest.raises(InputError, match="pipe"):
            read(tmp_path / "pipe.json")
    assert not is_file(tmp_path / ("x" * 300))
