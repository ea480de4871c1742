"""Questions to the released HiMTok model, by name.

Contract: `prompt("segmentation", "the dog")` is a user's turn without `<image>`. `PROMPTS` holds the names; `{}` is the
place of the expression, so that a value is also what `Segmenter(question=...)` takes. Does not know models.

Only the wording of "segmentation" is the authors' own, as in the rows that they published; that of the others is this
project's, for the tasks that the paper trains the model on (arXiv 2503.13026).
"""

from __future__ import annotations

PROMPTS = {
    "segmentation": "Segment <ref>{}</ref>.",
    "reasoning_segmentation": "{} Answer with the mask of what is asked for.",
    "box": "Give the bounding box of <ref>{}</ref>.",
    "mask_then_box": "Segment <ref>{}</ref>, then give its bounding box.",
}


def prompt(name: str, expression: str) -> str:
    """One of `PROMPTS` about an expression.

    Args:
        name: one of `PROMPTS`.
        expression: what it is about, such as "the dog on the left"; a whole question for reasoning segmentation.
    Raises:
        ValueError: no such prompt, or nothing to ask for.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt: got {name!r}, expected one of {sorted(PROMPTS)}")
    if not expression.strip():
        raise ValueError(f"expression: got {expression!r}, expected words")
    return PROMPTS[name].format(expression.strip())
