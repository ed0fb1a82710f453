"""Files: the one reader of text, JSON lines, tables and pictures; writing that is whole or not there; one process a folder.

Whatever is read may have been made elsewhere, on another system or by a process that was killed. It is read as it was meant,
or refused in one sentence (InputError) that names the file and, in lists, the line.
"""

from secondlook.files.folders import LOCK, claim, fingerprint, same_config, versions, writable_folder
from secondlook.files.images import EXTENSIONS, MAX_PIXELS, as_rgb, decode_image, png, read_image
from secondlook.files.text import (
    append_rows,
    beside,
    check_unicode,
    decode_text,
    finite,
    parse_json,
    pointer,
    read_bytes,
    read_json,
    read_lines,
    read_parquet,
    read_rows,
    read_table,
    read_text,
    stored_rows,
    text_field,
)
from secondlook.files.writing import disk_failure, whole_file, whole_folder, write_bytes, write_image, write_json, write_text

__all__ = [
    "EXTENSIONS",
    "LOCK",
    "MAX_PIXELS",
    "append_rows",
    "as_rgb",
    "beside",
    "check_unicode",
    "claim",
    "decode_image",
    "decode_text",
    "disk_failure",
    "fingerprint",
    "finite",
    "parse_json",
    "png",
    "pointer",
    "read_bytes",
    "read_image",
    "read_json",
    "read_lines",
    "read_parquet",
    "read_rows",
    "read_table",
    "read_text",
    "same_config",
    "stored_rows",
    "text_field",
    "versions",
    "whole_file",
    "whole_folder",
    "writable_folder",
    "write_bytes",
    "write_image",
    "write_json",
    "write_text",
]
