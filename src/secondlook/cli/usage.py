"""Command lines that cannot be parsed, as one sentence."""

from __future__ import annotations

import typer

UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of all errors of parsing. typer does not export it."""
PROGRAM = "secondlook"


def usage_sentence(error: Exception) -> str:
    """What is wrong with a command line and where to look up what is right; "" where there is no
    command, so that typer has printed the help instead."""
    message = error.format_message().strip().rstrip(".?")  # type: ignore[attr-defined]
    if not message:
        return ""
    message = message.replace(". Did you mean", "; did you mean")
    context = getattr(error, "ctx", None)  # none of an option that lacks its value
    command = context.command_path if context else PROGRAM
    if message.startswith("Got unexpected extra argument"):
        message += "; put quotes around a text of several words"
    elif getattr(error, "option_name", None) == "--plugin" and context and context.parent:
        message += "; it stands before the command's name"
    elif hasattr(error, "option_name") and command == PROGRAM and context:
        message += "; a command's options stand after its name"
    where = "" if command == PROGRAM else command.removeprefix(f"{PROGRAM} ") + ": "
    return f"{where}{message[0].lower()}{message[1:]}; see `{command} --help`"
