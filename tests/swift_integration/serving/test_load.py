"""A load with faults on `swift deploy`: good answers stay what they are alone, and memory comes back."""

import json
import random
import socket
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from runs import flags, read_rows
from servers import data_url, find_free_port, png, png_header, started, wait_until_healthy

CLIENTS, REQUESTS = 32, 500
SHARE_OF_FAULTS = 0.4
MODEL = "segmenter"


def chat(question: str, url: str | None, stream: bool = False, **changes) -> dict:
    content = [{"type": "text", "text": question}]
    if url is not None:
        content.insert(0, {"type": "image_url", "image_url": {"url": url}})
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}], "temperature": 0, "stream": stream}
    return {**body, "max_tokens": 48, **changes}


def post(address: str, path: str, body: dict) -> tuple[int, str]:
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def read_answer(text: str, stream: bool) -> tuple[str, list]:
    """Text and (RLE, codes, score) of every segment of an answer."""
    if stream:
        chunks = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data: {")]
        parts = [chunk["choices"][0]["delta"] for chunk in chunks]
        words = "".join(part["content"] or "" for part in parts)
        segments = [segment for part in parts for segment in part["segments"] or []]
    else:
        message = json.loads(text)["choices"][0]["message"]
        words, segments = message["content"], message["segments"]
    return words, [({key: s[key] for key in ("size", "counts", "codes")}, round(s["score"], 3)) for s in segments]


def is_same(one: tuple[str, list], other: tuple[str, list]) -> bool:
    """Equal texts and masks; scores differ in the last digits in batches of different sizes."""
    pairs = zip(one[1], other[1], strict=False)
    close = all(a == b and abs(x - y) < 0.002 for (a, x), (b, y) in pairs)
    return one[0] == other[0] and len(one[1]) == len(other[1]) and close


def list_faults(url: str) -> dict[str, tuple[str, dict]]:
    """Bad requests by name: (path, body)."""
    route, infer = "/v1/chat/completions", "/infer/"
    rle = {"size": [64, 64], "counts": "?"}
    row = {"messages": [{"role": "user", "content": "<image>Segment it."}], "images": [url]}
    faults = {
        "no image": chat("Segment it.", data_url(b"no image")),
        "half an image": chat("Segment it.", data_url(png(64, 64)[:3000])),
        "huge image": chat("Segment it.", data_url(png_header(32768, 32768))),
        "image token": chat("Segment <IMG_CONTEXT> it.", url),
        "image tag": chat("Segment <image> it.", url),
        "many images": chat("Segment it.", None, messages=[{"role": "user", "content": [_part(url)] * 24}]),
        "wrong field": chat("Segment it.", url, max_token=3),
        "n": chat("Segment it.", url, n=0),
        "beams": chat("Segment it.", url, num_beams=200),
        "long": chat("Segment it. " * 400, url),
        "mask": chat("Segment <mask>.", url, masks=[rle]),
        "nested": chat("Segment <mask>.", url, masks=json.loads("[" * 600 + "]" * 600)),
        "internal": chat("Segment it.", "http://127.0.0.1:22/"),
        "file": chat("Segment it.", "/etc/hostname"),
        "no messages": {"model": MODEL, "messages": []},
    }
    bodies = {name: (route, body) for name, body in faults.items()}
    bodies["infer: image"] = infer, {"infer_requests": [row, {**row, "images": ["?"]}]}
    bodies["infer: field"] = infer, {"infer_requests": [{**row, "picture": url}]}
    bodies["completion"] = "/v1/completions", {"model": MODEL, "prompt": "<IMG_CONTEXT>"}
    return bodies


def _part(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def hang_up(address: str, body: dict, seconds: float) -> None:
    """Send a request and close the connection after a while, whatever has come."""
    host, port = address.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        time.sleep(seconds)


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads memory as Linux shows it")
def test_load_with_faults_changes_no_good_answer_and_leaks_nothing(stage_two, world, tmp_path):
    port = find_free_port()
    options = flags(model=stage_two[1], served_model_name=MODEL, max_batch_size=8, temperature=0, verbose=False)
    command = ["-m", "himtok_plugin.launch", "deploy", *options, "--host", "127.0.0.1", "--port", port]
    with started(*command, cwd=tmp_path, log=tmp_path / "log.txt", program="python") as process:
        address = wait_until_healthy(port, process, tmp_path / "log.txt", 180).removesuffix("/v1")
        scenes = []
        for row in read_rows(world.scenes):
            question = row["messages"][0]["content"].removeprefix("<image>")
            scenes.append((question, data_url(Path(row["images"][0]).read_bytes())))
        alone = {}
        for i, (question, url) in enumerate(scenes):
            for stream in (False, True):
                status, text = post(address, "/v1/chat/completions", chat(question, url, stream))
                assert status == 200, text
                alone[i, stream] = read_answer(text, stream)
        faults = list_faults(scenes[0][1])
        randomness = random.Random(0)
        jobs = []
        for _ in range(REQUESTS):
            stream = randomness.random() < 0.4
            if randomness.random() >= SHARE_OF_FAULTS:
                jobs.append(("good", randomness.randrange(len(scenes)), stream))
            elif randomness.random() < 0.2:
                jobs.append(("gone", randomness.random() * 0.5, stream))
            else:
                jobs.append(("bad", randomness.choice(list(faults)), stream))

        def run(job) -> str:
            kind, which, stream = job
            if kind == "gone":
                hang_up(address, chat(*scenes[0], stream), which)
                return "gone"
            if kind == "bad":
                path, body = faults[which]
                status, text = post(address, path, {**body, "stream": stream} if "chat" in path else body)
                has_reason = status == 400 and len(json.loads(text)["message"]) > 10
                return "refused" if has_reason else f"{which}: {status} {text[:200]}"
            status, text = post(address, "/v1/chat/completions", chat(*scenes[which], stream))
            if status != 200:
                return f"failed: {status} {text[:200]}"
            return "right" if is_same(read_answer(text, stream), alone[which, stream]) else "wrong"

        def run_all(these) -> Counter:
            with ThreadPoolExecutor(CLIENTS) as pool:
                return Counter(pool.map(run, these))

        warm = run_all(jobs[:100])  # the first batches of each size and the threads' own memory
        assert set(warm) <= {"right", "refused", "gone"}, warm
        time.sleep(2)
        before = resident_megabytes(process.pid)
        began = time.monotonic()
        outcomes = run_all(jobs)
        seconds = time.monotonic() - began
        time.sleep(5)
        after = resident_megabytes(process.pid)
        print(f"{dict(outcomes)}, {seconds:.0f} s, {before:.0f} MB before and {after:.0f} MB after")
        assert set(outcomes) == {"right", "refused", "gone"}, outcomes
        assert after < 1.2 * before
        assert Counter(kind for kind, *_ in jobs)["good"] == outcomes["right"]
