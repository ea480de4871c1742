"""Reads released weights (`himtok.pth`) as configuration and state dict, and finds mask tokenizers in folders and hubs.

Sizes are derived from the shapes of the tensors. Pickles are read with `weights_only=True`, so that a file cannot run
code. From a whole chat checkpoint, the mask tokenizer's tensors under `mask_decoder.` are taken.
"""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from himtok_plugin.checkpoints.file_contents import check_weights_file
from himtok_plugin.checkpoints.json_files import read_json_object
from himtok_plugin.resources import SIDECAR_FOLDER, default_checkpoint, default_mask_tokenizer

from .configuration import MaskTokenizerConfig

RELEASED_FILE = "himtok.pth"
HEAD_WIDTH = 64  # of the released transformers
IGNORED_PREFIXES = ("sam.",)  # the authors' optional refiner, which some files contain
IGNORED_KEYS = ("encoder.attn_mask",)  # a constant, which is computed here
CHAT_PREFIX = "mask_decoder."  # of the same keys in a whole chat checkpoint
HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")  # of `from_pretrained`
SHIPPED = {"default": default_mask_tokenizer, "demo": default_checkpoint}
WHOLE_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # of transformers; one device is enough


def read_released(
    path: str | os.PathLike, fields: Mapping[str, Any] | None = None
) -> tuple[MaskTokenizerConfig, dict[str, Tensor]]:
    """Read a released weights file.

    Args:
        path: the file.
        fields: configuration fields to use instead of those derived from the shapes.

    Returns:
        The configuration, and the weights in float32. The caller has to check that they match.

    Raises:
        ValueError: it is not a file of tensors, or the shapes are not those of a mask tokenizer.
    """
    state = strip_wrappers(_read_weights(Path(path)), path)
    config = config_from_shapes(shapes_of(state), path, fields)
    return config, {key: value.float() for key, value in state.items()}


def shapes_of(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of a state dict, by key."""
    return {key: tuple(value.shape) for key, value in state.items()}


@dataclass(frozen=True)
class ReleasedOptions:
    """Keywords of `from_pretrained` that apply to released weights.

    Attributes:
        fields: configuration fields.
        dtype, device: of the loaded model.
    """

    fields: dict[str, Any]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, path: Path, options: Mapping[str, Any]) -> ReleasedOptions:
        """Read the keywords of `from_pretrained`, except hub options.

        Raises:
            ValueError: a keyword is not supported, or a value is invalid.
        """
        known = MaskTokenizerConfig.field_names()
        unknown = sorted(options.keys() - known - {"dtype", "torch_dtype", "device_map", *HUB_OPTIONS})
        if unknown:
            raise ValueError(
                f"{path}: keywords {unknown}: expected dtype, device_map, {', '.join(HUB_OPTIONS)}, or fields of "
                f"{MaskTokenizerConfig.__name__}"
            )
        return cls(
            {name: options[name] for name in known & options.keys()},
            _as_dtype(options.get("dtype", options.get("torch_dtype"))),
            _as_device(options.get("device_map")),
        )


def _as_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    if dtype in (None, "auto"):
        return torch.float32
    found: Any = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={dtype!r}: expected a floating dtype of torch or its name")
    return found


def _as_device(device_map: Any) -> torch.device:
    if device_map is None:
        return torch.device("cpu")
    if device_map in WHOLE_DEVICE_MAPS:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    device: Any = device_map.get("") if isinstance(device_map, Mapping) and len(device_map) == 1 else device_map
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device_map={device_map!r}: expected a device for the whole model, or 'auto'") from error


def check_keys(
    found: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    source: object,
    optional: Iterable[str] = (),
) -> None:
    """Compare keys and shapes of weights with the expected ones.

    Args:
        found, expected: shapes by key.
        source: beginning of the error message.
        optional: keys that may be missing.
    Raises:
        ValueError: they differ; the message lists every key.
    """
    missing = sorted(expected.keys() - found.keys() - set(optional))
    unknown = sorted(found.keys() - expected.keys())
    misshaped = sorted(
        f"{key} {found[key]} instead of {expected[key]}"
        for key in expected.keys() & found.keys()
        if found[key] != expected[key]
    )
    if missing or unknown or misshaped:
        raise ValueError(f"{source}: missing keys {missing}; unknown keys {unknown}; wrong shapes {misshaped}")


def _read_weights(path: Path) -> Mapping:
    if not path.is_file():
        raise ValueError(f"{path}: expected a weights file such as {RELEASED_FILE}, found none")
    if path.suffix == ".safetensors":
        check_weights_file(path)
        # Its configuration is in the config.json next to it and cannot be derived from the shapes.
        raise ValueError(f"{path}: got a file, expected the folder that holds it and its config.json")
    return read_pickle(path)


def supports_mmap(path: Path) -> bool:
    """Whether a file of `torch.save` has the zip format (since PyTorch 1.6), which can be memory-mapped."""
    return zipfile.is_zipfile(path)


def read_pickle(path: Path, mmap: bool = False) -> Mapping:
    """Read a dictionary of tensors that `torch.save` wrote.

    Args:
        path: the file.
        mmap: map the tensors into memory instead of reading them, if the file's format supports it.
    Raises:
        ValueError: the file is something else, is truncated, or would run code.
    """
    check_weights_file(path)
    try:
        # weights_only rejects pickles that call anything but constructors of tensors.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and supports_mmap(path))
    except pickle.UnpicklingError as error:
        # torch's own message recommends loading the file without this protection.
        called = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it would call {called[1]}" if called else "not a pickle of tensors"
        raise ValueError(f"{path}: not a weights file of plain tensors ({reason})") from error
    except Exception as error:
        # Files from before PyTorch 1.6 have no table that would tell it without reading them.
        is_cut = isinstance(error, (EOFError, IndexError)) or "EOF" in str(error)
        what = "a file that is cut off" if is_cut else "not a weights file of plain tensors"
        raise ValueError(f"{path}: {what} ({_first_line(error)})") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: holds a {type(state).__name__}, expected a dictionary of tensors")
    return state


def strip_wrappers(state: Mapping, source: object = "state dict") -> dict[str, Tensor]:
    """Undo the `{"model": …}` wrapper, `module.` and `mask_decoder.` prefixes; drop keys of other models.

    If there are keys with `mask_decoder.`, all others belong to a chat model and are dropped.

    Raises:
        ValueError: a value is not a tensor.
    """
    if isinstance(state.get("model"), Mapping):
        state = state["model"]
    plain = {str(key).removeprefix("module."): value for key, value in state.items()}
    inner = {key.removeprefix(CHAT_PREFIX): v for key, v in plain.items() if key.startswith(CHAT_PREFIX)}
    kept = {key: value for key, value in (inner or plain).items() if is_mask_tokenizer_key(key)}
    strange = sorted(key for key, value in kept.items() if not isinstance(value, Tensor))
    if strange:
        raise ValueError(f"{source}: entries {strange} are not tensors")
    return kept


def is_mask_tokenizer_key(key: str) -> bool:
    """Whether a key of released weights, without prefixes, belongs to the mask tokenizer."""
    return not key.startswith(IGNORED_PREFIXES) and key not in IGNORED_KEYS


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]], source: object = "state dict", fields: Mapping[str, Any] | None = None
) -> MaskTokenizerConfig:
    """Derive the configuration from the shapes of a released state dict.

    Args:
        shapes: shapes of its tensors, by key without prefixes.
        source: beginning of error messages.
        fields: configuration fields to use instead of those derived from the shapes.

    Raises:
        ValueError: a required key is missing or has the wrong number of dimensions, or sizes are inconsistent.
    """

    def shape(key: str, ndim: int) -> tuple[int, ...]:
        if key not in shapes:
            raise ValueError(f"{source}: no key {key!r}, so this is not a HiMTok mask tokenizer")
        if len(shapes[key]) != ndim or 0 in shapes[key]:
            raise ValueError(f"{source}: {key} has shape {shapes[key]}, expected {ndim} dimensions, none of them 0")
        return shapes[key]

    def layers(prefix: str) -> int:
        numbers = {key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)}
        return sum(number.isdigit() for number in numbers)

    encoder_width, _, patch_size, _ = shape("encoder.patch_embed.weight", 4)
    num_patches = shape("encoder.positional_embedding", 2)[0] - 1
    grid_size = round(max(num_patches, 0) ** 0.5)
    if grid_size**2 != num_patches or not num_patches:
        raise ValueError(f"{source}: encoder.positional_embedding holds {num_patches} patches, expected a square")
    decoder_width = shape("decoder.positional_embedding", 2)[1]
    codebook_size, code_width = shape("quantize.embedding.weight", 2)
    levels = layers("pixel_decoder.up.")
    widths = [shape(f"pixel_decoder.up.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)]
    if not widths or any(width % widths[0] for width in widths):
        raise ValueError(f"{source}: pixel decoder levels of {widths} channels, expected multiples of the first")
    sizes: dict[str, Any] = dict(
        image_size=grid_size * patch_size,
        patch_size=patch_size,
        encoder_width=encoder_width,
        encoder_layers=layers("encoder.transformer."),
        encoder_heads=max(encoder_width // HEAD_WIDTH, 1),
        decoder_width=decoder_width,
        decoder_layers=layers("decoder.transformer."),
        decoder_heads=max(decoder_width // HEAD_WIDTH, 1),
        mlp_ratio=shape("encoder.transformer.0.mlp.c_fc.weight", 2)[0] // encoder_width,
        num_mask_tokens=shape("latent_tokens", 2)[0],
        codebook_size=codebook_size,
        code_width=code_width,
        latent_layout="legacy_reshape",
        pixel_hidden_width=shape("decoder.ffn.0.weight", 4)[0],
        pixel_input_channels=shape("decoder.ffn.2.weight", 4)[0],
        pixel_channels=widths[0],
        pixel_channel_multipliers=[width // widths[0] for width in widths],
        pixel_res_blocks=layers("pixel_decoder.up.0.block."),
        output_channels=shape("pixel_decoder.conv_out.weight", 4)[0],
        codebook_ready=True,
    )
    return MaskTokenizerConfig(**{**sizes, **(fields or {})})


def find_mask_tokenizer(name: str | os.PathLike, hub_options: Mapping | None = None) -> Path:
    """Find a mask tokenizer.

    A folder may be a mask tokenizer itself, contain one in `mask_tokenizer/`, or contain `himtok.pth`. A name that is
    neither a file nor a folder is downloaded as a hub id.

    Args:
        name: folder, file, hub id, "default" for the shipped mask tokenizer, or "demo" for that of the shipped LMM.
        hub_options: keywords of `from_pretrained`; `subfolder` also applies to local folders.

    Returns:
        A folder in `save_pretrained` layout, or a file of released weights.

    Raises:
        ValueError: there is no mask tokenizer; the message says what was looked for.
    """
    options = hub_options or {}
    subfolder = str(options.get("subfolder") or "").strip("/")
    path = Path(name)
    if path.is_file() and not subfolder:
        return path
    if str(name) in SHIPPED:
        path = SHIPPED[str(name)]()
    path = path / subfolder if path.exists() else _download(str(name), subfolder, options)
    unreadable: ValueError | None = None
    for folder in (path, path / SIDECAR_FOLDER):
        try:
            if _is_mask_tokenizer(folder):
                return folder
        except ValueError as error:  # the configuration of an LMM does not concern the mask tokenizer in its folder
            unreadable = unreadable or error
        if (folder / RELEASED_FILE).is_file():
            return folder / RELEASED_FILE
    if unreadable is not None:
        raise unreadable
    raise ValueError(
        f"mask tokenizer {str(name)!r}: {path} holds neither a mask tokenizer's config.json, nor {SIDECAR_FOLDER}/, "
        f"nor {RELEASED_FILE}"
    )


def _is_mask_tokenizer(folder: Path) -> bool:
    config = folder / "config.json"
    return config.is_file() and read_json_object(config).get("model_type") == MaskTokenizerConfig.model_type


def _download(hub_id: str, subfolder: str, options: Mapping) -> Path:
    """Download the files of a mask tokenizer, without those of an LMM in the same repository; return their folder."""

    def fetch(*patterns: str) -> Path:
        inside = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
        return download_from_hub(hub_id, "mask tokenizer", inside, options) / subfolder

    folder = fetch("config.json", RELEASED_FILE, f"{SIDECAR_FOLDER}/*")
    if _is_mask_tokenizer(folder):
        fetch("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
    return folder


def download_from_hub(hub_id: str, what: str, files: Iterable[str], options: Mapping | None = None) -> Path:
    """Download files of a hub repository to the cache.

    Args:
        hub_id: the repository.
        what: kind of model, for the error message.
        files: patterns of file names.
        options: keywords of `from_pretrained`, of which the hub options are used.
    Returns:
        The local folder.
    Raises:
        ValueError: the repository does not exist or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    allowed = {key: value for key, value in (options or {}).items() if key in HUB_OPTIONS}
    try:
        return Path(snapshot_download(hub_id, allow_patterns=[*files], **allowed))
    except Exception as error:
        raise ValueError(
            f"{what} {hub_id!r}: no such folder, and downloading it from the hub failed ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    """First line of an error's message, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
