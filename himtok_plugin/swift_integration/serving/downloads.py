"""Downloads of what requests refer to by URL, without access to the server's own network.

A client could otherwise let the server read what only the server can reach: the credentials that clouds hand out at
169.254.169.254, databases, other users' services on the same machine (server-side request forgery, CWE-918). Every
address that a host name has is checked, and the connection goes to a checked address, so that a second look-up of the
name cannot change it. Redirects are followed one by one, with the same checks. Proxies are not used.

Two of ms-swift's environment variables count here as well: SWIFT_URL_ALLOWED_HOSTS (host names, separated by commas; no
other host is asked, and these can have private addresses), and SWIFT_TIMEOUT (seconds of a download, 20 by default).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
from urllib.parse import quote, urljoin, urlsplit

from himtok_plugin.validation import abridged

MAX_REDIRECTS = 5
_DEFAULT_SECONDS = 20.0
_CHUNK = 1 << 16  # bytes
_KEPT_IN_URLS = "%/?&=:@!$'()*+,;~[]"  # by `quote`, which encodes the rest, such as letters beyond ASCII
# Cloud services that hand out credentials, never allowed. Python's `is_global` counts the second one as public.
_METADATA = tuple(map(ipaddress.ip_network, ("169.254.0.0/16", "100.100.100.200/32", "fd00:ec2::254/128")))
# IPv6 addresses that stand for an IPv4 address in their last four bytes, or in bytes 3 to 6: 6to4.
_WITH_IPV4 = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ByteBudget:
    """Bytes that a request may still download; shared by its downloads, which run in several threads."""

    def __init__(self, size: int):
        self.size = size
        self._left = size
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Take `count` bytes; raises ValueError if there are fewer left."""
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise ValueError(f"got more than {self.size} bytes, expected at most that for a request")


def download(url: str, budget: ByteBudget, allow_private: bool = False) -> bytes:
    """Download a URL once.

    Args:
        url: with the scheme http or https.
        budget: bytes that the request may download.
        allow_private: whether the URL can lead to addresses that are not public.
    Raises:
        ValueError: the URL, or one that it is redirected to, is not allowed or cannot be read.
    """
    seconds = float(os.environ.get("SWIFT_TIMEOUT") or _DEFAULT_SECONDS)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = _get(url, budget, allow_private, seconds if seconds > 0 else None)
        except (OSError, http.client.HTTPException) as error:
            reason = " ".join(str(error).split()) or "no answer in time"
            raise ValueError(f"{type(error).__name__}: {reason:.200}") from error
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise ValueError(f"got more than {MAX_REDIRECTS} redirects, expected an image")


def check_addresses(host: str, port: int, allow_private: bool = False) -> list[Address]:
    """Return the addresses of a host, after a check of all.

    Args:
        host: name or address, in any notation that the system's resolver takes, such as `2130706433` for 127.0.0.1.
        port: of the connection.
        allow_private: whether they need not be public. Addresses of cloud metadata services are refused all the same.
    Raises:
        ValueError: the host has no address, or one that is not allowed.
    """
    allowed_hosts = {_normalize(name) for name in os.environ.get("SWIFT_URL_ALLOWED_HOSTS", "").split(",")} - {""}
    if allowed_hosts and _normalize(host) not in allowed_hosts:
        raise ValueError(f"got the host {abridged(host)}, expected one of those that this server downloads from")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"the host {abridged(host)} has no address ({error})") from error
    addresses = list(dict.fromkeys(ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found))
    for address in addresses:
        reached = _embedded_ipv4(address) or address
        is_metadata = any(reached in network for network in _METADATA if network.version == reached.version)
        is_public = reached.is_global and not (reached.is_multicast or getattr(reached, "is_site_local", False))
        if is_metadata or not (is_public or allow_private or allowed_hosts):
            raise ValueError(f"got the host {abridged(host)} with an internal address, expected a public one")
    return addresses


def _normalize(host: str) -> str:
    return host.strip().rstrip(".").lower()


def _embedded_ipv4(address: Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 address leads to: mapped, compatible, translated (NAT64), 6to4 or Teredo."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if any(address in network for network in _WITH_IPV4) and int(address) > 1:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _get(url: str, budget: ByteBudget, allow_private: bool, seconds: float | None) -> bytes | str:
    """Return the content of a URL, or the URL that it is redirected to."""
    if "\\" in url or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise ValueError("got a URL with spaces, control characters or backslashes, expected it encoded")
    parts = urlsplit(url)
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise ValueError("got a URL without http or https or without a host, expected an http or https URL")
    is_https = parts.scheme.lower() == "https"
    port = parts.port or (443 if is_https else 80)
    addresses = check_addresses(parts.hostname, port, allow_private)
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_KEPT_IN_URLS)
    headers = {"Accept-Encoding": "identity", "User-Agent": "himtok_plugin", "Accept": "*/*", "Connection": "close"}
    connection = http.client.HTTPConnection(parts.hostname, port)
    with _Deadline(seconds) as deadline, contextlib.closing(connection):
        connection.sock = deadline.watch(_connect(addresses, port, seconds))
        if is_https:
            connection.sock = deadline.watch(_secure(connection.sock, parts.hostname))
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        location = response.headers.get("location")
        if response.status in (301, 302, 303, 307, 308) and location:
            return location
        if response.status != 200:
            raise ValueError(f"got the HTTP status {response.status}, expected 200")
        content = _read(response, budget)
    if deadline.has_passed:
        raise ValueError(f"got {len(content)} bytes in {seconds:g} seconds, expected all")
    return content


class _Deadline:
    """Ends a connection after a time. Timeouts of sockets count from one packet to the next, so a download can trickle.

    Args:
        seconds: None: never.
    """

    def __init__(self, seconds: float | None):
        self.has_passed = False
        self._socket: socket.socket | None = None
        self._timer = None if seconds is None else threading.Timer(seconds, self._pass)

    def watch(self, connection: socket.socket) -> socket.socket:
        """Watch this socket from now on."""
        self._socket = connection
        return connection

    def __enter__(self) -> _Deadline:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self) -> None:
        self.has_passed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has ended
                self._socket.shutdown(socket.SHUT_RDWR)


def _read(response: http.client.HTTPResponse, budget: ByteBudget) -> bytes:
    content = bytearray()
    while chunk := response.read1(_CHUNK):
        budget.take(len(chunk))
        content += chunk
    if response.length:
        raise ValueError(f"got {len(content)} bytes, expected {response.length} more: the download broke off")
    return bytes(content)


def _connect(addresses: list[Address], port: int, seconds: float | None) -> socket.socket:
    error: OSError = OSError("no address")
    for address in addresses:
        try:
            return socket.create_connection((str(address), port), timeout=seconds)
        except OSError as failed:
            error = failed
    raise error


def _secure(plain: socket.socket, host: str) -> socket.socket:
    import certifi

    file = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or certifi.where()
    return ssl.create_default_context(cafile=file).wrap_socket(plain, server_hostname=host)
