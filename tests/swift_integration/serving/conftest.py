"""The server that the tests of this folder share, in a thread of their process."""

import openai
import pytest
from servers import KEY, MAX_IMAGES, MAX_MASKS, MAX_PIXELS, MAX_REQUEST_PIXELS, MODEL, deployed_here


@pytest.fixture(scope="session")
def running(stage_two):
    """Address of a running server, and its `SwiftDeploy`."""
    options = {
        "model": stage_two[1],
        "served_model_name": MODEL,
        "api_key": KEY,
        "max_batch_size": 8,
        "max_new_tokens": 48,
        "temperature": 0,
        "max_image_pixels": MAX_PIXELS,
        "max_request_masks": MAX_MASKS,
        "max_request_images": MAX_IMAGES,
        "max_request_pixels": MAX_REQUEST_PIXELS,
    }
    with deployed_here(**options) as (address, server):
        yield address, server


@pytest.fixture(scope="session")
def server(running):
    """Address of the server, `http://127.0.0.1:PORT/v1`."""
    return running[0]


@pytest.fixture(scope="session")
def client(server):
    with openai.OpenAI(base_url=server, api_key=KEY, max_retries=0, timeout=120) as client:
        yield client
