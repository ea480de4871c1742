"""Joins all expressions of a referent into one question, as in the paper's code."""

from __future__ import annotations

from collections.abc import Sequence

JOINED = "Meet all the descriptions:"  # begins a joined expression in the paper's code
JOINED_BEGINS, JOINED_ENDS = "Segment <ref>", "</ref>."  # the rest of its question, word for word


def joined_expressions(expressions: Sequence[str]) -> str:
    """`Meet all the descriptions: 1. … 2. … ` for all expressions of a referent; a single one is numbered as well."""
    return f"{JOINED} " + "".join(f"{i}. {text}. " for i, text in enumerate(expressions, start=1))


def joined_question(expressions: Sequence[str]) -> str:
    """The paper's question about a referent: `Segment <ref>Meet all the descriptions: 1. … 2. … </ref>.`"""
    return f"{JOINED_BEGINS}{joined_expressions(expressions)}{JOINED_ENDS}"
