"""Clients that ask a server about the scenes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
from servers import data_url
from vllm_servers import SERVED_NAME

CLIENTS = 16


def ask(address: str, row: dict[str, Any], stream: bool = False, model: str = SERVED_NAME, **options) -> Any:
    """The server's answer to a row's question; its chunks for a stream."""
    image = {"type": "image_url", "image_url": {"url": data_url(Path(row["images"][0]).read_bytes())}}
    question = {"type": "text", "text": row["messages"][0]["content"].removeprefix("<image>")}
    messages = [{"role": "user", "content": [image, question]}]
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=600) as client:
        answer = client.chat.completions.create(model=model, messages=messages, stream=stream, **options)
        return list(answer) if stream else answer


def ask_all(address: str, rows: list[dict[str, Any]], **options) -> list[Any]:
    """`ask` about all rows, from several clients at once."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(lambda row: ask(address, row, **options), rows))
