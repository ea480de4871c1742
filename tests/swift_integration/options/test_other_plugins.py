"""`--plugin OTHER`: an installed plugin that is not himtok gets the flag `plugin`, and none of himtok's options."""

import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

from himtok_plugin.active_plugins import ACTIVE_PLUGINS_VARIABLE

# What ms-swift's commands do with their flags, up to the point where they load a model. What himtok registers does not
# matter here, hence the stand-in.
COMMAND = """
import json, sys, types
from pathlib import Path
from himtok_plugin import startup

folder, *flags = sys.argv[1:]
sys.argv = ["/environment/swift/cli/sft.py", *flags]
startup.run()
register = types.ModuleType("himtok_plugin.swift_integration.register")
register.register = lambda: sys.modules.setdefault("himtok_was_registered", register)
sys.modules[register.__name__] = register

from swift.arguments import BaseArguments
from swift.pipelines.base import SwiftPipeline

class Command(SwiftPipeline):
    args_class = BaseArguments

    def run(self):
        pass

result = {}
try:
    args = Command(sys.argv[1:]).args
except ValueError as error:
    result["error"] = str(error)
else:
    args.save_args(folder)
    result["plugin"] = args.plugin
    result["external_plugins"] = args.external_plugins
    result["mask_tokenizer"] = getattr(args, "mask_tokenizer", "no such option")
    result["saved"] = Path(folder, "args.json").read_text(encoding="utf-8")
result["other_imported"] = "other_was_imported" in sys.modules
result["himtok_registered"] = "himtok_was_registered" in sys.modules
result["himtok_options_imported"] = "himtok_plugin.swift_integration.options.swift_arguments" in sys.modules
print("\\n" + json.dumps(result))
"""
OTHER_PLUGIN = "import sys\nsys.modules['other_was_imported'] = sys.modules[__name__]\n"
ENTRY_POINTS = "[swift.plugins]\nother = other_package.other_swift_plugin\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder for PYTHONPATH with an installed distribution that has a plugin."""
    folder = tmp_path_factory.mktemp("site")
    package, metadata = folder / "other_package", folder / "other_package-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other_swift_plugin.py").write_text(OTHER_PLUGIN)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="module")
def run_command(site, tmp_path_factory):
    model = tmp_path_factory.mktemp("model")
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))

    def run(*flags: str) -> dict:
        environment = {name: value for name, value in os.environ.items() if name != ACTIVE_PLUGINS_VARIABLE}
        environment |= {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}
        model_flags = ["--model", str(model), "--model_type", "qwen2", "--template", "qwen2_5"]
        folder = tmp_path_factory.mktemp("saved")
        command = [sys.executable, "-c", COMMAND, str(folder), *model_flags, *flags]
        child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert child.returncode == 0, child.stderr
        return json.loads(child.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def alone(run_command):
    return run_command("--plugin", "other")


@pytest.fixture(scope="module")
def both(run_command):
    return run_command("--plugin", "other", "himtok", "--mask_tokenizer", "folder")


def test_other_plugin_alone_is_accepted_and_its_file_is_imported(alone, site):
    assert alone["plugin"] == ["other"] and alone["other_imported"]
    assert alone["external_plugins"] == [str(site / "other_package" / "other_swift_plugin.py")]


def test_other_plugin_alone_gets_nothing_of_himtok(alone):
    assert alone["mask_tokenizer"] == "no such option"
    assert not alone["himtok_registered"] and not alone["himtok_options_imported"]


def test_option_of_himtok_is_an_unknown_flag_beside_another_plugin(run_command):
    result = run_command("--plugin", "other", "--mask_tokenizer", "folder")
    assert result["error"] == "remaining_argv: ['--mask_tokenizer', 'folder']"


def test_other_plugin_and_himtok_are_both_active(both):
    assert both["plugin"] == ["other", "himtok"] and both["mask_tokenizer"] == "folder"
    assert both["other_imported"] and both["himtok_registered"]


@pytest.mark.parametrize("plugins", ["alone", "both"])
def test_args_json_of_a_checkpoint_has_no_path_of_a_plugin(request, plugins):
    result = request.getfixturevalue(plugins)
    saved = json.loads(result["saved"])
    assert (saved["plugin"], saved["external_plugins"]) == (result["plugin"], [])
    assert "other_swift_plugin" not in result["saved"] and "himtok.py" not in result["saved"]
