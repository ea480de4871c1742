"""The questions that the released HiMTok model was evaluated with, by name.

`format_prompt("segmentation", "the dog")` returns a user's turn without `<image>`. `PROMPTS` maps names to questions in
which `{}` stands for the expression; `Segmenter(question=...)` takes its values as they are.

Segmentation, reasoning and mask-then-box have the wording of the authors' released evaluation, boxes alone that of
the evaluation of InternVL, the base model.
"""

from __future__ import annotations

PROMPTS = {
    "segmentation": "Segment <ref>{}</ref>.",
    "reasoning_segmentation": "{}\nWhat is the object and mask in the image?",
    "box": "Please provide the bounding box coordinate of the region this sentence describes: <ref>{}</ref>",
    "mask_then_box": "First create the segmentation mask for <ref>{}</ref>, then identify its bounding box.",
}
SENTENCE_ENDS = (".", "?", "!")


def format_prompt(name: str, expression: str) -> str:
    """Insert an expression into one of `PROMPTS`.

    Args:
        name: a key of `PROMPTS`.
        expression: the object, such as "the dog on the left". For reasoning segmentation a whole question, or a phrase
            ("the food that dogs like"), which is turned into "What is …?", as the authors do.
    Raises:
        ValueError: an unknown name or an empty expression.
    """
    if name not in PROMPTS:
        raise ValueError(f"prompt: got {name!r}, expected one of {sorted(PROMPTS)}")
    if not expression.strip():
        raise ValueError(f"expression: got {expression!r}, expected a description of an object")
    expression = expression.strip()
    if name == "reasoning_segmentation" and not expression.endswith(SENTENCE_ENDS):
        expression = f"What is {expression}?"
    return PROMPTS[name].format(expression)
