"""The page in headless Chromium, in front of answers with known masks: what users do, and the pixels that they see."""

import base64
import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from fake_client import SIZE, TOKENS, FakeClient, known_prefix
from states import image_file, read_png

from himtok_plugin.masks import load_mask

gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install himtok_plugin[app]")
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt install chromium)")

# Which of the image's pixels the canvas shows as a mask: the one in the middle of each drawn square.
SHOWN = """canvas => {
    const zoom = Number(canvas.dataset.zoom), {width, height} = canvas;
    const pixels = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const rows = [];
    for (let y = zoom >> 1; y < height; y += zoom) {
        const row = [];
        for (let x = zoom >> 1; x < width; x += zoom) row.push(pixels[4 * (y * width + x) + 3] > 0 ? 1 : 0);
        rows.push(row);
    }
    return rows;
}"""
# Moves the slider as a user does, and waits until the next frame is drawn.
REDRAW = """([input, value]) => new Promise(done => {
    const start = performance.now();
    input.value = value;
    input.dispatchEvent(new Event('input', {bubbles: true}));
    const look = () => window.himtok.state.tokens === value
        ? requestAnimationFrame(() => done(performance.now() - start)) : setTimeout(look, 1);
    look();
})"""
LONGEST_REDRAW = 200  # milliseconds


@pytest.fixture(scope="module")
def client():
    return FakeClient()


@pytest.fixture(scope="module")
def address(client):
    from himtok_plugin.app.page import build_page
    from himtok_plugin.app.settings import PageSettings

    page = build_page(PageSettings("http://127.0.0.1:1/v1"), client)
    page.queue(default_concurrency_limit=16)
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_tab(browser, address):
    """Open the page in a tab of its own; whatever goes wrong in its script fails the test."""
    tabs, errors = [], []

    def open_one():
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.set_default_timeout(20_000)
        tab.goto(address, wait_until="domcontentloaded")
        tab.wait_for_selector("#himtok-ask")
        tab.wait_for_selector("#himtok-status .ready")
        tabs.append(tab)
        return tab

    yield open_one
    for tab in tabs:
        tab.close()
    assert not errors


def upload(tab, path):
    before = tab.evaluate("window.himtok.state.image?.number ?? -1")
    if not tab.is_visible("#himtok-upload"):
        tab.click("text=Add an image")
    tab.set_input_files("#himtok-upload input[type=file]", str(path))
    tab.wait_for_function("before => (window.himtok.state.image?.number ?? -1) > before", arg=before)


def ask(tab, question, wait=True):
    turns = tab.evaluate("window.himtok.state.turns")
    tab.fill("#himtok-question textarea", question)
    tab.click("#himtok-ask")
    tab.wait_for_function("turns => window.himtok.state.turns > turns", arg=turns)
    if wait:
        tab.wait_for_selector("#himtok-stop", state="hidden")


def shown_mask(tab):
    return np.array(tab.eval_on_selector("canvas.masks", SHOWN), dtype=bool)


def drag(tab, *fractions):
    frame = tab.locator("canvas.regions").bounding_box()
    places = [(frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]) for x, y in fractions]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=4)
    tab.mouse.up()


def download(tab, title):
    with tab.expect_download() as started:
        tab.click(f"button:has-text('{title}')")
    return started.value.suggested_filename, open(started.value.path(), "rb").read()


def test_masks_are_drawn_at_their_pixels_switched_and_redrawn_from_prefixes(open_tab, tmp_path, client):
    tab = open_tab()
    upload(tab, image_file(tmp_path))
    ask(tab, "Segment the two things.")
    first, second = (known_prefix(SIZE, number, TOKENS) for number in (0, 1))
    assert np.array_equal(shown_mask(tab), first | second)
    assert tab.inner_text(".himtok-answer").count("thing 1") == 2  # in the text, and on the chip
    assert "<|mt_" not in tab.content()

    asked = len(client.asked)
    tab.locator(".legend input").nth(0).uncheck()
    assert np.array_equal(shown_mask(tab), second)
    tab.click(".himtok-answer .himtok-chip >> nth=1")
    assert not shown_mask(tab).any()
    tab.locator(".legend input").nth(0).check()

    slider = tab.wait_for_selector("#himtok-tokens input[type=range]")
    for tokens in (1, 3, 2, TOKENS):
        milliseconds = tab.evaluate(REDRAW, [slider, tokens])
        assert np.array_equal(shown_mask(tab), known_prefix(SIZE, 0, tokens)), tokens
        assert milliseconds < LONGEST_REDRAW
    assert len(client.asked) == asked


def test_downloads_hold_the_masks_at_full_size(open_tab, tmp_path):
    tab = open_tab()
    upload(tab, image_file(tmp_path, name="Straße 1.png"))
    ask(tab, "Segment it.")
    expected = known_prefix(SIZE, 0, TOKENS)
    name, content = download(tab, "COCO JSON")
    (annotation,) = json.loads(content)["annotations"]
    assert name == "Straße 1_coco.json" and np.array_equal(load_mask(annotation["segmentation"], SIZE), expected)
    _, content = download(tab, "Mask PNGs")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert np.array_equal(read_png(archive.read("01_thing 1.png")), expected * np.uint8(255))
    _, content = download(tab, "Overlay PNG")
    assert read_png(content).shape == (*SIZE, 3)
    _, content = download(tab, "labelme JSON")
    assert json.loads(content)["shapes"][0]["label"] == "thing 1"


def test_regions_become_the_masks_of_the_question(open_tab, tmp_path, client):
    tab = open_tab()
    upload(tab, image_file(tmp_path))
    ask(tab, "Segment it.")
    for tool, places in (
        ("box", [(0.1, 0.1), (0.4, 0.3)]),
        ("click", [(0.3, 0.5)]),
        ("brush", [(0.6, 0.8), (0.9, 0.8)]),
    ):
        tab.click(f"[data-tool={tool}]")
        drag(tab, *places)
    tab.wait_for_function("document.querySelector('#himtok-question textarea').value.split('<mask>').length === 4")
    tab.click("[data-remove='0']")
    tab.wait_for_function("document.querySelector('#himtok-question textarea').value.split('<mask>').length === 3")
    ask(tab, "Describe <mask> and <mask>.")
    clicked, stroke = (load_mask(rle, SIZE) for rle in client.asked[-1]["masks"])
    assert np.array_equal(clicked, known_prefix(SIZE, 0, TOKENS))
    painted = stroke[int(0.8 * SIZE[0]), int(0.62 * SIZE[1]) : int(0.88 * SIZE[1])]
    assert painted.all() and not stroke[: SIZE[0] // 2].any()
    assert np.array_equal(shown_mask(tab), clicked | stroke)  # the first answer is switched off, and can be switched on
    asked = tab.inner_text(".himtok-turn:last-child .himtok-question")
    assert " ".join(asked.split()).replace(" .", ".") == "Describe region 1 and region 2."


def test_what_goes_wrong_is_a_sentence_and_the_page_goes_on(open_tab, tmp_path):
    tab = open_tab()
    tab.click("#himtok-ask")
    tab.wait_for_selector("#himtok-notice >> text=image: got none")
    notes = tmp_path / "notes.png"
    notes.write_text("these are notes")
    tab.set_input_files("#himtok-upload input[type=file]", str(notes))
    tab.wait_for_selector("#himtok-notice >> text=cannot be read as an image")
    upload(tab, image_file(tmp_path))
    tab.click("#himtok-ask")
    tab.wait_for_selector("#himtok-notice >> text=question: got no words")
    ask(tab, "fail")
    tab.wait_for_selector(".himtok-error >> text=the model cannot answer")
    assert tab.input_value("#himtok-question textarea") == "fail"  # to be asked again
    ask(tab, "Segment nothing.")
    tab.wait_for_selector("text=nothing in the image matches the request")
    ask(tab, "Segment the uncertain bus.")
    tab.wait_for_selector(".himtok-warning >> text=the word")
    tab.wait_for_selector(".himtok-warning >> text=Uncertain")
    assert np.array_equal(shown_mask(tab), known_prefix(SIZE, 0, TOKENS))


GIVE = """([name, selector, content]) => {
    const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], `${name}.png`, {type: 'image/png'}));
    const init = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
    const event = name === 'paste' ? new ClipboardEvent(name, init) : new DragEvent(name, init);
    document.querySelector(selector).dispatchEvent(event);
}"""


def test_images_can_be_pasted_and_dropped_anywhere(open_tab, tmp_path):
    tab = open_tab()
    content = base64.b64encode(image_file(tmp_path).read_bytes()).decode()
    for number, (name, selector) in enumerate(
        [("paste", "#himtok-question textarea"), ("drop", "canvas.regions"), ("paste", "h1"), ("drop", "h1")], 1
    ):
        tab.evaluate(GIVE, [name, selector, content])
        tab.wait_for_function("number => window.himtok.state.image?.number === number", arg=number)
        assert f"{name}.png" in tab.inner_text(".about")


def test_two_tabs_have_their_own_state_and_do_not_wait_for_each_other(open_tab, tmp_path, client):
    slow, quick = open_tab(), open_tab()
    upload(slow, image_file(tmp_path, name="slow.png"))
    upload(quick, image_file(tmp_path, name="quick.png"))
    ask(slow, "Segment it slowly.", wait=False)
    slow.wait_for_selector(".himtok-open >> text=2 tokens")
    assert np.array_equal(shown_mask(slow), known_prefix(SIZE, 0, 2))  # drawn as its tokens come
    ask(quick, "Segment the two things.")
    assert np.array_equal(shown_mask(quick), known_prefix(SIZE, 0, TOKENS) | known_prefix(SIZE, 1, TOKENS))
    assert np.array_equal(shown_mask(slow), known_prefix(SIZE, 0, 2))
    assert "slow.png" in slow.inner_text(".about") and "quick.png" in quick.inner_text(".about")
    client.gate.set()
    slow.wait_for_selector("#himtok-stop", state="hidden")
    client.gate.clear()
    assert np.array_equal(shown_mask(slow), known_prefix(SIZE, 0, TOKENS))
    upload(slow, image_file(tmp_path, name="second.png"))
    assert not shown_mask(slow).any() and not slow.query_selector(".himtok-turn")
    slow.click("text=1. slow.png")
    slow.wait_for_function("window.himtok.state.turns === 1")
    assert np.array_equal(shown_mask(slow), known_prefix(SIZE, 0, TOKENS))
