"""Text that somebody typed or some program reported, made fit for one line of a log, a page or a mail."""

from __future__ import annotations

import re


def make_printable(text: str) -> str:
    """The text as one line that UTF-8 can hold: what is not printable becomes a blank or a question mark.

    A terminal with another encoding hands over bytes that are no UTF-8 as lone surrogates; no page could show them.
    """
    sound = text.encode(errors="replace").decode()
    return re.sub(r"\s+", " ", "".join(one if one.isprintable() else " " for one in sound)).strip()
