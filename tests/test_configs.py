"""The shipped configs: every key is a flag of `swift sft`, every header says what a user needs."""

import subprocess
import sys

import pytest
import yaml

from himtok_plugin.resources import config_names, config_path


@pytest.fixture(scope="module")
def known_flags():
    program = (
        "from himtok_plugin import startup; startup.activate('himtok')\n"
        "from dataclasses import fields\n"
        "from swift.arguments import SftArguments\n"
        "print(*[f.name for f in fields(SftArguments)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", config_names())
def test_every_key_is_a_flag_of_swift_sft(name, known_flags):
    config = yaml.safe_load(config_path(name).read_text(encoding="utf-8"))
    config.pop("ENV", None)
    assert config["plugin"] == "himtok"
    assert set(config) <= known_flags


@pytest.mark.parametrize("name", config_names())
def test_header_says_needs_launch_and_override(name):
    text = config_path(name).read_text(encoding="utf-8")
    header = [line for line in text.split("plugin: himtok")[0].splitlines() if line.startswith("#")]
    for word in ("Needs:", "Launch:", "Rows:", "Override:"):
        assert any(word in line for line in header), word
    assert f"swift_configs/{name}.yaml" in text
