"""The address of a page: ports in use and names of other machines are one sentence."""

import socket

import pytest

from himtok_plugin.app.hosting import PageAddress
from himtok_plugin.app.settings import PageSettings


def test_port_in_use_is_refused_and_a_free_one_is_named():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^server_port: got {port}, which another program uses, .*--server_port"):
            PageAddress(server_port=port).check()
    PageAddress(server_port=port).check()


def test_address_of_another_machine_is_refused():
    with pytest.raises(ValueError, match="^server_name: got '192.0.2.1', expected an address of this machine"):
        PageAddress("192.0.2.1", 0).check()


def test_number_that_is_no_port_is_refused():
    with pytest.raises(ValueError, match="^server_port: got 70000"):
        PageAddress(server_port=70_000).check()


def test_largest_upload_fits_into_a_request_in_base64():
    settings = PageSettings("http://127.0.0.1:8000/v1", max_request_bytes=2**20)
    assert 0.9 * 2**20 < settings.max_file_bytes * 4 / 3 < 2**20
