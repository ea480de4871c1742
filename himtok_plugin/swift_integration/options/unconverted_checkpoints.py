"""Refusal of the authors' published checkpoint, which has to be converted before ms-swift can load it.

Contract: `refuse_unconverted` recognises the checkpoint by its name, its configuration and the keys of its weights; it
reads no weights. Its message contains the command that converts the checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from himtok_plugin.internvl_chat.chat_config import MODEL_TYPE

from .checkpoint_settings import read_json_or_empty

RELEASED_MODEL = "yayafengzi/InternVL2_5-HiMTok-8B"


def refuse_unconverted(model: str | None) -> None:
    """Refuse the authors' checkpoint in its published form.

    Args:
        model: folder or hub id; None passes.
    Raises:
        ValueError: the checkpoint is not converted yet. The message contains the command that converts it.
    """
    if not model:
        return
    folder = Path(model)
    name = RELEASED_MODEL.rpartition("/")[2]
    if folder.is_dir():
        is_unconverted = read_json_or_empty(folder / "config.json").get(
            "model_type"
        ) == MODEL_TYPE and _has_mask_tokenizer(folder)
    else:
        is_unconverted = model.replace("\\", "/").rpartition("/")[2].lower() == name.lower()
    if is_unconverted:
        raise ValueError(
            f"model: got {model!r}, the authors' checkpoint, expected a converted one. Convert it once with "
            f"`himtok convert {model} {name}-hf`, then use --model {name}-hf"
        )


def _has_mask_tokenizer(folder: Path) -> bool:
    """Whether a chat model has a mask tokenizer: as a file of its own, or by the keys of its weights."""
    from himtok_plugin.internvl_chat.chat_checkpoint import SINGLE_FILES
    from himtok_plugin.mask_tokenizer.released_weights import CHAT_PREFIX, RELEASED_FILE

    if (folder / RELEASED_FILE).is_file():
        return True
    indices = sorted(folder.glob("*.index.json"))
    if indices:
        return any(f'"{CHAT_PREFIX}' in path.read_text(encoding="utf-8") for path in indices)
    files = [path for kind in SINGLE_FILES for path in folder.glob(kind)]
    return any(key.startswith(CHAT_PREFIX) for path in files for key in _read_weight_keys(path))


def _read_weight_keys(path: Path) -> list[str]:
    """Return the parameter names in a weights file, none if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    from himtok_plugin.mask_tokenizer.released_weights import read_pickle

    try:
        if path.suffix != ".safetensors":
            return list(map(str, read_pickle(path, mmap=True)))
        with safe_open(path, "pt") as file:
            return list(file.keys())
    except (OSError, ValueError, SafetensorError):
        return []  # the model loader reports what is wrong with the file
