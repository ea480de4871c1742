"""Downloads for requests: public addresses only, by whatever notation or detour; once, and within limits."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from himtok_plugin.swift_integration.serving.downloads import ByteBudget, check_addresses, download

INTERNAL = [
    "127.0.0.1",
    "127.1",
    "2130706433",  # 127.0.0.1 as one number
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",  # of providers
    "198.18.0.1",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:0a00:0001",
    "::127.0.0.1",
    "64:ff9b::127.0.0.1",
    "2002:7f00:0001::",
    "2001:0:0:0:0:0:80ff:fffe",  # 127.0.0.1 in Teredo
]
METADATA = ["169.254.169.254", "2852039166", "::ffff:169.254.169.254", "100.100.100.200", "fd00:ec2::254"]


@pytest.mark.parametrize("host", [*INTERNAL, *METADATA, "localhost", "LOCALHOST.", "no such host", "a" * 300, ""])
def test_internal_addresses_are_refused(host, monkeypatch):
    with pytest.raises(ValueError, match="internal address|has no address"):
        check_addresses(host, 80)


@pytest.mark.parametrize("host", METADATA)
def test_credentials_of_clouds_are_never_allowed(host, monkeypatch):
    monkeypatch.setenv("SWIFT_URL_ALLOWED_HOSTS", host)
    with pytest.raises(ValueError, match="internal address"):
        check_addresses(host, 80, allow_private=True)


def test_public_addresses_are_allowed_and_internal_ones_by_option():
    assert [str(each) for each in check_addresses("8.8.8.8", 80)] == ["8.8.8.8"]
    assert [str(each) for each in check_addresses("2606:4700:4700::1111", 80)] == ["2606:4700:4700::1111"]
    assert [str(each) for each in check_addresses("127.0.0.1", 80, allow_private=True)] == ["127.0.0.1"]


def test_every_address_of_a_name_is_checked(monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: entries)
    with pytest.raises(ValueError, match="'example.com' with an internal address"):
        check_addresses("example.com", 80)


def test_allowed_hosts_are_the_only_ones(monkeypatch):
    monkeypatch.setenv("SWIFT_URL_ALLOWED_HOSTS", "media.local, LOCALHOST")
    assert check_addresses("localhost", 80)
    with pytest.raises(ValueError, match="expected one of those"):
        check_addresses("8.8.8.8", 80)


def test_connection_goes_to_the_address_that_was_checked(monkeypatch):
    """A name that leads elsewhere at a second look-up does not matter."""
    asked, reached = [], []

    def look_up(*arguments, **options):
        asked.append(arguments[0])
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8" if len(asked) == 1 else "127.0.0.1", 80))]

    def connect(address, timeout=None):
        reached.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(ValueError, match="ConnectionRefusedError"):
        download("http://example.com/a.png", ByteBudget(10))
    assert asked == ["example.com"] and reached == [("8.8.8.8", 80)]


@pytest.mark.parametrize(
    "url",
    ["ftp://8.8.8.8/a", "file:///etc/passwd", "http://", "http://a b/", "http://8.8.8.8\\@127.0.0.1/", "http://a:b/"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(ValueError):
        download(url, ByteBudget(10), allow_private=True)


@contextmanager
def answering(*parts: bytes, pause: float = 0.0):
    """Address of a server that sends these bytes to whoever connects, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(65536)
                        for part in parts:
                            connection.sendall(part)
                            time.sleep(pause)
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"


def test_content_is_downloaded():
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b"image") as url:
        assert download(url, ByteBudget(5), allow_private=True) == b"image"


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP status 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf", "the download broke off"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "more than 5 redirects"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\n\r\n", "internal address"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "http or https"),
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_failed_download_has_a_reason(head, reason):
    with answering(head) as url, pytest.raises(ValueError, match=reason):
        download(url, ByteBudget(100), allow_private=True)


def test_downloads_of_a_request_share_their_bytes():
    budget = ByteBudget(8)
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", b"12345") as url:
        assert download(url, budget, allow_private=True) == b"12345"
        with pytest.raises(ValueError, match="got more than 8 bytes"):
            download(url, budget, allow_private=True)


def test_endless_download_ends(monkeypatch):
    monkeypatch.setenv("SWIFT_TIMEOUT", "1")
    began = time.monotonic()
    with answering(b"HTTP/1.1 200 OK\r\n\r\n", *[b"."] * 200, pause=0.05) as url:
        with pytest.raises(ValueError, match="in 1 seconds, expected all"):
            download(url, ByteBudget(10**6), allow_private=True)
    assert time.monotonic() - began < 5
