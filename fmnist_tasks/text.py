"""Text from users and other programs, made safe for one line of a log, page or mail."""

from __future__ import annotations

import re


def make_printable(text: str) -> str:
    """The text as one line of valid UTF-8; unprintable characters become spaces, lone surrogates question marks.

    Python represents bytes from a terminal that are not valid UTF-8 as lone surrogates, which no page can show.
    """
    encodable = text.encode(errors="replace").decode()
    printable = "".join(character if character.isprintable() else " " for character in encodable)
    return re.sub(r"\s+", " ", printable).strip()
