"""A folder that a command writes as a whole, and replaces only where it has written it itself.

A command writes into a temporary folder within OUT. Only when that is complete do its files take the place of those of
an earlier run, which OUT's manifest lists; until then the earlier ones stay usable. `--force` never removes a file that
the manifest does not list, or that has changed since: such a file stays, and if it is part of a model, the command is
refused. An interrupted run leaves the temporary folder, which the next run removes.

Contract: imports the standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path
from typing import NoReturn

MANIFEST = ".himtok_files.json"
UNFINISHED = ".himtok_unfinished"
ENDS = 2**20  # bytes at either end of a file that its fingerprint covers
# What libraries load from a folder. Beside it, the files of another model would change what is loaded.
MODEL_FILES = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.ckpt", "*.index.json"),
    *("config.json", "generation_config.json", "adapter_config.json", "args.json", "trainer_state.json"),
    *("tokenizer*", "vocab*", "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template*"),
    "*processor_config.json",
)
LAST_FILES = ("config.json", "adapter_config.json")  # without them no library loads a folder


class OutputFolder:
    """The folder OUT of a command.

    Args:
        out: the folder; it need not exist.
        command: the command that writes it, such as "himtok convert".
        parts: names of folders within OUT that the command writes as a whole; nothing else may be in them.
    """

    def __init__(self, out: Path, command: str, parts: Iterable[str] = ()) -> None:
        self.out, self.command, self.parts = out, command, tuple(parts)

    def check(self, force: bool) -> None:
        """Check that the command may write here, before it does any work.

        Args:
            force: replace what an earlier run has written.
        Raises:
            ValueError: `out` is a file; it is not empty and `force` is false; or it has files of a model that an
                earlier run has not written.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out}: is a file, expected a folder to write")
        if not self.out.is_dir() or all(path.name == UNFINISHED for path in self.out.iterdir()):
            return
        self._refuse(self._list_foreign_files())
        if not force:
            self._refuse_without_force()

    @contextmanager
    def fill(self) -> Iterator[Path]:
        """Yield a temporary folder, whose files replace those of an earlier run after a block without errors.

        Raises:
            ValueError: as `check` with `force`.
        """
        self.check(force=True)
        exists = self.out.is_dir()
        new = self.out / UNFINISHED
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            yield new
            self._replace(new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            if not exists:
                with suppress(OSError):  # it is not empty
                    self.out.rmdir()
            raise

    def claim(self, names: Iterable[str], force: bool) -> None:
        """Enter names that the command is about to write into the manifest, for output that grows file by file.

        Args:
            names: files and folders in OUT.
            force: replace what an earlier run has written.
        Raises:
            ValueError: `out` is a file; it is not empty and `force` is false; or one of the names is there, and no
                earlier run has written it.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out}: is a file, expected a folder to write")
        names = list(names)
        earlier = self._read_manifest()
        self._refuse([name for name in names if name not in earlier and os.path.lexists(self.out / name)])
        if not force and self.out.is_dir() and any(self.out.iterdir()):
            self._refuse_without_force()
        self.out.mkdir(parents=True, exist_ok=True)
        self._write_manifest({**earlier, **dict.fromkeys(names)})

    def _replace(self, new: Path) -> None:
        """Move the files of `new` to their places, those last without which nothing loads."""
        written = {str(path.relative_to(new)): _get_fingerprint(path) for path in _list_files(new)}
        earlier = self._read_manifest()
        self._refuse([name for name in written if name not in earlier and os.path.lexists(self.out / name)])
        # Both are listed until all are moved, so that an interruption leaves no file that nobody has written.
        self._write_manifest(written, earlier)
        for name in sorted(earlier, key=lambda name: Path(name).name not in LAST_FILES):
            self._remove(name)
        for name in sorted(written, key=lambda name: Path(name).name in LAST_FILES):
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, self.out / name)
        shutil.rmtree(new)
        self._write_manifest(written)

    def _remove(self, name: str) -> None:
        """Remove a file of an earlier run, and its folder if that is empty then. Of a link only the link goes."""
        path = self.out / name
        for folder in reversed(path.relative_to(self.out).parents[:-1]):
            if (self.out / folder).is_symlink():
                (self.out / folder).unlink()
                return
        path.unlink(missing_ok=True)
        for folder in path.relative_to(self.out).parents[:-1]:
            with suppress(OSError):
                (self.out / folder).rmdir()

    def _list_foreign_files(self) -> list[str]:
        """Files of a model, and all files in `parts`, that no earlier run has written, or that have changed since."""
        earlier = self._read_manifest()
        found = []
        for path in sorted(self.out.iterdir()):
            if path.is_dir() and path.name in self.parts:
                found += [str(file.relative_to(self.out)) for file in _list_files(path)]
            elif not path.is_dir() and any(fnmatch(path.name, pattern) for pattern in MODEL_FILES):
                found.append(path.name)
        return [
            name
            for name in found
            if not (name in earlier and earlier[name] in (None, _get_fingerprint(self.out / name)))
        ]

    def _refuse_without_force(self) -> NoReturn:
        raise ValueError(
            f"{self.out}: is not empty; pass --force to replace what an earlier `{self.command}` has written there"
        )

    def _refuse(self, foreign: list[str]) -> None:
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise ValueError(
                f"{self.out}: is not empty: got {foreign[0]}{more}, which no earlier `{self.command}` has written "
                "there, or which changed since, expected another folder: --force replaces only what the same command "
                "wrote; move or delete the rest yourself"
            )

    def _read_manifest(self) -> dict[str, str | None]:
        """Return the fingerprints of what earlier runs of the command wrote, by name; None for any content."""
        try:
            content = json.loads((self.out / MANIFEST).read_text(encoding="utf-8"))
            if content["command"] != self.command:
                return {}
            listed: dict[str, str | None] = {}
            for name, fingerprint in [*content.get("earlier", {}).items(), *content["files"].items()]:
                path = self.out / name
                if Path(name).is_absolute() or ".." in Path(name).parts:
                    return {}  # a stranger's: no command writes outside of its folder
                # While files are moved, both versions of one are listed.
                is_old = name in listed and path.is_file() and _get_fingerprint(path) == listed[name]
                listed[name] = listed[name] if is_old else fingerprint
            return {name: value for name, value in listed.items() if os.path.lexists(self.out / name)}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}  # without a readable manifest, nothing here was written by the command

    def _write_manifest(self, files: dict[str, str | None], earlier: dict[str, str | None] | None = None) -> None:
        content = {"command": self.command, "files": files, **({"earlier": earlier} if earlier else {})}
        unfinished = self.out / f"{MANIFEST}.new"
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(unfinished, self.out / MANIFEST)


def _list_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _list_files(path)
        else:
            yield path


def _get_fingerprint(path: Path) -> str | None:
    """The size of a file and a digest of its beginning and end: files of gigabytes are told apart in milliseconds."""
    if not path.is_file():
        return "missing"
    size, digest = path.stat().st_size, blake2b(digest_size=16)
    with open(path, "rb") as file:
        digest.update(file.read(ENDS))
        if size > ENDS:
            file.seek(max(size - ENDS, ENDS))
            digest.update(file.read(ENDS))
    return f"{size}-{digest.hexdigest()}"
