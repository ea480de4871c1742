"""Bodies of requests: read up to a limit of size, parsed as JSON up to a limit of depth."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from starlette.requests import Request

BODY_SECONDS = 60.0  # a client that sends slowly counts as a request in progress
MAX_DEPTH = 64  # of lists and objects in each other; ms-swift's copies and prints of a request call themselves


class RequestRefused(ValueError):
    """A request that is not answered.

    Args:
        reason: text for the client.
        status: the HTTP status.
    """

    def __init__(self, reason: str, status: int = 400):
        super().__init__(reason)
        self.status = status


async def read_body(request: Request, max_bytes: int, seconds: float = BODY_SECONDS) -> bytes:
    """Read the body of a request.

    Raises:
        RequestRefused: the body has more than `max_bytes`, or does not come within `seconds`.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    raise RequestRefused(f"body: got more than {max_bytes} bytes, expected at most that", 413)
                parts.append(part)
    except TimeoutError as error:
        raise RequestRefused(f"body: got {size} bytes in {seconds:g} seconds, expected all", 408) from error
    return b"".join(parts)


def parse_body(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object.

    Raises:
        RequestRefused: the body is no JSON object, or it is nested more than `MAX_DEPTH` deep.
    """
    try:
        parsed = json.loads(body)
    except RecursionError as error:
        raise RequestRefused(f"body: got JSON nested too deep, expected at most {MAX_DEPTH} levels") from error
    except ValueError as error:  # a UnicodeDecodeError is one, and that of integers of thousands of digits
        raise RequestRefused(f"body: cannot be read as JSON ({error!s:.200}), expected a JSON object") from error
    if b"\\ud" in body.lower() and not _is_unicode(parsed):
        raise RequestRefused("body: got a text with half of a surrogate pair, expected Unicode")
    if not isinstance(parsed, dict):
        raise RequestRefused(f"body: got a {type(parsed).__name__}, expected a JSON object")
    for name, value in parsed.items():
        if _is_deeper(value, MAX_DEPTH):
            raise RequestRefused(f"{name:.80}: got a value nested more than {MAX_DEPTH} deep, expected a flatter one")
    return parsed


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
        level = [each for each in below if isinstance(each, dict | list)]
        if not level:
            return False
    return True
