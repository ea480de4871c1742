"""The page to segment in: layout and events. What it shows and keeps is made by the other modules of this folder.

Contract: `build_page` returns a page that asks one server. Every browser tab has a `Session` of its own.
"""

from __future__ import annotations

import html
import json
import tempfile
import weakref
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from himtok_plugin.client import ClientError, MaskClient
from himtok_plugin.resources import shipped_path

from .answer_text import write_conversation
from .asking import ask_server
from .downloads import DOWNLOADS, Download, View, save_download
from .examples import save_examples
from .regions import CLICK_RADIUS
from .session import Session
from .settings import PageSettings
from .stage import describe_image, describe_layers
from .uploads import read_upload

if TYPE_CHECKING:
    import gradio

TITLE = "Segment with HiMTok"
_POLL_SECONDS = 2.0  # while the model loads
_QUESTIONS_AT_A_TIME = 16  # of all tabs; the server answers several together
_CLEANING = (600, 6 * 3600)  # every so many seconds, gradio's copies of files older than so many are deleted


def build_page(settings: PageSettings, client: MaskClient | None = None) -> gradio.Blocks:
    """Build the page.

    Args:
        settings: the server and its limits.
        client: asks the server; by default one of `settings`.
    Returns:
        A page to `launch`, see `hosting.host_page`.
    """
    import gradio as gr

    if client is None:
        client = MaskClient(settings.base_url, settings.api_key)
    folder = tempfile.TemporaryDirectory(prefix="himtok_page_")
    title = settings.title or TITLE
    events = _Events(settings, client, Path(folder.name))
    with gr.Blocks(
        theme=_make_theme(),
        title=title,
        css=_read_file("page.css"),
        head=f"<script>{_read_file('stage.js')}</script>",
        analytics_enabled=False,
        delete_cache=_CLEANING,
    ) as page:
        _lay_out(events, title)
    weakref.finalize(page, folder.cleanup)
    return page


def _lay_out(events: _Events, title: str) -> None:
    """Place the components in the open `Blocks`, and connect their events."""
    import gradio as gr

    session = gr.State(Session())
    image_data, layer_data = (gr.Textbox(elem_classes="himtok-unseen", show_label=False) for _ in range(2))
    argument = gr.Textbox(elem_classes="himtok-unseen", show_label=False)  # what a script sends with an event
    with gr.Row(elem_id="himtok-title"):
        gr.HTML(f"<h1>{html.escape(title)}</h1>")
        status = gr.HTML(events.describe_status()[0], elem_id="himtok-status")
    with gr.Row(equal_height=False):
        with gr.Column(scale=7, min_width=320):
            images = gr.Radio(visible=False, label="Images", type="index", elem_id="himtok-images")
            with gr.Accordion("Add an image", open=True) as adding:
                upload = gr.Image(
                    sources=["upload", "clipboard", "webcam"],
                    type="filepath",
                    show_label=False,
                    height=190,
                    elem_id="himtok-upload",
                    placeholder="Drop an image here, or click to choose one",
                )
                examples = save_examples(events.folder / "examples")
                shown = gr.Dataset(
                    components=[gr.Image(visible=False), gr.Textbox(visible=False)],
                    samples=[[str(path), text] for path, text in examples],
                    label="Examples",
                    type="index",
                    elem_id="himtok-examples",
                )
            gr.HTML(_read_file("stage.html").replace("CLICK_RADIUS", str(CLICK_RADIUS)))
            tokens = gr.Slider(
                1,
                2,
                value=2,
                step=1,
                visible=False,
                label="Mask tokens: from coarse to fine",
                info="Draws every mask after so many of its tokens. The model is not asked again.",
                elem_id="himtok-tokens",
            )
            with gr.Row(elem_id="himtok-downloads", visible=False) as downloads:
                buttons = [gr.Button(each.title, size="sm", min_width=100) for each in DOWNLOADS]
            file = gr.DownloadButton(elem_id="himtok-file", elem_classes="himtok-unseen")
        with gr.Column(scale=5, min_width=320):
            conversation = gr.HTML(write_conversation(None), elem_id="himtok-conversation")
            notice = gr.HTML("", elem_id="himtok-notice")
            question = gr.Textbox(
                label="Question",
                placeholder="Segment the dog on the left.",
                lines=2,
                max_lines=6,
                elem_id="himtok-question",
                submit_btn=False,
            )
            with gr.Row():
                ask = gr.Button("Ask", variant="primary", elem_id="himtok-ask", min_width=90)
                stop = gr.Button("Stop", variant="stop", visible=False, elem_id="himtok-stop", min_width=90)
                clear = gr.Button("Clear", elem_id="himtok-clear", min_width=90)
    added = gr.Button(elem_id="himtok-region-added", elem_classes="himtok-unseen")
    removed = gr.Button(elem_id="himtok-region-removed", elem_classes="himtok-unseen")

    # What the browser does alone.
    image_data.change(None, image_data, js="(text) => { window.himtok.showImage(text); }")
    layer_data.change(None, layer_data, js="(text) => { window.himtok.showLayers(text); }")
    conversation.change(None, js="() => { window.himtok.showChips(); }")
    tokens.change(None, tokens, js="(tokens) => { window.himtok.showTokens(tokens); }")
    added.click(None, question, question, js="(text) => window.himtok.addPlaceholder(text)")
    removed.click(None, question, question, js="(text) => window.himtok.removePlaceholder(text)")

    # What asks Python.
    everything = [session, image_data, layer_data, conversation, images, tokens, downloads, adding, notice]
    free: dict[str, Any] = {"queue": True, "show_progress": "hidden", "concurrency_limit": _QUESTIONS_AT_A_TIME}
    # `preprocess=False`: gradio would read the file itself, and fail on one that is no image without a sentence.
    upload.input(events.add_image, [session, upload], [*everything, upload], preprocess=False, **free)
    shown.click(partial(events.add_example, examples), [session, shown], [*everything, question], **free)
    images.input(events.show_image, [session, images], everything, **free)
    clear.click(events.clear, session, everything, **free)
    asked: list[Any] = [
        event(
            events.ask,
            [session, question, argument],
            [session, layer_data, conversation, tokens, downloads, question, notice, stop],
            js="(session, text) => [session, text, window.himtok.regions()]",
            **free,
        )
        for event in (ask.click, question.submit)
    ]
    stop.click(events.end_answer, session, [conversation, stop], cancels=asked, **free)
    for button, kind in zip(buttons, DOWNLOADS, strict=True):
        made = button.click(
            partial(events.download, kind),
            [session, argument],
            [file, notice],
            js="(session) => [session, window.himtok.view()]",
            **free,
        )
        made.success(
            None,
            file,
            js="(file) => { if (file) setTimeout(() => document.querySelector('#himtok-file').click(), 100); }",
        )
    timer = gr.Timer(_POLL_SECONDS)
    timer.tick(events.describe_status_update, None, [status, timer], **free)


class _Events:
    """What happens on the server's side of the page.

    Args:
        settings: the server and its limits.
        client: of the server.
        folder: for files that browsers fetch.
    """

    def __init__(self, settings: PageSettings, client: MaskClient, folder: Path):
        self.settings = settings
        self.client = client
        self.folder = folder

    def add_image(self, session: Session, payload: dict[str, Any] | None) -> Any:
        """Begin a conversation about an uploaded image; empties the upload, so that it takes the next one."""
        import gradio as gr

        if not payload:
            return gr.skip()
        name = payload.get("orig_name") or Path(payload["path"]).name
        return [*self._add(session, payload["path"], name), None]

    def add_example(self, examples: list[tuple[Path, str]], session: Session, index: int) -> list[Any]:
        """Begin a conversation about an example, with its question ready to ask."""
        path, question = examples[index]
        return [*self._add(session, path, path.name), question]

    def _add(self, session: Session, path: str | Path, name: str) -> list[Any]:
        try:
            session.add_image(read_upload(path, self.settings, name))
        except (ValueError, OSError) as error:
            return self._show(session, notice=str(error), unchanged=True)
        return self._show(session)

    def show_image(self, session: Session, index: int | None) -> list[Any]:
        """Show another image and its conversation."""
        if index is not None:
            session.show(index)
        return self._show(session)

    def clear(self, session: Session) -> list[Any]:
        """Begin the conversation about the image anew."""
        session.clear_current()
        return self._show(session)

    def ask(self, session: Session, question: str | None, regions: str | None) -> Iterator[list[Any]]:
        """Ask the question, and show the answer as it comes."""
        import gradio as gr

        asked = session.current
        try:
            if asked is None:
                raise ValueError("image: got none, expected one to ask about: add an image, or choose an example")
            turn = asked.start_turn(question or "", json.loads(regions or "[]"), self.settings.max_request_masks)
        except ValueError as error:
            yield [session, *[gr.skip()] * 5, _write_notice(str(error)), gr.skip()]
            return
        yield [session, *self._show_answer(session), "", "", gr.Button(visible=True)]
        for _ in ask_server(self.client, asked, turn):
            if session.current is asked:  # another image can have been chosen meanwhile
                yield [session, *self._show_answer(session), *[gr.skip()] * 3]
        again = gr.skip() if turn.error is None else turn.question
        yield [session, *[gr.skip()] * 4, again, gr.skip(), gr.Button(visible=False)]

    def end_answer(self, session: Session) -> list[Any]:
        """Show that an answer was stopped."""
        import gradio as gr

        for each in session.conversations:
            for turn in each.turns:
                if not turn.is_finished:
                    turn.is_finished = turn.is_stopped = True
        return [write_conversation(session.current), gr.Button(visible=False)]

    def download(self, kind: Download, session: Session, view: str | None) -> list[Any]:
        """Write a file of the conversation, for the browser to fetch."""
        try:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            return [str(save_download(kind, session.current, View.from_json(view), folder)), ""]
        except (ValueError, OSError) as error:
            return [None, _write_notice(str(error))]

    def describe_status(self) -> tuple[str, bool]:
        """Describe the server in HTML, and whether it is still to be asked again."""
        failure = self.settings.describe_failure()
        if failure is not None:
            return f'<p class="failed">{html.escape(failure)}</p>', False
        try:
            if self.client.is_ready():
                return f'<p class="ready">{html.escape(self.client.model_name())} is ready</p>', False
        except ClientError as error:
            return f'<p class="failed">{html.escape(str(error))}</p>', True
        return '<p class="loading">The model is loading. You can add an image meanwhile.</p>', True

    def describe_status_update(self) -> list[Any]:
        """Update the line of the status; the timer stops when nothing more is to come."""
        import gradio as gr

        text, goes_on = self.describe_status()
        return [text, gr.Timer(active=goes_on)]

    def _show(self, session: Session, notice: str = "", unchanged: bool = False) -> list[Any]:
        """Values of all components that depend on the session."""
        import gradio as gr

        current = session.current
        names = session.names()
        if unchanged or current is None:
            return [session, *[gr.skip()] * 7, _write_notice(notice)]
        return [
            session,
            json.dumps({**describe_image(current.image), "number": current.number}),
            *self._show_answer(session)[:2],
            gr.Radio(names, value=names[session.index], visible=len(names) > 1),
            *self._show_answer(session)[2:],
            gr.Accordion(open=False),
            _write_notice(notice),
        ]

    def _show_answer(self, session: Session) -> list[Any]:
        """Values of the layers, the conversation, the slider and the row of downloads."""
        import gradio as gr

        current = session.current
        if current is None:
            return [gr.skip()] * 4
        largest = current.num_tokens
        finished = not current.turns or current.turns[-1].is_finished
        slider = (
            gr.Slider(maximum=max(largest, 2), value=max(largest, 2), visible=largest > 1) if finished else gr.skip()
        )
        return [
            json.dumps({**describe_layers(current), "image": current.number}),
            write_conversation(current),
            slider,
            gr.Row(visible=True),
        ]


def _write_notice(text: str) -> str:
    return f'<div class="himtok-note himtok-error" role="alert">{html.escape(text)}</div>' if text else ""


@cache
def _read_file(name: str) -> str:
    return (Path(shipped_path(Path(__file__).parent)) / name).read_text(encoding="utf-8")


def _make_theme() -> Any:
    import gradio as gr

    # Fonts of the system, so that a page without internet waits for nobody.
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
