"""Requests that go wrong, at every route: status 400 and a reason; and forms of good requests."""

import asyncio
import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from servers import KEY, MAX_IMAGES, MAX_REQUEST_PIXELS, MODEL, data_url, png, png_header

URL = data_url(png(48, 64))
BASE64 = URL.partition(",")[2]
CHAT, COMPLETIONS, INFER = "/v1/chat/completions", "/v1/completions", "/infer/"


def part(url=URL) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words="Segment it.") -> dict:
    return {"type": "text", "text": words}


def chat(content, **changes) -> dict:
    messages = [{"role": "user", "content": content}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8, **changes}


def ask_about(url=URL, words="Segment it.", **changes) -> dict:
    return chat([part(url), text(words)], **changes)


def row(**changes) -> dict:
    return {"messages": [{"role": "user", "content": "<image>Segment it."}], "images": [URL], **changes}


def infer(*rows, **config) -> dict:
    return {"infer_requests": list(rows), "request_config": {"temperature": 0, "max_tokens": 8, **config}}


def post(address: str, path: str, body, timeout: float = 120) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(address.removesuffix("/v1") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def nested(depth: int):
    return json.loads("[" * depth + "]" * depth)


TOOL = {"type": "function", "function": {"name": "f"}}


def deep_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("I;16", (4, 3)).save(buffer, "png")
    return buffer.getvalue()


HUGE = data_url(png_header(10_000, 9_000))
DEEP = data_url(deep_png())
LARGE = data_url(png(95, 95))
# What is sent, and a word of the reason.
BAD_CHATS = {
    "n of 0": (ask_about(n=0), "n: got 0, expected an integer from 1 to 8"),
    "n below 0": (ask_about(n=-1), "n: got -1"),
    "n too large": (ask_about(n=64), "n: got 64"),
    "n as a text": (ask_about(n="many"), "n: "),
    "n with greedy search": (ask_about(n=2), "n: got 2, expected 1 with temperature 0"),
    "n above the beams": (ask_about(n=3, num_beams=2), "n: got 3, expected at most num_beams, 2"),
    "too many beams": (ask_about(num_beams=200), "num_beams: got 200, expected an integer from 1 to 8"),
    "too many tokens": (ask_about(max_tokens=10**9), "max_tokens: got 1000000000"),
    "no tokens": (ask_about(max_tokens=0), "max_tokens: got 0"),
    "text of megabytes": (ask_about(words="Segment it. " * 10**6), "messages: got 120000"),
    "two limits of tokens": (ask_about(max_completion_tokens=5), "max_completion_tokens: got 5 beside max_tokens 8"),
    "top_p above 1": (ask_about(top_p=1.5), "top_p: got 1.5"),
    "huge integer": (ask_about(top_k=10**400), "top_k: "),
    "temperature that is no number": (ask_about(temperature=float("nan")), "temperature: got nan"),
    "empty stop word": (ask_about(stop=[""]), "stop: "),
    "unknown field": (
        ask_about(max_token=5),
        "max_token: got a field without effect",
    ),
    "format of the answer": (ask_about(response_format={"type": "json_object"}), "response_format"),
    "image token": (ask_about(words="a <IMG_CONTEXT> b"), "'<IMG_CONTEXT>', which stands for an image"),
    "image token in two parts": (chat([part(), text("<IMG_"), text("CONTEXT>")]), "'<IMG_CONTEXT>'"),
    "image token in a tool": (
        ask_about(tools=[{"type": "function", "function": {"name": "<IMG_CONTEXT>"}}]),
        "'<IMG_C",
    ),
    "image token in an object": (
        chat("<image>Hi.", images=[URL], objects={"ref": ["<IMG_CONTEXT>"], "bbox": []}),
        "'<IMG_CON",
    ),
    "tool without a name": (ask_about(tools=[{"type": "function"}]), "tools[0]: got"),
    "choice of no tool": (
        ask_about(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice: got 'g', expected one of the tools ['f']",
    ),
    "choice without a function": (ask_about(tools=[TOOL], tool_choice={"type": "function"}), "tool_choice: got"),
    "choice that is a number": (ask_about(tool_choice=3), "tool_choice: got 3, expected one of none, auto, required"),
    "audio for a model without": (
        chat([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, text()]),
        "audios: got 1, expected none: this model cannot read them",
    ),
    "video that is none": (
        chat([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}, text()]),
        "videos, audios: cannot be read (",
    ),
    "half an image": (ask_about(URL[: len(URL) // 2]), "images: "),
    "deep image": (ask_about(DEEP), "images[0]: depth: got an image of mode I;16, more than 8 bits per channel"),
    "prompt repeated in the answer": (ask_about(echo=True), "echo: got a field without effect here"),
    "tool call without a name": (
        chat("", messages=[{"role": "user", "content": "Hi."}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        "messages[1].tool_calls[0]: got",
    ),
    "objects without boxes": (ask_about(objects={"ref": ["dog"]}), "objects.bbox: got None"),
    "box of three numbers": (ask_about(objects={"bbox": [[1, 2, 3]]}), "objects.bbox[0]: got [1, 2, 3]"),
    "endless box": (ask_about(objects={"bbox": [[1, 2, 3, float("inf")]]}), "objects.bbox[0]: got"),
    "image tag without an image": (chat("What is <image>?"), "got 1 <image>, expected at most 0"),
    "more image tags than images": (ask_about(words="What is <image>?"), "got 2 <image>, expected at most 1"),
    "video tag": (ask_about(words="What is <video>?"), "got 1 <video>, expected at most 0"),
    "file in a text": (chat("What is <img>/etc/passwd</img>?"), "got <img>"),
    "images at two places": (ask_about(images=[URL]), "images: got 1 beside 1 in the messages"),
    "too many images": (
        chat([part()] * (MAX_IMAGES + 1)),
        f"images: got {MAX_IMAGES + 1}, expected at most {MAX_IMAGES}",
    ),
    "too many pixels together": (chat([part(LARGE)] * 3), f"expected at most {MAX_REQUEST_PIXELS} of all images"),
    "too many pixels in one": (ask_about(HUGE), "images[0]: got 10000 x 9000"),
    "empty data URL": (ask_about("data:image/png;base64,"), "images[0]: cannot be read (got a data URL that is empty"),
    "empty URL": (ask_about(""), "image_url: got ''"),
    "URL that is a number": (ask_about(3), "image_url: got 3"),
    "image without a URL": (chat([{"type": "image_url"}]), "got 1 <image>, expected at most 0"),
    "no base64": (ask_about("data:image/png;base64,???"), "images[0]"),
    "page as an image": (ask_about(data_url(b"<html></html>")), "of no known format"),
    "document with commands": (
        ask_about(data_url(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
        "of no known",
    ),
    "file of the server": (ask_about("/etc/hostname"), "got '/etc/hostname', expected an http or https URL, base64"),
    "file URL": (ask_about("file:///etc/hostname"), "got 'file:///etc/hostname'"),
    "loopback": (ask_about("http://localhost:9/a.png"), "with an internal address"),
    "credentials of a cloud": (ask_about("http://169.254.169.254/latest/meta-data"), "with an internal address"),
    "masks nested deep": (ask_about(words="<mask>", masks=nested(600)), "masks: got a value nested more than 64 deep"),
    "no message": (chat("", messages=[]), "messages: got []"),
    "messages as a text": (chat("", messages="Hello."), "messages: got 'Hello.'"),
    "message as a text": (chat("", messages=["Hello."]), "messages[0]: got 'Hello.'"),
    "null as content": (chat(None), "messages[0].content: got None"),
    "no content": (chat("", messages=[{"role": "user", "contents": "Hello."}]), "messages[0].content: got None"),
    "empty list of parts": (chat([]), "messages[0].content: got []"),
    "number as a part": (chat([3]), "messages[0].content[0]: got 3"),
    "unknown part": (chat([{"type": "smell"}]), "messages[0].content[0]"),
    "text part without text": (chat([{"type": "text"}]), "messages[0].content[0].text: got None"),
    "unknown role": (chat("", messages=[{"role": "king", "content": "Hi."}]), "messages[0].role: got 'king'"),
    "system message only": (
        chat("", messages=[{"role": "system", "content": "Hi."}]),
        "expected one with the role 'user'",
    ),
    "system message later": (
        chat("", messages=[{"role": "user", "content": "Hi."}, {"role": "developer", "content": "Ho."}]),
        "messages[1].role: got 'developer' after another role",
    ),
}
BAD_BODIES = {
    "nothing": (b"", "body: cannot be read as JSON"),
    "half of it": (b'{"model": ', "body: cannot be read as JSON"),
    "not text": (b"\xff\xfe\0", "body: cannot be read as JSON"),
    "a list": (b"[]", "body: got a list"),
    "half of a character": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "half of a surrogate pair"),
    "a field with half of a character": (b'{"\\uD800": 1}', "half of a surrogate pair"),
    "100 000 brackets": (b"[" * 100_000, "body: "),
}
BAD_INFERS = {
    "bad image": (infer(row(), row(images=["?"])), "infer_requests[1].images[0]"),
    "image with too many pixels": (infer(row(images=[HUGE])), "infer_requests[0].images[0]: got 10000 x 9000"),
    "too many images together": (infer(*[row()] * (MAX_IMAGES + 1)), "images: got"),
    "image token": (infer(row(messages=[{"role": "user", "content": "<IMG_CONTEXT>"}])), "infer_requests[0].messages"),
    "unknown field": (infer(row(picture=URL)), "infer_requests[0].picture: got a field"),
    "unknown field of the config": (infer(row(), max_token=1), "request_config.max_token: got a field"),
    "n of 0": (infer(row(), n=0), "request_config.n: got 0"),
    "stream": (infer(row(), stream=True), "stream: got True"),
    "unknown field outside": ({"requests": []}, "requests: got an unknown field"),
    "no requests": (infer(), "infer_requests: got 0 requests"),
    "request as a text": (infer("Hello."), "infer_requests[0]: got 'Hello.'"),
    "too long": (
        infer(row(messages=[{"role": "user", "content": "<image>" + "Segment it. " * 2000}])),
        "infer_requests[0]",
    ),
}
BAD_COMPLETIONS = {
    "image token": ({"model": MODEL, "prompt": "<IMG_CONTEXT>"}, "'<IMG_CONTEXT>'"),
    "no prompt": ({"model": MODEL}, "prompt: got None"),
    "several prompts": ({"model": MODEL, "prompt": ["a", "b"]}, "prompt: got ['a', 'b']"),
    "n of 0": ({"model": MODEL, "prompt": "a", "n": 0}, "n: got 0"),
    "bad image": ({"model": MODEL, "prompt": "<image>", "images": ["?"]}, "images[0]"),
}
BAD = [
    *((CHAT, name, *each) for name, each in {**BAD_CHATS, **BAD_BODIES}.items()),
    *((INFER, name, *each) for name, each in {**BAD_INFERS, **BAD_BODIES}.items()),
    *((COMPLETIONS, name, *each) for name, each in {**BAD_COMPLETIONS, **BAD_BODIES}.items()),
    ("/v1/embeddings", "no input", {"model": MODEL}, "input: got None"),
]


@pytest.mark.parametrize(("path", "name", "body", "reason"), BAD, ids=lambda value: value if type(value) is str else "")
def test_bad_request_is_refused_with_a_reason(server, path, name, body, reason):
    status, answer = post(server, path, body)
    assert status == 400 and reason in answer["message"], (status, answer)
    if path == CHAT and isinstance(body, dict):
        status, answer = post(server, path, {**body, "stream": True})
        assert status == 400 and len(answer["message"]) > 10, (status, answer)


WRAPPED = "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76))
GOOD_SOURCES = {
    "base64 with line breaks": f"data:image/png;base64,{WRAPPED}",
    "base64 with the letters of URLs": f"data:image/png;base64,{BASE64.translate({43: '-', 47: '_', 61: None})}",
    "data URL with parameters": f"data:image/png;charset=utf-8;base64,{BASE64}",
    "data URL in capitals": f"DATA:image/png;BASE64,{BASE64}",
    "data URL without a type": f"data:;base64,{BASE64}",
    "encoded data URL": f"data:image/png;base64,{BASE64.replace('+', '%2B').replace('/', '%2F')}",
    "bare base64": BASE64,
    "bare base64 with line breaks": WRAPPED,
}


@pytest.fixture(scope="module")
def expected(server):
    """What the model says about the image of `URL`."""
    return message_of(post(server, CHAT, ask_about(max_tokens=40)))


def message_of(answer: tuple[int, dict]) -> dict:
    status, content = answer
    assert status == 200, content
    return (content if isinstance(content, dict) else content[0])["choices"][0]["message"]


@pytest.mark.parametrize("name", GOOD_SOURCES)
def test_every_form_of_base64_works(server, expected, name):
    assert message_of(post(server, CHAT, ask_about(GOOD_SOURCES[name], max_tokens=40))) == expected


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "image", "image": URL}, text()],
        [{"type": "image_url", "image_url": URL}, text()],
        [{"type": "image", "image": {"bytes": BASE64}}, "Segment it."],
        [{"type": "input_image", "image_url": URL}, {"type": "input_text", "text": "Segment it."}],
    ],
)
def test_every_form_of_an_image_part_works(server, expected, content):
    assert message_of(post(server, CHAT, chat(content, max_tokens=40))) == expected


def test_images_beside_the_messages_work(server, expected):
    assert message_of(post(server, CHAT, chat("<image>Segment it.", images=[URL], max_tokens=40))) == expected
    assert message_of(post(server, INFER, infer(row(images=URL), max_tokens=40))) == expected
    marked = [{"type": "image"}, text()]
    assert message_of(post(server, CHAT, chat(marked, images=[URL], max_tokens=40))) == expected


def test_image_of_a_phone_is_answered_as_viewers_show_it(server, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    Image.open(io.BytesIO(png(48, 64))).save(tmp_path / "turned.png", exif=exif)
    source = data_url((tmp_path / "turned.png").read_bytes())
    segments = message_of(post(server, CHAT, ask_about(source, max_tokens=40)))["segments"]
    assert segments and all(segment["size"] == [64, 48] for segment in segments)


def test_content_is_a_list_of_parts_in_every_role(server):
    def ask(*messages) -> str:
        return message_of(post(server, CHAT, chat("", messages=list(messages), max_tokens=40)))["content"]

    user, answer = {"role": "user", "content": [part(), text()]}, "Where?"
    plain = ask(
        {"role": "system", "content": "Be short."},
        user,
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And now?"},
    )
    parts = ask(
        {"role": "developer", "content": [text("Be "), text("short.")]},
        user,
        {"role": "assistant", "content": [text(answer)]},
        {"role": "user", "content": [text("And now?")]},
    )
    assert parts == plain


def test_max_completion_tokens_limits_an_answer(server):
    body = ask_about(max_completion_tokens=5)
    del body["max_tokens"]
    status, answer = post(server, CHAT, body)
    assert status == 200 and answer["usage"]["completion_tokens"] == 5


def test_null_is_what_the_server_has_as_default_and_other_fields_of_openai_are_taken(server, expected):
    extra = {"n": None, "stop": "~", "logprobs": None, "user": "me", "store": False, "stream_options": None}
    body = ask_about(max_tokens=40, response_format={"type": "text"}, **extra)
    assert message_of(post(server, CHAT, body)) == expected


def test_values_of_other_servers_fields_that_change_nothing_are_taken(server, expected):
    extra = {"logit_bias": {}, "echo": False, "skip_special_tokens": False, "ignore_eos": False, "stop_token_ids": []}
    extra |= {"min_tokens": 0, "prediction": {"type": "content", "content": ""}, "tools": [], "tool_choice": "none"}
    assert message_of(post(server, CHAT, ask_about(max_tokens=40, **extra))) == expected


def test_frames_of_a_video_are_neither_a_token_in_the_text_nor_files_of_the_server(server, tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_MEDIA_ALLOWED_DIRS", str(tmp_path))
    frames = [{"type": "video", "video": [URL, URL]}, text()]
    assert message_of(post(server, CHAT, chat(frames)))["content"]


def test_infer_route_answers_with_segments_in_order(server, expected):
    rle = {"size": [48, 64], "counts": [0, 48 * 64]}
    asked = [{"role": "user", "content": "<image>Segment what is beside <mask>."}]
    status, answers = post(server, INFER, infer(row(), row(messages=asked, masks=[rle]), max_tokens=40))
    assert status == 200 and len(answers) == 2
    messages = [message_of((status, [answer])) for answer in answers]
    assert messages[0]["content"] == expected["content"] and all(message["segments"] for message in messages)


def test_files_are_read_in_allowed_folders_only(server, expected, tmp_path, monkeypatch):
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    for folder in (tmp_path, allowed):
        (folder / "image.png").write_bytes(png(48, 64))
    (allowed / "link.png").symlink_to(tmp_path / "image.png")
    monkeypatch.setenv("SWIFT_MEDIA_ALLOWED_DIRS", f"{tmp_path / 'other'}, {allowed}")
    assert message_of(post(server, CHAT, ask_about(str(allowed / "image.png"), max_tokens=40))) == expected
    for file in (tmp_path / "image.png", allowed / ".." / "image.png", allowed / "link.png", tmp_path / "none.png"):
        status, answer = post(server, CHAT, ask_about(str(file)))
        assert status == 400 and "expected an http or https URL, base64, or a file" in answer["message"]


class Pictures(BaseHTTPRequestHandler):
    """Answers first with a small image, then with a large one; /moved redirects, /slow never ends."""

    asked: list[str] = []

    def do_GET(self):
        self.asked.append(self.path)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/picture" if self.path == "/moved" else "http://169.254.169.254/")
            self.end_headers()
            return
        content = png(48, 64) if self.asked.count(self.path) == 1 else png(500, 500)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def pictures(monkeypatch):
    """Address of a server of images on this machine."""
    Pictures.asked = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(("path", "requests"), [("/picture", ["/picture"]), ("/moved", ["/moved", "/picture"])])
def test_url_is_downloaded_once_and_what_was_checked_is_used(
    server, running, expected, pictures, monkeypatch, path, requests
):
    monkeypatch.setattr(running[1].args, "allow_private_urls", True)
    assert message_of(post(server, CHAT, ask_about(pictures + path, max_tokens=40))) == expected
    assert Pictures.asked == requests
    status, answer = post(server, CHAT, ask_about(pictures + path))
    assert status == 400 and "got 500 x 500" in answer["message"]


def test_redirect_is_checked_like_the_url_itself(server, running, pictures, monkeypatch):
    status, answer = post(server, CHAT, ask_about(pictures + "/picture"))
    assert status == 400 and "with an internal address" in answer["message"] and not Pictures.asked
    monkeypatch.setattr(running[1].args, "allow_private_urls", True)
    status, answer = post(server, CHAT, ask_about(pictures + "/moved-inside"))
    assert status == 400 and "169.254.169.254" in answer["message"]


def test_body_and_number_of_requests_are_limited(server, running, monkeypatch):
    monkeypatch.setattr(running[1].args, "max_request_bytes", 1000)
    assert post(server, CHAT, ask_about())[0] == 413
    monkeypatch.undo()
    monkeypatch.setattr(running[1].args, "max_active_requests", 0)
    status, answer = post(server, CHAT, ask_about())
    assert status == 503 and "try again later" in answer["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_request_that_fails_in_its_batch_fails_alone(server, running, expected, monkeypatch, stream):
    """Even one that no check finds: eight requests in a batch, one of which the model cannot process."""
    monkeypatch.setattr(running[1].himtok_desk, "media_tokens", frozenset())
    words = ["Segment it."] * 7 + ["Segment <IMG_CONTEXT> it."]

    def ask(question):
        body = ask_about(words=question, max_tokens=40, stream=stream)
        if not stream:
            return post(server, CHAT, body)
        return post_stream(server, body)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, words))
    assert answers[-1][0] == 400 and len(answers[-1][1]["message"]) > 10
    assert [message_of(answer)["content"] for answer in answers[:-1]] == [expected["content"]] * 7


def post_stream(server: str, body: dict) -> tuple[int, dict]:
    """Status, and a stream's answer in the form of a plain one."""
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(server.removesuffix("/v1") + CHAT, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            lines = answer.read().decode().splitlines()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    content = "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in chunks)
    return 200, {"choices": [{"message": {"content": content}}]}


def test_requests_whose_clients_are_gone_are_not_answered(server, running, monkeypatch):
    """They leave the queue of the engine, and no request counts as in progress."""
    desk, engine = running[1].himtok_desk, running[1].infer_engine
    answered = []
    generate = type(engine)._infer_full
    entered, go_on = threading.Event(), threading.Event()

    def wait(self, *arguments, **options):
        answered.append(len(options["template_inputs"]))
        entered.set()
        go_on.wait(60)
        return generate(self, *arguments, **options)

    monkeypatch.setattr(type(engine), "_infer_full", wait)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, server, CHAT, ask_about())
        assert entered.wait(60)

        for stream in (False, True, False):
            with pytest.raises(TimeoutError):
                post(server, CHAT, ask_about(stream=stream), timeout=0.5)
        end = time.monotonic() + 30
        while desk.active > 1 and time.monotonic() < end:
            time.sleep(0.05)
        assert desk.active == 1
        go_on.set()
        assert first.result()[0] == 200
    monkeypatch.undo()
    assert post(server, CHAT, ask_about())[0] == 200
    assert answered == [1] and desk.active == 0


def test_logs_have_no_content_of_images(running):
    from himtok_plugin.swift_integration.serving.request_media import LoadedMedia

    request = asyncio.run(running[1].himtok_desk.prepare_chat(ask_about(), LoadedMedia())).parse()[0]
    assert request.to_printable()["images"] == ["<PNG of 64 x 48 pixels>"] and request.images == [
        base64.b64decode(BASE64)
    ]
