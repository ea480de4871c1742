"""The jinja2 environment of all pages.

Contract: every value is escaped, so text from datasets and models is shown as text, never as HTML. Pictures are
embedded by the filter `data_uri`, so a page needs no other file.
"""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from himtok_plugin.resources import shipped_path

JPEG_QUALITY = 85


@cache
def page_environment() -> Environment:
    """The templates of this folder; a template that uses a value it did not get raises `jinja2.UndefinedError`."""
    environment = Environment(
        loader=FileSystemLoader(shipped_path(Path(__file__).parent)),
        autoescape=True,  # always: select_autoescape would not recognise the ending .html.j2
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = picture_data_uri
    return environment


def render_page(template: str, **values: Any) -> bytes:
    """Render a template of this folder as UTF-8; characters that UTF-8 cannot encode become question marks."""
    return page_environment().get_template(template).render(values).encode("utf-8", "replace")


def picture_data_uri(picture: Image.Image) -> str:
    """A picture as a `data:` URI with JPEG content, for the `src` of an `<img>`."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
