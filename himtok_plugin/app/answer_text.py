"""Conversations as HTML: text escaped, each mask a coloured chip, what is to be known about an answer as a sentence.

Contract: nothing from a question, an answer or an error becomes markup. A chip has the id of its mask in `data-layer`,
by which the script of the page switches it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from himtok_plugin.mask_text import MASK_PLACEHOLDER
from himtok_plugin.masks.drawing import COLORS
from himtok_plugin.words.known_words import describe_unknown_words

from .session import Conversation, MaskLayer, Turn

REGION_COLOR = (90, 98, 112)
# The phrase before a mask, as base models with grounding write it.
_PHRASE = re.compile(r"(?:<ref>|<\|object_ref_start\|>)([^<>]*)(?:</ref>|<\|object_ref_end\|>)")


def layer_color(layer: MaskLayer) -> tuple[int, int, int]:
    """The RGB colour of a mask, the same in the image, the text, the legend and the downloads."""
    return REGION_COLOR if layer.is_region else COLORS[(layer.number - 1) % len(COLORS)]


def write_conversation(conversation: Conversation | None) -> str:
    """Write all turns as HTML; without turns, what to do."""
    if conversation is None:
        return _hint("Add an image, or choose an example, and ask for what you want to see.")
    if not conversation.turns:
        return _hint(
            "Ask for something in the image. Or mark a region with click, box or brush: it becomes the "
            "<mask> of your question, such as “Describe <mask>.”"
        )
    return f'<div class="himtok-turns" aria-live="polite">{"".join(map(_write_turn, conversation.turns))}</div>'


def _hint(text: str) -> str:
    return f'<p class="himtok-hint">{html.escape(text)}</p>'


def _write_turn(turn: Turn) -> str:
    parts = [f'<div class="himtok-question">{_write_question(turn)}</div>']
    if turn.answer:
        parts.append(f'<div class="himtok-answer">{_write_answer(turn)}</div>')
    elif not turn.is_finished:
        parts.append('<div class="himtok-answer himtok-waiting">The model reads the image …</div>')
    parts += [f'<div class="himtok-note himtok-{kind}">{html.escape(text)}</div>' for kind, text in write_notes(turn)]
    return f'<section class="himtok-turn">{"".join(parts)}</section>'


def write_notes(turn: Turn) -> Iterable[tuple[str, str]]:
    """What a reader of an answer has to know: pairs of a kind (`error`, `warning` or `info`) and a sentence."""
    if turn.unknown_words:
        yield "warning", describe_unknown_words(turn.unknown_words)
    uncertain = [mask.name for mask in turn.masks if mask.is_uncertain]
    if uncertain:
        yield "warning", f"Uncertain, with a score below 0.5: {', '.join(uncertain)}."
    empty = [mask.name for mask in turn.masks if not mask.to_mask().any()]
    if empty:
        yield "warning", f"Empty, no pixel of the image belongs to it: {', '.join(empty)}."
    cut = [mask.name for mask in turn.masks if not mask.complete]
    if cut:
        yield "warning", f"Cut or malformed in the answer, and drawn from the tokens that it has: {', '.join(cut)}."
    if turn.has_no_target:
        yield "info", "No mask: the model says that nothing in the image matches the request."
    if turn.is_cut:
        yield "warning", "The answer was cut at its maximum number of tokens."
    if turn.is_stopped:
        yield "info", "Stopped. The next question leaves this answer out."
    if turn.error is not None:
        yield "error", turn.error
    elif turn.is_finished and not turn.answer and not turn.is_stopped:
        yield "warning", "The model’s answer is empty."


def _write_question(turn: Turn) -> str:
    texts = turn.question.split(MASK_PLACEHOLDER)
    chips = [_write_chip(layer) for layer in turn.regions]
    return "".join(html.escape(text) + chip for text, chip in zip(texts, [*chips, ""], strict=False))


def _write_answer(turn: Turn) -> str:
    parts, end = [], 0
    for span, mask in turn.match_masks():
        parts.append(_write_text(turn.answer[end : span.start]))
        if mask is not None:
            parts.append(_write_chip(mask))
        elif turn.is_finished:
            parts.append('<span class="himtok-chip himtok-dropped">mask without a drawing</span>')
        else:
            parts.append(f'<span class="himtok-chip himtok-open">mask, {len(span.codes)} tokens …</span>')
        end = span.end
    return "".join([*parts, _write_text(turn.answer[end:])])


def _write_text(text: str) -> str:
    parts, end = [], 0
    for phrase in _PHRASE.finditer(text):
        parts += [html.escape(text[end : phrase.start()]), f"<em>{html.escape(phrase[1])}</em>"]
        end = phrase.end()
    return "".join([*parts, html.escape(text[end:])])


def _write_chip(layer: MaskLayer) -> str:
    score = "" if layer.score is None else f" <small>{layer.score:.2f}</small>"
    kind = " himtok-uncertain" if layer.is_uncertain else ""
    color = "{}, {}, {}".format(*layer_color(layer))
    return (
        f'<button type="button" class="himtok-chip{kind}" data-layer="{html.escape(layer.id)}" '
        f'style="--mask-color: {color}" title="Show or hide this mask">{html.escape(layer.name)}{score}</button>'
    )
