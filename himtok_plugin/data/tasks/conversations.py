"""The task of datasets that contain their own texts: grounded texts, questions and answers."""

from __future__ import annotations

from collections.abc import Iterator

from himtok_plugin.data.records import Record
from himtok_plugin.data.skip_log import MASKS_DO_NOT_FIT, AnnotationError
from himtok_plugin.mask_text import MASK_PLACEHOLDER, reference_placeholder_to_mask

from .sample_builder import TEXTS, Sample, SampleBuilder, check_mask_count, register_task, target_masks
from .wording import check_text_with_masks, clean_text


@register_task("the dataset's own texts: captions with a mask behind each phrase, questions and answers", TEXTS)
def converse(record: Record, builder: SampleBuilder) -> Iterator[Sample]:
    for grounded in record.grounded_texts:
        if builder.is_sampled():
            used = [i for piece in grounded.pieces if not isinstance(piece, str) for i in piece[1]]
            with builder.skip_on_error(record, f"text {grounded.id}", used):
                text, masks = "", []
                for piece in grounded.pieces:
                    if isinstance(piece, str):
                        text += piece
                        continue
                    phrase, targets = piece
                    masks += target_masks(record, targets, builder.options)
                    count = 1 if builder.options.merge_targets else len(targets)
                    text += f"<ref>{phrase}</ref>" + MASK_PLACEHOLDER * count
                check_mask_count(masks, builder.options)
                clean_text(text.replace(MASK_PLACEHOLDER, ""))
                question = (
                    builder.draw("converse", "questions")
                    if grounded.question is None
                    else clean_text(grounded.question)
                )
                asks = grounded.question is None or bool(masks)
                yield builder.build(record, grounded.id, question, text.strip(), masks, asks_for_masks=asks)
    for dialogue in record.dialogues:
        if builder.is_sampled():
            with builder.skip_on_error(record, f"question {dialogue.id}", dialogue.masks):
                # The placeholder of the paper's code counts as a `<mask>`, as it does wherever samples are read.
                question, answer = map(reference_placeholder_to_mask, (dialogue.question, dialogue.answer))
                marks = "".join((question, *dialogue.options, answer)).count(MASK_PLACEHOLDER)
                if marks != len(dialogue.masks):
                    raise AnnotationError(
                        MASKS_DO_NOT_FIT, f"{marks} {MASK_PLACEHOLDER} for {len(dialogue.masks)} masks"
                    )
                for text in (question, answer, *dialogue.options):
                    check_text_with_masks(text)
                if dialogue.options:
                    lines = "\n".join(f"{chr(ord('A') + n)}. {option}" for n, option in enumerate(dialogue.options))
                    question = builder.draw("choose", "questions", question=question, options=lines)
                elif dialogue.pool is not None:
                    question = builder.draw(dialogue.pool, "questions", question=question)
                rles = [record.rle(i) for i in dialogue.masks]
                asks = MASK_PLACEHOLDER in answer
                yield builder.build(record, dialogue.id, question, answer, rles, asks_for_masks=asks)
