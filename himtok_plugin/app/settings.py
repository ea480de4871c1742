"""What a page knows about the server that it asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MIB = 2**20


def describe_no_failure() -> str | None:
    """For a server that the page has not started: nobody knows of a failure."""
    return None


@dataclass(frozen=True)
class PageSettings:
    """A server, and what it accepts; the defaults are those of `swift deploy --plugin himtok` (docs/serving.md).

    Attributes:
        base_url: address of the server's OpenAI API, such as `http://127.0.0.1:8000/v1`.
        api_key: key of the server; None if it needs none.
        title: title of the page; None for its own.
        describe_failure: returns a sentence once the server cannot answer any more, for example because its model could
            not be loaded; None before.
        max_request_bytes: bytes of a request; an image in base64 is a third larger than its file.
        max_image_pixels: pixels of an image.
        max_request_pixels: pixels of all images of a request.
        max_request_images: images of a request.
        max_request_masks: masks of a request, one for each `<mask>` in its messages.
    """

    base_url: str
    api_key: str | None = None
    title: str | None = None
    describe_failure: Callable[[], str | None] = describe_no_failure
    max_request_bytes: int = 64 * MIB
    max_image_pixels: int = 2**25
    max_request_pixels: int = 2**26
    max_request_images: int = 16
    max_request_masks: int = 16

    @property
    def max_file_bytes(self) -> int:
        """Size of the largest image file that fits into a request in base64, beside a question."""
        return max((self.max_request_bytes - _TEXT_BYTES) * 3 // 4, 1)


_TEXT_BYTES = 2**16  # of the messages and RLEs beside an image
