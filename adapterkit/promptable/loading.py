"""A Segment Anything model of any family, from a file, a folder or the Hugging Face Hub."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adapterkit.adapters.hub import clear_errors
from adapterkit.promptable.families import all_families
from adapterkit.promptable.stock_sam import load_sam
from adapterkit.system.pages import see

_ON_THE_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt")


def load(checkpoint: str | Path) -> nn.Module:
    """A Segment Anything model of any family with the weights of `checkpoint`.

        ak.load("sam_vit_b_01ec64.pth")  # segment_anything's Sam
        ak.load("facebook/sam2.1-hiera-tiny")  # transformers' Sam2Model

    Of folders and names, weights are read from safetensors alone, and no code that comes with them
    is run.

    Args:
        checkpoint: a file as `load_sam` takes it; a folder that transformers' `save_pretrained`
            wrote; or, where there is neither, "owner/name" on the Hub, which is downloaded once.

    Returns:
        A `Sam`; or, of transformers, a `SamModel`, `SamHQModel`, `Sam2Model`, `Sam3TrackerModel` or
        `EdgeTamModel`, also out of one for videos, in float32. It is in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file or folder, and nothing of this name on the Hub.
        ConnectionError: the Hub cannot be reached.
        ValueError: it is of another kind of model, has no weights in safetensors, or lacks some.
    """
    path = Path(checkpoint)
    if path.is_dir():
        return _from_folder(path, str(path))
    if not is_on_the_hub(path):
        return load_sam(path)
    return _from_folder(_downloaded(path.as_posix()), path.as_posix())


def is_on_the_hub(checkpoint: Path) -> bool:
    """Whether it can only be a name on the Hub."""
    is_name = _ON_THE_HUB.fullmatch(checkpoint.as_posix()) is not None
    return is_name and not checkpoint.exists() and checkpoint.suffix not in _FILES


def absolute(checkpoint: Path | None) -> Path | None:
    """The whole path of a file or folder; what is on the Hub stays a name."""
    if checkpoint is None or is_on_the_hub(checkpoint):
        return checkpoint
    return checkpoint.resolve()


def _downloaded(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        with clear_errors(name):
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except OSError as error:
        raise type(error)(f"there is no file or folder {name} here, and {error}") from error


def _from_folder(folder: Path, name: str) -> nn.Module:
    config = _read_json(folder / "config.json")
    if config is None:
        raise FileNotFoundError(
            f"{name} has no config.json: expected a folder that transformers' save_pretrained "
            f"wrote; {see('sam2.md')}"
        )
    kinds = {kind: each for each in all_families() for kind in each.model_types}
    family = kinds.get(config.get("model_type", ""))
    if family is None:
        what = (config.get("architectures") or ["model"])[0]
        raise ValueError(
            f"{name} holds a {what} (model_type {config.get('model_type')!r}): expected a Segment "
            f"Anything model that is asked by points, of model_type {', '.join(kinds)}; the "
            "encoder of another model can be adapted in Python, by adapterkit.inject; "
            + see("sam2.md")
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{name} has no weights in safetensors, and other files can run code when they are "
            "read; save them with save_pretrained(..., safe_serialization=True)"
        )
    model, lacking = family.load(folder)
    if lacking:
        raise ValueError(
            f"{name} is no whole checkpoint: it lacks {len(lacking)} of the model's tensors, "
            f"{lacking[0]} for one"
        )
    _keep_normalisation(model, folder)
    return model.eval()


def _keep_normalisation(model: nn.Module, folder: Path) -> None:
    """Beside the model, but not in its state dict, what its image processor normalises by."""
    found = _read_json(folder / "preprocessor_config.json") or {}
    found = found or (_read_json(folder / "processor_config.json") or {}).get("image_processor", {})
    for name, key in (("pixel_mean", "image_mean"), ("pixel_std", "image_std")):
        if key in found:
            values = 255 * torch.tensor(found[key], dtype=torch.float32)
            model.register_buffer(name, values.view(3, 1, 1), persistent=False)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None
