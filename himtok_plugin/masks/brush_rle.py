"""Label Studio's run-length encoding of brush masks.

It encodes the bytes of an RGBA image, row by row; of a mask, all four are 0 or 255. The bits, highest first (as written
by thi.ng/rle-pack, which Label Studio uses): 32 for the number of bytes, 5 for the bits of a value less one, 4 times 4
for the bits of a block's length less one; then blocks. A block has one bit that is set if its value repeats, 2 bits
that choose one of the four widths, its length less one, and its value, or all its values.

Contract: a list of bytes that is not such an encoding of the stated size is a ValueError.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from himtok_plugin.validation import abridged, is_integer

from .rle import check_size
from .run_lengths import Runs
from .sources import GREY_THRESHOLD

CHANNELS = 4
VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)  # Label Studio's own choice; its readers take any


def encode_brush(mask: np.ndarray) -> list[int]:
    """Encode a mask, bool (h, w), as a list of bytes; the inverse of `decode_brush`."""
    bounds = Runs.from_mask(np.ascontiguousarray(mask.T)).bounds * CHANNELS  # of the transposed mask: row by row
    total = mask.size * CHANNELS
    ends = np.concatenate([[0], bounds, [total]])
    bits = [f"{total:032b}{VALUE_BITS - 1:05b}", *(f"{width - 1:04b}" for width in LENGTH_BITS)]
    for i, length in enumerate(np.diff(ends).tolist()):
        value = "11111111" if i % 2 else "00000000"
        while length:
            most = min(length, 1 << LENGTH_BITS[-1])
            kind = next(kind for kind, width in enumerate(LENGTH_BITS) if most <= 1 << width)
            bits.append(f"1{kind:02b}{most - 1:0{LENGTH_BITS[kind]}b}{value}")
            length -= most
    text = "".join(bits)
    text += "0" * (8 - len(text) % 8)  # a whole byte at the end of a byte, as Label Studio writes it
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode_brush(data: Any, size: tuple[int, int]) -> np.ndarray:
    """Decode a brush mask: bool (h, w), True where its alpha is 128 or more.

    Args:
        data: integers in 0 … 255.
        size: (h, w).
    Raises:
        ValueError: not such an encoding, or of another size.
    """
    h, w = check_size(size)
    if not isinstance(data, list) or not all(is_integer(byte) and 0 <= byte <= 255 for byte in data):
        raise ValueError(f"rle is {abridged(data)}: expected a list of bytes")
    bits = "".join(map("{:08b}".format, data))
    expected = h * w * CHANNELS
    try:
        count, value_bits = int(bits[:32], 2), int(bits[32:37], 2) + 1
        widths = [int(bits[at : at + 4], 2) + 1 for at in range(37, 53, 4)]
        if count != expected or value_bits != VALUE_BITS:
            raise ValueError(f"{count} values of {value_bits} bits")
        values = np.zeros(count, np.uint8)
        at, done = 53, 0
        while done < count:
            repeats, width = bits[at] == "1", widths[int(bits[at + 1 : at + 3], 2)]
            length = int(bits[at + 3 : at + 3 + width], 2) + 1
            at += 3 + width
            number = VALUE_BITS * (1 if repeats else length)
            own = int(bits[at : at + number], 2).to_bytes(number // 8, "big")
            if len(bits) < at + number or done + length > count:
                raise ValueError(f"a block of {length} values behind {done}")
            values[done : done + length] = np.frombuffer(own, np.uint8)
            at, done = at + number, done + length
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"rle {abridged(data)} is no brush mask ({error}): expected {expected} values of 8 bits, of an image of "
            f"(h, w) = {(h, w)}"
        ) from error
    return values.reshape(h, w, CHANNELS)[..., -1] >= GREY_THRESHOLD
