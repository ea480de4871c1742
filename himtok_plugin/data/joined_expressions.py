"""All expressions of a referent in one question, as the paper's code asks them."""

from __future__ import annotations

from collections.abc import Sequence

JOINED = "Meet all the descriptions:"  # begins the expression that joins all of a referent's, in the paper's code
_JOINED_BEGINS, _JOINED_ENDS = "Segment <ref>", "</ref>."  # what stands around it there, word by word


def joined_expressions(expressions: Sequence[str]) -> str:
    """All expressions of a referent in one: `Meet all the descriptions: 1. … 2. … `, as in the paper's code.

    A referent with a single expression has it numbered like any other.
    """
    return f"{JOINED} " + "".join(f"{i}. {text}. " for i, text in enumerate(expressions, start=1))


def joined_question(expressions: Sequence[str]) -> str:
    """The paper's question about a referent: `Segment <ref>Meet all the descriptions: 1. … 2. … </ref>.`"""
    return f"{_JOINED_BEGINS}{joined_expressions(expressions)}{_JOINED_ENDS}"
