"""Answers of judges on disk."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from secondlook.errors import InputError

BUSY_TIMEOUT = 60.0
"""Seconds that one process waits while another one writes to the same file."""
TABLES = (
    "create table if not exists answers (key text primary key, value text not null)",
    "create table if not exists served (place text primary key)",
)
"""``answers``: JSON values by ``endpoint.question_key``. ``served``: endpoints that have
answered."""


class Answers:
    """Answers by key: an SQLite file, which several processes may share; without a path they are
    remembered as long as the object lives. Raises InputError for a file that is damaged or another
    program's."""

    def __init__(self, path: Path | None = None):
        self.path = path
        try:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
            # isolation_level None: each command is a transaction of its own. The asker may call
            # from a thread of its own, one at a time.
            self._db = sqlite3.connect(
                path or ":memory:",
                timeout=BUSY_TIMEOUT,
                isolation_level=None,
                check_same_thread=False,
            )
            table_rows = self._db.execute("select name from sqlite_master where type = 'table'")
            table_names = [name for (name,) in table_rows]
            if table_names and "answers" not in table_names:
                raise InputError(
                    f"judge: answers is {str(path)!r}, a database of another program's; give "
                    "another name"
                )
            for command in TABLES:
                self._db.execute(command)
            # raises where the table has other columns, or its first page is damaged
            self._db.execute("select key, value from answers limit 1")
        except (OSError, sqlite3.Error) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> InputError:
        return InputError(
            f"judge: answers is {str(self.path)!r}, which cannot be used ({error}); give another "
            "name or remove it"
        )

    def _run(self, command: str, values: Sequence[str]) -> list[tuple]:
        try:
            return self._db.execute(command, values).fetchall()
        except sqlite3.Error as error:
            raise self._broken(error) from error

    def get(self, key: str) -> Any:
        """The stored value, or None."""
        rows = self._run("select value from answers where key = ?", (key,))
        if not rows:
            return None
        try:
            return json.loads(rows[0][0], parse_constant=_no_number)
        except (ValueError, TypeError) as error:
            raise self._broken(error) from error

    def known_of(self, keys: Iterable[str]) -> dict[str, Any]:
        """The stored values of those of the keys that have one."""
        values = {key: self.get(key) for key in keys}
        return {key: value for key, value in values.items() if value is not None}

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value."""
        value_text = json.dumps(value, allow_nan=False)
        self._run("insert or replace into answers values (?, ?)", (key, value_text))

    def has_answered(self, endpoint_name: str) -> bool:
        """Whether this endpoint is known to have answered."""
        return bool(self._run("select 1 from served where place = ?", (endpoint_name,)))

    def note_answered(self, endpoint_name: str) -> None:
        """Remember that this endpoint has answered."""
        self._run("insert or replace into served values (?)", (endpoint_name,))


def _no_number(constant: str) -> float:
    """Refuse NaN and the infinities, which Python's JSON has and an answer does not."""
    raise ValueError(f"{constant} is no number")
