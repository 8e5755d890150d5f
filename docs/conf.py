"""Sphinx settings. The pages are Markdown that reads well where it lies; ``./dev docs`` makes HTML of them."""

from typing import Any

from pygments.lexers.special import TextLexer

project = "pi-agent"
author = "the pi-agent team"
copyright = f"2026, {author}"  # noqa: A001 - Sphinx's name for it
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["man", "images"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "pi-agent"
html_static_path: list[str] = []


def setup(app: Any) -> None:
    """The query language has no lexer of its own; its examples are shown as text."""
    app.add_lexer("query", TextLexer)
