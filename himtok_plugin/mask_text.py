"""Mask codes as text: tokens, the `<mask>` placeholder and the grammar of legal mask text.

Purpose: the one place that knows how a mask is written: `<|mt_start|>`, 1 to 32 codes, `<|mt_end|>`.
Contract: `codes_to_text` and `text_to_codes` are inverses on legal masks. `codes_to_text` refuses what is not legal;
`text_to_codes` never raises on any text, finds every mask in order and marks the malformed ones, never repairing them.
This module does not know tokenizers, token ids, images or models; it uses the standard library only, so that the
output of any engine, or a log file, can be read without installing one.
"""

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MASK_START = "<|mt_start|>"
MASK_END = "<|mt_end|>"
MASK_PLACEHOLDER = "<mask>"
# ms-swift's own, in the text of rows: each stands for the next of the row's `images`, `objects.bbox`, `objects.ref`.
IMAGE_PLACEHOLDER, BOX_PLACEHOLDER, OBJECT_PLACEHOLDER = "<image>", "<bbox>", "<ref-object>"
MAX_MASK_TOKENS = 32  # latent tokens of the released mask tokenizer, arXiv 2503.13026

# ASCII digits only ("\d" also matches other scripts) and no leading zeros: "<|mt_07|>" is not a token, just text.
_TOKEN = re.compile(r"<\|mt_(start|end|0|[1-9][0-9]*)\|>")
_MAX_CODE_DIGITS = 9  # a longer number fits no codebook (nor int32), and int() itself refuses 5000 digits
MASK_TOKEN_PREFIX = "<|mt_"  # what every mask token begins with, and free text must not contain


def mask_token(code: int) -> str:
    """The token text of one code: `mask_token(7) == "<|mt_7|>"`."""
    return f"<|mt_{code}|>"


def mask_tokens(codebook_size: int) -> list[str]:
    """All new tokens of the vocabulary, in the order in which they are added: start, end, codes 0 … v - 1."""
    _check_count("codebook_size", codebook_size)
    return [MASK_START, MASK_END, *(mask_token(code) for code in range(codebook_size))]


def codes_to_text(codes: Iterable[int], codebook_size: int | None = None) -> str:
    """Write one mask; the inverse of `text_to_codes`.

    Args:
        codes: 1 to 32 integers, each in [0, codebook_size); a list, or a one-dimensional integer array or tensor.
        codebook_size: number of codes v; None checks the sign only.
    Raises:
        ValueError: no code, too many, or one that is not an integer of the codebook.
    """
    upper = "" if codebook_size is None else f" below {codebook_size}"
    try:
        codes = list(codes)
    except TypeError as error:
        raise ValueError(f"codes is {codes!r:.80}: expected a sequence of integers") from error
    if not 1 <= len(codes) <= MAX_MASK_TOKENS:
        raise ValueError(f"codes has {len(codes)} entries: expected 1 to {MAX_MASK_TOKENS}")
    tokens = []
    for i, code in enumerate(codes):
        try:
            value = None if isinstance(code, bool) else operator.index(code)
        except TypeError:
            value = None
        if value is None or value < 0 or (codebook_size is not None and value >= codebook_size):
            raise ValueError(f"codes[{i}] is {code!r:.80}: expected a non-negative integer{upper}")
        tokens.append(mask_token(value))
    return MASK_START + "".join(tokens) + MASK_END


@dataclass(frozen=True)
class MaskSpan:
    """One mask found in a text.

    Attributes:
        codes: the usable codes, each in [0, codebook_size), at most `max_tokens` of them; may be empty if incomplete.
        start, end: character offsets, `text[start:end]` is what belongs to the mask, its start and end tokens included.
        complete: True for start, 1 … max_tokens legal codes, end, with nothing but whitespace between them.
    """

    codes: list[int]
    start: int
    end: int
    complete: bool


@dataclass
class _OpenSpan:
    """A mask being read; `legal` falls as soon as something does not belong, `opened` says it has a start token."""

    start: int
    end: int
    opened: bool
    legal: bool
    codes: list[int] = field(default_factory=list)

    def close(self, ended: bool) -> MaskSpan:
        complete = self.opened and ended and self.legal and bool(self.codes)
        return MaskSpan(self.codes, self.start, self.end, complete)


def text_to_codes(text: str, codebook_size: int | None = None, max_tokens: int = MAX_MASK_TOKENS) -> list[MaskSpan]:
    """Find every mask in a text, in order; the inverse of `codes_to_text`. No text makes this raise.

    Whitespace between the tokens of a mask is tolerated, since some engines put it there. Outcome of malformed text,
    `complete=False` in each case:

    - no end token (a cut answer): the codes so far; a second start closes the first mask where it stands;
    - codes without a start, an end without a start: a span of their own (consecutive ones together);
    - start directly followed by end: a span with no codes;
    - a code outside the codebook, or of more than 9 digits: dropped, the other codes are kept;
    - more than `max_tokens` codes: the first `max_tokens` are kept;
    - other text between the tokens of a mask: the codes on both sides of it, up to the end token.

    Args:
        text: any string.
        codebook_size: number of codes v; None accepts every code of at most 9 digits.
        max_tokens: most codes that a complete mask has.
    """
    spans: list[MaskSpan] = []
    current: _OpenSpan | None = None
    for match in _TOKEN.finditer(text):
        kind = match[1]
        foreign = current is not None and not _is_space(text, current.end, match.start())
        if current is not None and (kind == "start" or (foreign and not current.opened)):
            spans.append(current.close(ended=False))
            current = None
        if current is None:
            current = _OpenSpan(match.start(), match.end(), opened=kind == "start", legal=True)
        elif foreign:
            current.legal = False
        current.end = match.end()
        if kind == "end":
            spans.append(current.close(ended=True))
            current = None
        elif kind != "start":
            _add_code(current, kind, codebook_size, max_tokens)
    if current is not None:
        spans.append(current.close(ended=False))
    return spans


def _add_code(span: _OpenSpan, digits: str, codebook_size: int | None, max_tokens: int) -> None:
    known = len(digits) <= _MAX_CODE_DIGITS and (codebook_size is None or int(digits) < codebook_size)
    if known and len(span.codes) < max_tokens:
        span.codes.append(int(digits))
    else:
        span.legal = False


def _is_space(text: str, start: int, end: int) -> bool:
    return start == end or text[start:end].isspace()


def count_placeholders(text: str) -> int:
    """Number of `<mask>` placeholders in the text."""
    return text.count(MASK_PLACEHOLDER)


def reference_placeholder_to_mask(text: str, num_mask_tokens: int = MAX_MASK_TOKENS) -> str:
    """Turn the reference's placeholder (start, 32 times code 0, end) into `<mask>`; all else stays.

    The authors' dataset rows write the mask's place as a mask of zeros, which their loader overwrites with real codes.
    """
    return text.replace(MASK_START + mask_token(0) * num_mask_tokens + MASK_END, MASK_PLACEHOLDER)


def mask_regex(codebook_size: int, num_mask_tokens: int = MAX_MASK_TOKENS) -> str:
    """Regular expression of one legal mask: start, 1 … num_mask_tokens codes below codebook_size, end.

    Only groups, classes and counts are used, so that engines which compile it to an automaton (outlines, xgrammar)
    take it as well as Python's `re`.
    """
    _check_count("codebook_size", codebook_size)
    _check_count("num_mask_tokens", num_mask_tokens)
    code = rf"<\|mt_(?:{_number_below(codebook_size)})\|>"
    return rf"<\|mt_start\|>(?:{code}){{1,{num_mask_tokens}}}<\|mt_end\|>"


def answer_regex(
    codebook_size: int,
    num_mask_tokens: int = MAX_MASK_TOKENS,
    min_masks: int = 0,
    max_masks: int | None = None,
    labels: bool = False,
) -> str:
    """Regular expression of a whole answer: any text, `min_masks` to `max_masks` legal masks, nothing stray.

    Free text may hold anything but `<|mt_`, the beginning of every mask token. With `labels` an answer is lines of
    `label: MASK` and nothing else (or empty, where no mask is asked for); a label holds no line break, no colon, no "<"
    and does not begin with a space. It uses no lookaround; match it against the whole answer.
    """
    if min_masks < 0 or (max_masks is not None and max_masks < min_masks):
        raise ValueError(f"min_masks, max_masks is {min_masks}, {max_masks}: expected 0 <= min_masks <= max_masks")
    mask = mask_regex(codebook_size, num_mask_tokens)
    if labels:
        if max_masks == 0:
            raise ValueError("max_masks is 0: expected at least 1 with labels")
        line = f"{_LABEL}: {mask}"
        lines = f"{line}(?:\\n{line})" + _repeated(max(min_masks - 1, 0), None if max_masks is None else max_masks - 1)
        return lines if min_masks else f"(?:{lines})?"
    if max_masks == 0:
        return _FREE_TEXT
    # Free text comes last: libraries that prefer the first match (outlines) would take "<" for text and drop the mask.
    return f"(?:{_FREE_TEXT}{mask})" + _repeated(min_masks, max_masks) + _FREE_TEXT


def _repeated(least: int, most: int | None) -> str:
    return f"{{{least},{'' if most is None else most}}}"


def _text_without_prefix() -> str:
    """Expression of all text free of `<|mt_`, as the automaton that counts how much of it has just been read.

    "<" stands only at the prefix's beginning, so after a partial match either "<" begins it anew or another wrong
    character ends it; the text may stop within a partial match.
    """
    rest = MASK_TOKEN_PREFIX[1:]
    partial = [re.escape(rest[:n]) for n in range(len(rest))]  # read after "<": "", "|", "|m" …
    again = "|".join(f"{read}<" for read in partial)
    broken = "|".join(f"{read}[^<{rest[i]}]" for i, read in enumerate(partial))
    started = f"<(?:{again})*"
    return f"(?:[^<]|{started}(?:{broken}))*(?:{started}(?:{'|'.join(reversed(partial))}))?"


_FREE_TEXT = _text_without_prefix()
_LABEL = r"[^\n\r:< ][^\n\r:<]*"


def _number_below(limit: int) -> str:
    """Expression of the decimal numbers 0 … limit - 1 without leading zeros, e.g. 1024 -> 4 short alternatives."""
    highest = str(limit - 1)
    options = [] if len(highest) == 1 else ["[0-9]"]
    options += [f"[1-9][0-9]{{{digits}}}" for digits in range(1, len(highest) - 1)]
    for i, digit in enumerate(highest):  # same length: equal to `highest` up to i, smaller at i, free after it
        low = 1 if i == 0 and len(highest) > 1 else 0
        last = i == len(highest) - 1
        high = int(digit) if last else int(digit) - 1
        if low <= high:
            rest = "" if last else f"[0-9]{{{len(highest) - 1 - i}}}"
            options.append(f"{highest[:i]}[{low}-{high}]{rest}")
    return "|".join(options)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: expected an integer of at least 1")
