"""Elements of a JSON file and their byte ranges."""

import json
import random

import pytest

from himtok_plugin.data.byte_ranges import RangeIndex, id_to_int, iter_elements


def random_json(rng, depth=3):
    kind = rng.randrange(8 if depth else 6)
    if kind == 6:
        return [random_json(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {f'k{i}"\\é': random_json(rng, depth - 1) for i in range(rng.randrange(4))}
    return rng.choice(
        [None, True, rng.randrange(10**9), rng.random() * 1e9, 'a"b\\c\n', "größe {[", "", -0.5, "\u2028"]
    )


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("indent", [None, 2])
def test_every_element_is_found_at_its_byte_range(tmp_path, monkeypatch, ascii, indent):
    path = tmp_path / "a.json"
    for seed in range(25):
        rng = random.Random(seed)
        monkeypatch.setattr("himtok_plugin.data.byte_ranges.CHUNK", rng.choice([1, 3, 17, 1000]))
        content = {f"key {i}": random_json(rng) for i in range(5)} if seed % 2 else [random_json(rng) for _ in range(5)]
        data = json.dumps(content, ensure_ascii=ascii, indent=indent).encode()
        path.write_bytes(b"\xef\xbb\xbf" * (seed % 3 == 0) + data + b"\n")
        whole = path.read_bytes()
        found = {} if seed % 2 else []
        for key, begin, length, _ in iter_elements(path):
            value = json.loads(whole[begin : begin + length]) if length else None
            if seed % 2:
                key = key.encode("latin-1", "ignore").decode()
                if isinstance(content[key], list):
                    found.setdefault(key, []).extend([value] if length else [])
                else:
                    found[key] = value
            else:
                found.append(value)
        assert found == content


@pytest.mark.parametrize(
    "data", [b'{"a": [1, 2', b'{"a"', b'{"a": ', b"[1, 2,", b'["a', b"{a: 1}", b'{"a": [1 2]}', b"[nul]"]
)
def test_broken_json_is_refused(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="a.json: is not JSON at byte"):
        list(iter_elements(path))


def test_ranges_are_grouped_and_can_be_removed():
    ranges = RangeIndex()
    for i, group in enumerate((5, "x", 5, 7, "x")):
        ranges.add(group, i * 10, i)
    assert (
        ranges.in_group(5) == [(0, 0), (20, 2)]
        and ranges.in_group(id_to_int("x")) == [(10, 1), (40, 4)]
        and ranges.in_group(6) == []
    )
    ranges.drop([0])
    assert ranges.in_group(5) == [(20, 2)] and len(ranges) == 4 and RangeIndex().in_group(1) == []
