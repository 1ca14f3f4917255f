"""What is printed never ends a command: a console may not know a letter of somebody's folder."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import MutableMapping, Sequence
from typing import TextIO


def forgiving(
    streams: Sequence[TextIO] | None = None, env: MutableMapping[str, str] = os.environ
) -> None:
    """Write what a stream's encoding lacks (an arrow, an umlaut, on a Windows console or in a pipe)
    as an escape in place of raising, here and in the Pythons that are started from here."""
    for stream in (sys.stdout, sys.stderr) if streams is None else streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    env.setdefault("PYTHONIOENCODING", ":backslashreplace")


def words_of(text: str, platform: str = sys.platform) -> list[str]:
    """The words of a command line that somebody wrote as one text; quotes hold words together.

    On Windows a backslash is part of a path. Raises ValueError for a quote that is not closed.
    """
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if platform == "win32":
        lexer.escape = ""
    return list(lexer)
