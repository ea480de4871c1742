"""The pages of the documentation, and what the tests read in them: fenced blocks, headings, links."""

import re
from dataclasses import dataclass
from pathlib import Path

from paths import PACKAGE, ROOT

DOCS = ROOT / "docs"
README = ROOT / "README.md"
MODEL_CARD = PACKAGE / "pretrained" / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md")), MODEL_CARD]

NOT_RUN = "# not run by the tests: "  # first line of a block, with the reason
PARSED = "# parsed, not run: "

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: its file.
        line: number of its first line of text.
        language: as the fence names it, or empty.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.text.startswith((NOT_RUN, PARSED))

    @property
    def is_parsed(self) -> bool:
        return self.text.startswith(PARSED)


def blocks(language: str) -> list[Block]:
    """The blocks of all pages in one language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match[1] == language:
                found.append(Block(page, text.count("\n", 0, match.start()) + 2, match[1], match[2]))
    return found


def languages() -> set[str]:
    """All names of languages in fences; "" for a fence without one."""
    return {match[1] for page in PAGES for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))}


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Names that links to headings of a page may use, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """Targets of all links and pictures."""
    return _LINK.findall(prose(page))
