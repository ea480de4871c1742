"""The `<mask>` placeholders in a sample's texts: counting them, and replacing them by mask text.

Contract: `inputs` are ms-swift's template inputs of one sample. Placeholders count in the order of `list_texts`.
"""

from __future__ import annotations

from typing import Any

from himtok_plugin.mask_text import MASK_PLACEHOLDER, MASK_START, codes_to_text, count_placeholders

from .mask_column import MaskColumn


def list_texts(inputs: Any) -> list[str]:
    """Return the texts that may have `<mask>`, in order: the system message, then every message that is a text."""
    system = [inputs.system] if isinstance(inputs.system, str) else []
    return system + [m["content"] for m in inputs.messages if isinstance(m.get("content"), str)]


def replace_texts(inputs: Any, texts: list[str]) -> None:
    """Put changed texts in the places from which `list_texts` has read them."""
    following = iter(texts)
    if isinstance(inputs.system, str):
        inputs.system = next(following)
    for message in inputs.messages:
        if isinstance(message.get("content"), str):
            message["content"] = next(following)


def count_masks(inputs: Any) -> int:
    """Return how many `<mask>` a sample has."""
    return sum(map(count_placeholders, list_texts(inputs)))


def write_mask_text(inputs: Any, codes: list[list[int] | None], num_mask_tokens: int) -> list[bool]:
    """Replace every `<mask>` of a sample by mask text, in place.

    Args:
        inputs: the sample.
        codes: codes of each mask; None writes placeholder codes, which `MaskBatch.write_codes` replaces.
        num_mask_tokens: k.
    Returns:
        For each mask in the new texts, in order, whether it replaced a `<mask>`; False for literal mask text.
    """
    blank = [0] * num_mask_tokens
    mask_texts = iter([codes_to_text(blank if each is None else each) for each in codes])
    starts: list[bool] = []
    texts = []
    for text in list_texts(inputs):
        first, *pieces = text.split(MASK_PLACEHOLDER)
        starts += [False] * first.count(MASK_START)
        for piece in pieces:
            starts += [True] + [False] * piece.count(MASK_START)
        texts.append(first + "".join(next(mask_texts) + piece for piece in pieces))
    replace_texts(inputs, texts)
    return starts


def split_masks_of_pair(
    chosen: Any, rejected: Any, column: MaskColumn, codes: list[list[int] | None]
) -> tuple[MaskColumn, MaskColumn]:
    """Split the masks of a preference pair between its two conversations.

    Args:
        chosen, rejected: the conversations; `<mask>` that both have before they differ share a mask.
        column: masks of the chosen conversation, then those that only the rejected one has.
        codes: codes of these masks, see `MaskColumn.check_codes`.
    Returns:
        Mask columns of the chosen and of the rejected conversation.
    Raises:
        ValueError: another number of masks than of `<mask>`.
    """
    used, shared = count_masks(chosen), _count_shared_placeholders(chosen, rejected)
    further = count_masks(rejected) - shared
    if used + further != len(column.masks):
        raise ValueError(
            f"{column.name}: messages hold {used} {MASK_PLACEHOLDER}, the rejected answer {further} more, masks "
            f"holds {len(column.masks)}: expected one mask for each"
        )

    def select(numbers: list[int]) -> MaskColumn:
        masks, own_codes = [column.masks[i] for i in numbers], [codes[i] for i in numbers]
        return MaskColumn(masks, own_codes, column.row, dataset=column.dataset)

    return select([*range(used)]), select([*range(shared), *range(used, used + further)])


def _count_shared_placeholders(chosen: Any, rejected: Any) -> int:
    """Count the `<mask>` before two conversations differ; their last answers count as different."""
    count = 0
    for one, other in zip(list_texts(chosen)[:-1], list_texts(rejected)[:-1], strict=False):
        if one != other:
            break
        count += count_placeholders(one)
    return count
