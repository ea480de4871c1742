"""How far masks of two engines differ."""

from himtok_plugin.masks import load_mask


def count_different_pixels(one: list[dict], other: list[dict]) -> int:
    """Pixels that differ between masks in the form of results, in the same order."""
    assert [mask["codes"] for mask in one] == [mask["codes"] for mask in other]
    pairs = zip(one, other, strict=True)
    return sum(int((load_mask(select_rle(a)) != load_mask(select_rle(b))).sum()) for a, b in pairs)


def select_rle(mask: dict) -> dict:
    return {"size": mask["size"], "counts": mask["counts"]}
