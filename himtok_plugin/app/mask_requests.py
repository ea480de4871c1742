"""Whether a question asks for masks, so that an answer without one means that nothing in the image matches.

Contract: known by the question's words, and by the words of an answer that says so, as the package's prompts have them
(data/prompt_pools). In other words and languages, the answer speaks for itself.
"""

from __future__ import annotations

import re
from functools import cache

from himtok_plugin.data.prompts import Prompts

# "Segment the dog.", "Answer with a mask." – not "Is she wearing a mask?".
_REQUEST = re.compile(
    r"\bsegment|\b(?:answer|respond|output|give|create|draw|put|list|what is the)\b[^.?!\n]*\bmasks?\b", re.I
)


def asks_for_masks(question: str, answer: str) -> bool:
    """Whether a question asks for masks, or its answer says that what was asked for is not in the image."""
    return bool(_REQUEST.search(question)) or bool(_no_target_answers().fullmatch(answer.strip()))


@cache
def _no_target_answers() -> re.Pattern[str]:
    """Any of the answers of the kind "none", whatever stands in their fields."""
    texts = Prompts.load().texts_of_kind("none")
    patterns = (r"[^.?!\n]+".join(map(re.escape, re.split(r"\{\w+\}", text.rstrip(".")))) for text in texts)
    return re.compile(rf"(?:{'|'.join(patterns)})\.?", re.I)
