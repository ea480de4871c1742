"""himtok_plugin: segmentation masks as tokens for any large multimodal model that ms-swift supports.

Public names are imported on first use (PEP 562). Importing the package itself imports nothing else, because Python 3.15
imports it at every start (startup_hook.py), in processes that do not need it.
"""

TYPE_CHECKING = False  # type checkers know this name; importing `typing` takes longer than everything else here
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# public name -> module that it is imported from
_PUBLIC = {
    "MaskTokenizer": "mask_tokenizer",
    "MaskTokenizerConfig": "mask_tokenizer",
    "Masks": "masks",
    "load_mask": "masks",
    "codes_to_text": "mask_text",
    "text_to_codes": "mask_text",
    "HierarchicalMaskLoss": "hierarchical_loss",
    "SegmentationMetrics": "metrics",
    "SegmentationResult": "prediction.segmentation_result",
    "Segmenter": "swift_integration.answering.segmenter",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> "Any":
    """Import a public name and store it in the module, so that this runs once per name."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
