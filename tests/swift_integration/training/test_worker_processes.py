"""Data-loader workers that are spawned, or forked from a server, the default of Python 3.14; beside a user's plugin.

The user's plugin has a model type with a template class of its own, which workers can only unpickle after they have
imported the plugin. With START_METHOD it also changes Python's default, as a newer Python does.
"""

import re

import pytest
from runs import COMMON, LMM, STAGE_TWO, flags, logged, run_swift, sft

MODEL_TYPE = "of_the_user"
PLUGIN = f"""
import multiprocessing, os

from swift.model import Model, ModelGroup, ModelMeta, register_model
from swift.model.model_arch import ModelArch
from swift.model.models.internlm import InternVLHfLoader
from swift.template import register_template
from swift.template.templates.internvl import InternvlhfTemplate
from swift.template.templates.utils import ChatmlTemplateMeta


importing_process = os.getpid()


class UsersTemplate(InternvlhfTemplate):
    def _encode(self, inputs):
        if multiprocessing.parent_process() is not None:
            print("worker is", "new" if os.getpid() == importing_process else "forked", flush=True)
        return super()._encode(inputs)


register_template(ChatmlTemplateMeta("{MODEL_TYPE}", template_cls=UsersTemplate))
register_model(
    ModelMeta("{MODEL_TYPE}", [ModelGroup([Model("-", "-")])], InternVLHfLoader, template="{MODEL_TYPE}",
              model_arch=ModelArch.llava_hf, architectures=["InternVLForConditionalGeneration"], is_multimodal=True)
)
if "START_METHOD" in os.environ:
    multiprocessing.set_start_method(os.environ["START_METHOD"], force=True)
"""


@pytest.fixture(scope="module")
def options(world):
    return {
        **COMMON,
        **LMM,
        **STAGE_TWO,
        "model": world.lmm,
        "mask_tokenizer": world.mask_tokenizer,
        "dataset": world.scenes,
        "max_steps": 1,
        "shuffle_buffer_size": 1,  # rows in order
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
    }


@pytest.fixture(scope="module")
def expected(options, world):
    """The loss without worker processes and without the user's plugin."""
    return logged(sft(**options, output_dir=world.root / "without_workers"), "loss")[0]


@pytest.mark.parametrize(
    ("flag", "more", "environment"),
    [
        ("external_plugins", {"dataloader_multiprocessing_context": "spawn"}, {}),
        ("custom_register_path", {"streaming": True}, {"START_METHOD": "forkserver"}),
    ],
)
def test_workers_that_are_not_forked_read_the_same_masks(flag, more, environment, options, expected, tmp_path):
    plugin = tmp_path / "users_plugin.py"
    plugin.write_text(PLUGIN)
    run = {**options, "model_type": MODEL_TYPE, "dataloader_num_workers": 1, "output_dir": tmp_path / "out"}
    argv = flags(**run, **{flag: plugin}, **more)
    done = run_swift("sft", "--plugin", "himtok", *argv, cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout + done.stderr
    assert set(re.findall(r"worker is (\w+)", output)) == {"new"}
    assert float(re.search(r"'loss': '?([\d.]+)", output)[1]) == pytest.approx(expected, rel=1e-3)
