"""Commands of shell blocks, run in this process: `swift` and `himtok` cost ten seconds of imports each time.

`run_block` runs a block, `parse_block` passes its commands through the real argument parsers. Both accept simple
commands, one a line, with `NAME=VALUE` before them and `> FILE` behind them, and raise an error for other shell syntax.
"""

import json
import os
import shlex
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import typer.main

from himtok_plugin import cli

SHORT_TRAINING = (
    "--max_steps 2 --per_device_train_batch_size 2 --per_device_eval_batch_size 2 --gradient_accumulation_steps 1 "
    "--use_cpu true --torch_dtype float32 --bf16 false --fp16 false --dataloader_num_workers 0 --dataset_num_proc 1 "
    "--continuous_warmup_steps 0 --save_steps 2 --eval_steps 2 --report_to none --check_model false --strict true "
    "--load_from_cache_file false"
).split()
SHORT_ANSWERS = (
    "--max_batch_size 16 --max_new_tokens 48 --torch_dtype float32 --load_from_cache_file false --strict true"
).split()
SHORT_SAMPLES = "--num_generations 2 --max_completion_length 24".split()
FOUR_BITS = "--torch_dtype bfloat16 --bf16 true".split()  # bitsandbytes has no others on a CPU
UNSUPPORTED = set("|&;<`$()")
FLAGS_WITH_OUTPUT = ("--output_dir", "--result_path", "--output")


@dataclass
class Command:
    """One simple command."""

    words: list[str]
    environment: dict[str, str]
    output: str | None

    @property
    def program(self) -> str:
        return self.words[0]


def commands_of(text: str) -> list[Command]:
    """The commands of a block.

    Raises:
        ValueError: shell syntax that is not supported here.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words = list(lexer)
        if not words:
            continue
        output = None
        if ">" in words:
            at = words.index(">")
            (output,), words = words[at + 1 :], words[:at]
        if any(set(word) <= UNSUPPORTED for word in words):
            raise ValueError(f"{line!r}: expected a simple command")
        environment = {}
        while "=" in words[0]:
            name, _, environment[name] = words.pop(0).partition("=")
        found.append(Command(words, environment, output))
    return found


def run_block(text: str) -> None:
    """Run all commands of a block in the current folder."""
    for command in commands_of(text):
        if command.environment:
            raise ValueError(f"{command}: expected no environment variables in a block that is run")
        with open(command.output, "w") if command.output else nullcontext() as file:
            with redirect_stdout(file) if file else nullcontext():
                RUNNERS[command.program](command.words[1:])
        for flag in FLAGS_WITH_OUTPUT:
            if flag in command.words:
                path = Path(command.words[command.words.index(flag) + 1])
                assert any(path.iterdir()) if path.is_dir() else path.stat().st_size, f"{path}: nothing was written"


def run_himtok(arguments: list[str]) -> None:
    if arguments[0] == "convert":
        Path(arguments[2]).unlink(missing_ok=True)  # another block needs the converted model to be there
    try:
        cli.main(arguments)
    except SystemExit as stop:
        assert not stop.code, f"himtok {shlex.join(arguments)}: exit status {stop.code}"


def run_swift(arguments: list[str]) -> None:
    """ms-swift's own function for the command, on few steps and short answers."""
    from swift import pipelines
    from swift.cli.main import parse_yaml_args

    verb, argv = arguments[0], list(arguments[1:])
    parse_yaml_args(argv)
    short = {"sft": SHORT_TRAINING, "rlhf": [*SHORT_TRAINING, *SHORT_SAMPLES], "infer": SHORT_ANSWERS, "export": []}
    argv += [*short[verb], *(FOUR_BITS if "--quant_method" in argv else [])]
    getattr(pipelines, f"{verb}_main")(argv)


def run_python(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


def run_swift_process(arguments: list[str]) -> None:
    from runs import run_swift as run

    done = run(*arguments, *"--max_new_tokens 24 --torch_dtype float32".split(), cwd=Path.cwd(), timeout=900)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]


RUNNERS = {
    "himtok": run_himtok,
    "swift": lambda arguments: (run_swift_process if arguments[0] == "eval" else run_swift)(arguments),
    "python": run_python,
}


def parse_block(text: str) -> None:
    """Pass all commands of a block through their argument parsers."""
    for command in commands_of(text):
        words = command.words
        if words[0] == "torchrun":
            assert words[3] == "-m" and words[4] == "himtok_plugin.cli", words
            words = ["himtok", *words[5:]]
        {"himtok": parse_himtok, "swift": parse_swift, "python": parse_script}[words[0]](words[1:])


def parse_himtok(arguments: list[str]) -> None:
    command = typer.main.get_command(cli.app)
    context = command.make_context("himtok", list(arguments))
    while hasattr(command, "commands"):
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, arguments, parent=context)


PARSE = """
import json, sys
from himtok_plugin import startup
startup.activate("himtok")
from swift import arguments
from swift.cli.main import parse_yaml_args
from swift.utils import parse_args

kind, argv = json.loads(sys.argv[1])
parse_yaml_args(argv)
for absent in json.loads(sys.argv[2]):
    if absent in argv:
        del argv[argv.index(absent) : argv.index(absent) + 2]
args, remaining = parse_args(getattr(arguments, kind), argv)
assert not remaining, remaining
"""
ARGUMENTS = {"sft": "SftArguments", "infer": "InferArguments", "rlhf": "RLHFArguments", "export": "ExportArguments"}


def parse_swift(arguments: list[str]) -> None:
    """ms-swift's own parser, in a process of its own: some options change the process."""
    verb, *argv = arguments
    absent = ["--deepspeed"] if find_spec("deepspeed") is None else []
    command = [sys.executable, "-c", PARSE, json.dumps([ARGUMENTS[verb], [*argv, "--use_cpu", "true"]])]
    done = subprocess.run([*command, json.dumps(absent)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]


def parse_script(arguments: list[str]) -> None:
    """The script's own parser says nothing without running: its `--help` lists every flag that is named."""
    script, *rest = arguments
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    missing = [word for word in rest if word.startswith("--") and word not in done.stdout]
    assert not missing, f"{script} has no {missing}"
