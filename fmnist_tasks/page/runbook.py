"""The runbook, `include/page/runbook.md`, as HTML: one section for each alert event."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from markdown_it import MarkdownIt
from markupsafe import Markup

from fmnist_tasks.settings import INCLUDE


@cache
def render_runbook() -> Markup:
    """The runbook as HTML. The id of a heading is its text in lower case with hyphens; alerts link to it."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse((INCLUDE / "page" / "runbook.md").read_text(encoding="utf-8"))
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", content.content.lower().replace(" ", "-"))
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704 - our own file; the parser escapes HTML in it
