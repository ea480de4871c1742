"""Questions to the released HiMTok model, by name.

Contract: `prompt("segmentation", "the dog")` is a user's turn without `<image>`. `PROMPTS` holds the names; `{}` is the
place of the expression, so that a value is also what `Segmenter(question=...)` takes. Does not know models.

The wording is what the model was evaluated with: that of segmentation, reasoning and mask-then-box in the authors'
released evaluation, that of boxes alone in InternVL's, the base model.
"""

from __future__ import annotations

PROMPTS = {
    "segmentation": "Segment <ref>{}</ref>.",
    "reasoning_segmentation": "{}\nWhat is the object and mask in the image?",
    "box": "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>",
    "mask_then_box": "First create the segmentation mask for <ref>{}</ref>, then identify its bounding box.",
}
SENTENCE_ENDS = (".", "?", "!")


def prompt(name: str, expression: str) -> str:
    """One of `PROMPTS` about an expression.

    Args:
        name: one of `PROMPTS`.
        expression: what it is about, such as "the dog on the left". For reasoning segmentation a whole sentence, or
            what is asked for ("the food that dogs like"), which then is put into "What is …?" as the authors do.
    Raises:
        ValueError: no such prompt, or nothing to ask for.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt: got {name!r}, expected one of {sorted(PROMPTS)}")
    if not expression.strip():
        raise ValueError(f"expression: got {expression!r}, expected words")
    expression = expression.strip()
    if name == "reasoning_segmentation" and not expression.endswith(SENTENCE_ENDS):
        expression = f"What is {expression}?"
    return PROMPTS[name].format(expression)
