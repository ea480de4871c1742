"""Mask codes as text: the mask tokens, the `<mask>` placeholder and the grammar of legal mask text.

A mask is written as `<|mt_start|>`, 1 to 32 codes, `<|mt_end|>`.

Contract: `codes_to_text` and `text_to_codes` are inverses on legal masks. `codes_to_text` rejects illegal codes.
`text_to_codes` accepts any text, finds every mask in order and marks malformed masks without repairing them. Only the
standard library is imported, so that the output of any engine can be read wherever it is.
"""

import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MASK_START = "<|mt_start|>"
MASK_END = "<|mt_end|>"
MASK_PLACEHOLDER = "<mask>"
# Placeholders of ms-swift: each stands for the next entry of a sample's `images`, `objects.bbox` or `objects.ref`.
IMAGE_PLACEHOLDER, BOX_PLACEHOLDER, OBJECT_PLACEHOLDER = "<image>", "<bbox>", "<ref-object>"
MAX_MASK_TOKENS = 32  # codes per mask of the released mask tokenizer, arXiv 2503.13026

# ASCII digits only ("\d" also matches other scripts), without leading zeros: "<|mt_07|>" is text, not a token.
_TOKEN = re.compile(r"<\|mt_(start|end|0|[1-9][0-9]*)\|>")
_MAX_CODE_DIGITS = 9  # a longer number fits no codebook (nor int32), and int() raises for 5000 digits
MASK_TOKEN_PREFIX = "<|mt_"  # of every mask token; free text must not contain it


def mask_token(code: int) -> str:
    """The mask token of a code: `mask_token(7) == "<|mt_7|>"`."""
    return f"<|mt_{code}|>"


def mask_tokens(codebook_size: int) -> list[str]:
    """All mask tokens, in the order in which they are added to a vocabulary: start, end, codes 0 … v - 1."""
    _check_count("codebook_size", codebook_size)
    return [MASK_START, MASK_END, *(mask_token(code) for code in range(codebook_size))]


def codes_to_text(codes: Iterable[int], codebook_size: int | None = None) -> str:
    """Write one mask; the inverse of `text_to_codes`.

    Args:
        codes: 1 to 32 integers, each in [0, codebook_size); a list, or a one-dimensional integer array or tensor.
        codebook_size: number of codes v; None accepts all non-negative integers.
    Raises:
        ValueError: there are no codes or too many, or one of them is not an integer in range.
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
        codes: the legal codes, each in [0, codebook_size), at most `max_tokens`; may be empty if incomplete.
        start, end: character offsets: `text[start:end]` is the mask with its start and end tokens.
        complete: whether the mask is start, 1 … max_tokens legal codes, end, with only whitespace between them.
    """

    codes: list[int]
    start: int
    end: int
    complete: bool


@dataclass
class _OpenSpan:
    """A mask that is being read.

    Attributes:
        opened: whether it has a start token.
        legal: whether all that was read so far is legal.
    """

    start: int
    end: int
    opened: bool
    legal: bool
    codes: list[int] = field(default_factory=list)

    def close(self, ended: bool) -> MaskSpan:
        complete = self.opened and ended and self.legal and bool(self.codes)
        return MaskSpan(self.codes, self.start, self.end, complete)


def text_to_codes(text: str, codebook_size: int | None = None, max_tokens: int = MAX_MASK_TOKENS) -> list[MaskSpan]:
    """Find every mask in a text, in order; the inverse of `codes_to_text`. Never raises.

    Whitespace between the tokens of a mask is ignored, since some engines insert it. Malformed masks are returned with
    `complete=False`:

    - Without an end token (a truncated answer), the codes so far; a second start token ends the first mask.
    - Codes or an end token without a start token are a span of their own, consecutive ones together.
    - A start token followed by an end token is a span without codes.
    - A code outside the codebook, or of more than 9 digits, is dropped; the other codes are kept.
    - Of more than `max_tokens` codes, the first `max_tokens` are kept.
    - With other text between the tokens of a mask, the codes before and after it are kept, up to the end token.

    Args:
        text: any string.
        codebook_size: number of codes v; None accepts all codes of at most 9 digits.
        max_tokens: maximum number of codes of a complete mask.
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
    """Replace the authors' placeholder (start, 32 times code 0, end) by `<mask>`.

    The authors' datasets have a mask of zeros in place of each mask, which their loader overwrites with real codes.
    """
    return text.replace(MASK_START + mask_token(0) * num_mask_tokens + MASK_END, MASK_PLACEHOLDER)


def mask_regex(codebook_size: int, num_mask_tokens: int = MAX_MASK_TOKENS) -> str:
    """Regular expression of one legal mask: start, 1 … num_mask_tokens codes below codebook_size, end.

    It consists of groups, classes and counts only, so that Python's `re` and libraries that compile expressions to
    automata (outlines, xgrammar) accept it.
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
    """Regular expression of a whole answer: free text and `min_masks` to `max_masks` legal masks.

    Free text may contain anything but `<|mt_`, the beginning of every mask token. With `labels`, an answer consists of
    lines `label: MASK` only, or is empty if `min_masks` is 0. A label contains no line break, colon or "<" and does not
    begin with a space. The expression has no lookaround and must match the whole answer.

    Args:
        codebook_size: number of codes v.
        num_mask_tokens: maximum number of codes of a mask.
        min_masks, max_masks: range of the number of masks; None: unlimited.
        labels: whether the answer consists of labelled masks.
    Raises:
        ValueError: an argument is out of range.
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
    # Free text comes last, because libraries that prefer the first match (outlines) would read "<" as text.
    return f"(?:{_FREE_TEXT}{mask})" + _repeated(min_masks, max_masks) + _FREE_TEXT


def _repeated(minimum: int, maximum: int | None) -> str:
    return f"{{{minimum},{'' if maximum is None else maximum}}}"


def _text_without_prefix() -> str:
    """Expression of all texts without `<|mt_`, built from how much of that prefix has just been read.

    The prefix has its only "<" at the beginning. So a partial match is either restarted by "<" or ended by another
    character that does not continue it; the text may also end within a partial match.
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
    """Expression of the decimal numbers 0 … limit - 1 without leading zeros, as a few short alternatives."""
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
