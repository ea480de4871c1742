"""The task of text that datasets bring ready-made: grounded texts and dialogues."""

from __future__ import annotations

from collections.abc import Iterator

from himtok_plugin.data.records import MASKS_DO_NOT_FIT, BadEntry, Record
from himtok_plugin.mask_text import MASK_PLACEHOLDER, reference_placeholder_to_mask

from .making import Maker, Row, check_count, target_masks, task
from .wording import clean, clean_with_masks


@task("text with a mask behind each phrase, and questions with their answers, as the dataset has them")
def converse(record: Record, make: Maker) -> Iterator[Row]:
    for grounded in record.grounded:
        if make.is_sampled():
            with make.skipping_bad_entries(record, f"text {grounded.id}"):
                text, masks = "", []
                for piece in grounded.pieces:
                    if isinstance(piece, str):
                        text += piece
                        continue
                    phrase, targets = piece
                    masks += target_masks(record, targets, make.options)
                    count = 1 if make.options.merge_targets else len(targets)
                    text += f"<ref>{phrase}</ref>" + MASK_PLACEHOLDER * count
                check_count(masks, make.options)
                clean(text.replace(MASK_PLACEHOLDER, ""))
                question = make.draw("converse", "questions") if grounded.question is None else clean(grounded.question)
                asks = grounded.question is None or bool(masks)
                yield make.row(record, grounded.id, question, text.strip(), masks, asks_for_masks=asks)
    for dialogue in record.dialogues:
        if make.is_sampled():
            with make.skipping_bad_entries(record, f"question {dialogue.id}"):
                # The reference's placeholder becomes `<mask>` wherever rows are read: here as well, to be counted.
                question, answer = map(reference_placeholder_to_mask, (dialogue.question, dialogue.answer))
                marks = "".join((question, *dialogue.options, answer)).count(MASK_PLACEHOLDER)
                if marks != len(dialogue.masks):
                    raise BadEntry(MASKS_DO_NOT_FIT, f"{marks} {MASK_PLACEHOLDER} for {len(dialogue.masks)} masks")
                for text in (question, answer, *dialogue.options):
                    clean_with_masks(text)
                if dialogue.options:
                    lines = "\n".join(f"{chr(ord('A') + n)}. {option}" for n, option in enumerate(dialogue.options))
                    question = make.draw("choose", "questions", question=question, options=lines)
                elif dialogue.pool is not None:
                    question = make.draw(dialogue.pool, "questions", question=question)
                rles = [record.rle(i) for i in dialogue.masks]
                asks = MASK_PLACEHOLDER in answer
                yield make.row(record, dialogue.id, question, answer, rles, asks_for_masks=asks)
