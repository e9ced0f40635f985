"""Composable adapters for pretrained vision transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapterkit import methods, parts
from adapterkit.adapter_file import (
    AdapterFileError,
    AdapterHeader,
    inspect_adapter,
    load_adapter,
    save_adapter,
)
from adapterkit.export import export
from adapterkit.fast import fast, stock
from adapterkit.inject import (
    activate,
    adapters,
    disabled,
    eject,
    inject,
    inject_medsam,
    inject_msa,
    inject_samed,
    inject_samus,
    remove,
)
from adapterkit.merge import merge
from adapterkit.published import load_published
from adapterkit.sam import SamConfig, build_sam, load_sam, mini_sam
from adapterkit.segmenter import Segmenter
from adapterkit.summary import Summary, summary
from adapterkit.vit import view

if TYPE_CHECKING:
    from adapterkit.data.images import ImageFile, find_images, read_image
    from adapterkit.data.masks import write_masks
    from adapterkit.predictor import Prediction, Predictor

# Imported when asked for: they read files, with libraries that the core does without.
_WITH_FILES = {
    "ImageFile": "adapterkit.data.images",
    "Prediction": "adapterkit.predictor",
    "Predictor": "adapterkit.predictor",
    "find_images": "adapterkit.data.images",
    "read_image": "adapterkit.data.images",
    "write_masks": "adapterkit.data.masks",
}


def __getattr__(name: str) -> Any:
    if name in _WITH_FILES:
        return getattr(import_module(_WITH_FILES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AdapterFileError",
    "AdapterHeader",
    "ImageFile",
    "Prediction",
    "Predictor",
    "SamConfig",
    "Segmenter",
    "Summary",
    "activate",
    "adapters",
    "build_sam",
    "disabled",
    "eject",
    "export",
    "fast",
    "find_images",
    "inject",
    "inject_medsam",
    "inject_msa",
    "inject_samed",
    "inject_samus",
    "inspect_adapter",
    "load_adapter",
    "load_published",
    "load_sam",
    "merge",
    "methods",
    "mini_sam",
    "parts",
    "read_image",
    "remove",
    "save_adapter",
    "stock",
    "summary",
    "view",
    "write_masks",
]
