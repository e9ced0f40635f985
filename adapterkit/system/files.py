"""Reading and writing files so that nothing is half-written and nothing foreign is executed."""

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


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
    content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    digest.update(content.numpy().data)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth`/`.pt` checkpoint or a safetensors file, on the CPU.

    A checkpoint that wraps it under "state_dict", "model", "model_state_dict" or "model_state" is
    unwrapped, and the prefix "module." that `DataParallel` leaves is dropped. Only tensors and
    plain containers are read from a pickle: nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint of tensors alone. It is damaged, or it holds Python "
            "objects, which adapterkit refuses to load since that can run code from the file"
        ) from error
    except OSError:
        raise
    except Exception as error:  # On bytes that are no pickle, the unpickler fails in any way.
        raise ValueError(f"{path} is not a readable checkpoint: {error!r}") from error
    for wrapper in ("state_dict", "model", "model_state_dict", "model_state"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    return tensors_only(loaded, str(path))


def tensors_only(state_dict: Any, source: str) -> dict[str, Tensor]:
    """`state_dict` without a `DataParallel` prefix.

    Raises:
        ValueError: it is not a dict of tensors; the message names `source`.
    """
    if not isinstance(state_dict, dict) or not state_dict:
        raise ValueError(f"{source} holds no state dict but a {type(state_dict).__name__}")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{source} holds no state dict: {key!r} is a {type(value).__name__}, not a tensor"
            )
    return {key.removeprefix("module."): value for key, value in state_dict.items()}
