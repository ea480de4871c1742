"""Packaging of himtok_plugin: metadata, the start-up hook for `--plugin`, and the shipped training configs.

Contract: `pip install .`, `pip install -e .` and installing a wheel put `himtok_plugin_startup.pth` and its successor
`himtok_plugin_startup.start` into site-packages (listed in RECORD, so that uninstalling removes them) and install the
YAML configs. Tool settings are in pyproject.toml.
"""

import re
from pathlib import Path

from setuptools import Command, find_namespace_packages, setup
from setuptools.command.build import build

ROOT = Path(__file__).parent
STARTUP_HOOKS = ("himtok_plugin_startup.pth", "himtok_plugin_startup.start")  # the latter for Python 3.15 and later


def read_version() -> str:
    """The package's `__version__`, read as text, because building must not import the package's dependencies."""
    text = (ROOT / "himtok_plugin" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError('himtok_plugin/__init__.py: expected a line `__version__ = "X.Y.Z"`')
    return match.group(1)


def read_readme() -> str:
    """Text of README.md, which source distributions may lack."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.is_file() else ""


class BuildStartupHook(Command):
    """A step of `build` that installs the `.pth` and the `.start` file into site-packages.

    `data_files` are installed below the prefix, where Python does not read these files, and editable wheels ignore
    them. Implements setuptools' SubCommand protocol (setuptools.command.build), which sets `editable_mode`.
    """

    user_options: list = []

    def initialize_options(self):
        self.build_lib = None
        self.editable_mode = False

    def finalize_options(self):
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def run(self):
        # An editable wheel consists of the files in the folder install_lib, not of those in build_lib.
        folder = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        self.mkpath(folder)
        for name in STARTUP_HOOKS:
            self.copy_file(str(ROOT / name), folder)

    def get_source_files(self):
        return list(STARTUP_HOOKS)

    def get_outputs(self):
        return [str(Path(self.build_lib, name)) for name in STARTUP_HOOKS]

    def get_output_mapping(self):
        return {}


class BuildWithStartupHook(build):
    sub_commands = [*build.sub_commands, ("build_startup_hook", None)]


# Each lower bound is the oldest release that the quick tests pass with; .ci/run installs all of them together. Upper
# bounds are those of ms-swift where it has some (transformers, peft, datasets), otherwise the next major version.
INSTALL_REQUIRES = [
    # The minor version is pinned, because swift_integration/ overrides methods that are not a stable API of ms-swift.
    "ms-swift>=4.6.0,<4.7",
    "torch>=2.9.1,<3",
    "torchvision>=0.24.1,<1",
    "transformers>=5.2.0,<5.20",  # with earlier ones, Qwen-VL does not generate in ms-swift
    "peft>=0.18.0,<0.21",
    "datasets>=4.8.0,<4.8.5",  # Json features, which ms-swift writes
    "accelerate>=1.10.0,<2",
    "safetensors>=0.5.0,<1",
    "pillow>=11.0.0,<14",
    "numpy>=2.1.0,<3",
    "scipy>=1.14.1,<2",
    "pycocotools>=2.0.8,<3",
    "pyyaml>=6.0.1,<7",
    "pyarrow>=21.0.0,<27",
    "sentencepiece>=0.2.0,<1",  # text tokenizer of the released model, read when it is converted
    "protobuf>=5.28.0,<8",
    "jinja2>=3.1.4,<4",  # the HTML pages; torch and transformers need it as well
    "rich>=13.7.0,<16",
    "typer>=0.22,<1",
    "tqdm>=4.66.3,<5",
    "filelock>=3.16.1,<5",
]

# What the quick tests need; .ci/run installs no more beside the oldest releases.
TEST_REQUIRES = [
    "pytest>=8.0.0,<10",
    "pytest-timeout>=2.3.1,<3",
    "pytest-xdist>=3.8.0,<4",
    "hypothesis>=6.100.0,<7",
    "scikit-image>=0.24.0,<1",  # with scikit-learn: reference values of the metrics
    "scikit-learn>=1.5.0,<2",
    "qwen-vl-utils>=0.0.14,<1",  # with decord: needed by ms-swift's templates for Qwen-VL, a base model in tests
    "decord>=0.6.0,<1",
    "xgrammar>=0.2.0,<1",  # with outlines_core: libraries that servers compile regular expressions with
    "outlines_core>=0.2.2,<0.3",
    "msgspec>=0.19.0,<1",  # for GRPO in ms-swift
    "build>=1.2.1,<2",
    "setuptools>=70.1.0",  # tests/test_packaging.py builds wheels without build isolation
]

EXTRAS_REQUIRE = {
    "test": TEST_REQUIRES,
    "dev": [
        *TEST_REQUIRES,
        "gradio>=5.32.1,<6",  # with playwright: tests of the page, in Chromium
        "playwright>=1.40,<2",
        "timm>=1.0.20,<2",  # image networks, for the base model of examples/09_real_base
        "ruff>=0.6,<1",
        "mypy>=2.4,<3",
        "tensorboard>=2.18.0,<3",
        "deepspeed>=0.19,<1",  # on CPUs, for tests of several processes
        "bitsandbytes>=0.49,<1",  # QLoRA, also on CPUs
        "evalscope>=1.14,<2",
    ],
    "eval": ["evalscope>=1.14,<2"],
    "rl": ["msgspec>=0.19,<1"],
    "deepspeed": ["deepspeed>=0.19,<1"],
    "vllm": ["vllm>=0.32,<0.34"],  # each release pins its own torch; docs/inference_and_serving.md on CPU builds
    "qlora": ["bitsandbytes>=0.49,<1"],
    "app": ["gradio>=5.32.1,<6"],  # ms-swift 4.6 recommends 5.32.1; its page fails with 6
    # Empty, because the refiners are models of transformers, which is required anyway.
    "refine": [],
}

setup(
    name="himtok_plugin",
    version=read_version(),
    description="HiMTok mask tokens for ms-swift: train, run and serve any large multimodal model that segments.",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    # Namespace packages, because plugin/ has no __init__.py (see himtok_plugin/plugin/himtok.py). swift_configs/ is at
    # the top of the repository and is installed inside the package (himtok_plugin/resources.py).
    packages=[*find_namespace_packages(include=["himtok_plugin", "himtok_plugin.*"]), "himtok_plugin.swift_configs"],
    package_dir={"himtok_plugin.swift_configs": "swift_configs"},
    package_data={
        "": ["*.yaml", "*.json", "*.txt", "*.safetensors", "*.jinja", "*.j2", "*.md", "*.js", "*.css", "*.html"]
    },
    cmdclass={"build": BuildWithStartupHook, "build_startup_hook": BuildStartupHook},
    entry_points={
        "console_scripts": ["himtok = himtok_plugin.cli:main"],
        "swift.plugins": ["himtok = himtok_plugin.plugin.himtok"],
        "swift.plugin_arguments": ["himtok = himtok_plugin.swift_integration.options.swift_arguments:add_options"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
