"""Text in Markdown files."""

from __future__ import annotations

import html
import re

# An underscore inside a word is never markup in GitHub's Markdown, and paths are full of them.
_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown, also in a cell of a table, shows it as it is, on one line.

    Names of classes, files and datasets are other people's: `<script>` must not become HTML, nor `|` a new cell.
    """
    return _MARKUP.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
