"""Text from users and other programs, made safe for one line of a log, page or mail."""

from __future__ import annotations

import re


def replace_surrogates(text: str) -> str:
    """The text with lone surrogates, which UTF-8 cannot encode, replaced by question marks.

    Python represents bytes of a file name or from a terminal that are not valid UTF-8 as lone surrogates.
    """
    return text.encode(errors="replace").decode()


def make_printable(text: str) -> str:
    """The text as one line of valid UTF-8; unprintable characters become spaces, lone surrogates question marks."""
    printable = "".join(character if character.isprintable() else " " for character in replace_surrogates(text))
    return re.sub(r"\s+", " ", printable).strip()
