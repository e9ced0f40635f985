"""Writing files so that nothing is half-written, with digests of what is written."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from adapterkit.system.digests import tensor_bytes


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, to write to; it replaces `path` when the block succeeds.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist")
    # A folder, because what writes may keep a temporary file of its own beside its target, as
    # safetensors does.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.part-") as beside:
        temporary = Path(beside) / path.name
        yield temporary
        # Some writers keep their file private; it shall have the mode that `open` would give.
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A draft beside `folder`, which takes its place when the block succeeds.

    Raises:
        FileNotFoundError: there is no folder to make it in.
    """
    if not folder.parent.is_dir():
        raise FileNotFoundError(f"the folder {folder.parent} does not exist; make it first")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.part-") as beside:
        draft = Path(beside) / folder.name
        draft.mkdir()
        yield draft
        if folder.exists():
            folder.rename(Path(beside) / "before")
        draft.rename(folder)


def is_new_folder(path: Path) -> bool:
    """Whether nothing is at a path, or an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def remove_half_written(folder: Path) -> None:
    """Remove what a process that was killed within `atomic_write` left in a folder."""
    for left in folder.glob(".*.part-*"):
        shutil.rmtree(left)


_DIGESTS = "adapterkit digests"
"""Where a safetensors file's metadata holds the digests of its content."""


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file with digests of its tensors and metadata, atomically.

    Raises:
        FileNotFoundError: the folder of `path` does not exist.
        OSError: it cannot be written; the disk is full, say.
    """
    contiguous = {key: value.contiguous() for key, value in tensors.items()}
    digests = {"metadata": _text_digest(metadata), "tensors": _tensor_digests(contiguous)}
    with atomic_write(path) as temporary:
        try:
            save_file(contiguous, temporary, {**metadata, _DIGESTS: json.dumps(digests)})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Compare a file's metadata with their digest, if it has one.

    Raises:
        ValueError: they differ.
    """
    digests = _digests(metadata)
    others = {key: value for key, value in metadata.items() if key != _DIGESTS}
    if digests is not None and digests.get("metadata") != _text_digest(others):
        raise ValueError("its header is not what was written (another digest)")


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Compare a file's tensors, as they lie in it, with their digests, if it has some.

    Raises:
        ValueError: one differs; the message names it.
    """
    digests = _digests(metadata)
    if digests is None:
        return
    written, found = digests.get("tensors"), _tensor_digests(tensors)
    for name in {**found, **(written if isinstance(written, dict) else {})}:
        if not isinstance(written, dict) or written.get(name) != found.get(name):
            raise ValueError(f"its tensor {name} is not what was written (another digest)")


def _digests(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if _DIGESTS not in metadata:
        return None
    try:
        digests = json.loads(metadata[_DIGESTS])
    except (ValueError, RecursionError):
        digests = {}
    return digests if isinstance(digests, dict) else {}


def _text_digest(metadata: Mapping[str, str]) -> str:
    text = json.dumps(metadata, sort_keys=True)
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _tensor_digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: _tensor_digest(value) for name, value in tensors.items()}


def _tensor_digest(value: Tensor) -> str:
    digest = blake2b(f"{value.dtype} {tuple(value.shape)}".encode(), digest_size=8)
    digest.update(tensor_bytes(value))
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
