"""The client of a server, against a server that sends what the test says."""

import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from himtok_plugin.client import ClientError, MaskClient, ServerUnreachableError
from himtok_plugin.client.mask_client import add_images, complete_address
from himtok_plugin.client.request_images import to_image_url

SEGMENT = {"size": [2, 2], "counts": "04", "codes": [1], "score": 0.5, "label": None, "complete": True}


def delta(finish=None, **fields):
    return {
        "id": "1",
        "object": "x",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": fields, "finish_reason": finish}],
    }


@contextmanager
def serving(chunks=(), status=200, body=None):
    """A client of a server that answers every question with the same chunks, or with an error; and what it was sent."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.reply("application/json", json.dumps({"data": [{"id": "m", "object": "model"}], "object": "list"}))

        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if status != 200:
                self.reply("application/json", json.dumps(body), status)
            else:
                self.reply("text/event-stream", "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks))

        def reply(self, kind, text, status=200):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield MaskClient(f"http://127.0.0.1:{server.server_address[1]}"), received
    finally:
        server.shutdown()
        server.server_close()


def png(color="red"):
    content = io.BytesIO()
    Image.new("RGB", (2, 2), color).save(content, "PNG")
    return content.getvalue()


def ask(client, question="Segment it.", **options):
    return list(client.ask([{"role": "user", "content": question}], [png()], **options))


def test_every_update_holds_the_whole_answer_so_far():
    chunks = [
        delta(content="It is ", unknown_words=["bus"]),
        delta(content="<|mt_1|>", previews=[{**SEGMENT, "index": 0}]),
        delta(content="<|mt_end|>", segments=[SEGMENT]),
        delta("stop", content="."),
    ]
    with serving(chunks) as (client, _):
        updates = ask(client)
    assert [update.text for update in updates][:2] == ["It is ", "It is <|mt_1|>"]
    assert [len(update.segments) for update in updates] == [0, 0, 1, 1, 1]
    assert updates[1].preview["codes"] == [1] and updates[2].preview is None
    assert [update.finished for update in updates] == [False] * 4 + [True]
    assert updates[-1].unknown_words == ["bus"] and not updates[-1].is_cut


def test_a_request_has_images_before_the_first_question_and_only_the_fields_that_were_asked_for():
    with serving([delta("length", content="a")]) as (client, received):
        assert ask(client)[-1].is_cut
        ask(client, masks=[{"size": [2, 2], "counts": "04"}], previews="all", preview_side=64, max_tokens=7)
    plain, full = received
    assert [part["type"] for part in plain["messages"][0]["content"]] == ["image_url", "text"]
    assert not {"masks", "mask_previews", "preview_side", "max_tokens"} & plain.keys()
    assert (full["mask_previews"], full["preview_side"], full["max_tokens"], len(full["masks"])) == ("all", 64, 7, 1)


@pytest.mark.parametrize(
    "body", [{"message": "masks: got 1", "object": "error"}, {"error": {"message": "masks: got 1"}}]
)
def test_a_refusal_has_the_servers_sentence(body):
    with serving(status=400, body=body) as (client, _), pytest.raises(ClientError, match="^masks: got 1$"):
        ask(client)


def test_an_answer_that_ends_early_is_an_error():
    with serving([delta(content="It is ")]) as (client, _), pytest.raises(ClientError, match="broke off"):
        ask(client)


def test_a_server_that_is_not_there_is_not_ready_and_cannot_be_asked():
    with serving() as (client, _):
        assert client.is_ready() and client.model_name() == "m"
    client = MaskClient(client.base_url)
    assert not client.is_ready()
    with pytest.raises(ServerUnreachableError, match="no server answers"):
        ask(client)


def test_images_stand_where_the_texts_have_their_place():
    messages = [{"role": "user", "content": "<image>Left."}, {"role": "assistant", "content": "Yes."}]
    first, second = add_images([*messages, {"role": "user", "content": "Or <image>?"}], ["a", "b"])[::2]
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert [part["type"] for part in second["content"]] == ["text", "image_url", "text"]
    with pytest.raises(ValueError, match="got 1 <image> for 2 images"):
        add_images(messages, ["a", "b"])
    with pytest.raises(ValueError, match="no message of the user"):
        add_images(messages[1:], ["a"])


def test_images_are_sent_as_whole_files(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    urls = {to_image_url(png()), to_image_url(tmp_path / "a.png"), to_image_url(str(tmp_path / "a.png"))}
    assert len(urls) == 1 and urls.pop().startswith("data:image/png;base64,")
    assert to_image_url("https://example.org/a.jpg") == "https://example.org/a.jpg"
    assert to_image_url(Image.new("L", (3, 3))).startswith("data:image/png;base64,")
    (tmp_path / "text.png").write_text("no image")
    for bad in (b"no image", tmp_path / "text.png", tmp_path / "missing.png"):
        with pytest.raises(ValueError, match="image: got"):
            to_image_url(bad)


def test_addresses_without_a_path_are_completed_and_others_are_refused():
    assert complete_address("http://host:8000/") == complete_address("http://host:8000/v1/") == "http://host:8000/v1"
    for bad in ("host:8000", "ftp://host/", "http://"):
        with pytest.raises(ValueError, match="base_url: got"):
            complete_address(bad)
