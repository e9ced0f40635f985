"""Composable adapters for pretrained vision transformers."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adapterkit import methods, parts
from adapterkit.adapters.file import (
    AdapterFileError,
    AdapterHeader,
    inspect_adapter,
    load_adapter,
    save_adapter,
)
from adapterkit.adapters.injection import (
    activate,
    adapters_of,
    disabled,
    eject,
    inject,
    inject_medsam,
    inject_msa,
    inject_samed,
    inject_samus,
    remove,
)
from adapterkit.adapters.merging import merge
from adapterkit.adapters.overview import Summary, summary
from adapterkit.adapters.published import load_published
from adapterkit.encoders.views import view
from adapterkit.inference.exporting import export
from adapterkit.kernels.fast_forward import fast, stock
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.promptable.stock_sam import SamConfig, build_sam, load_sam, mini_sam

if TYPE_CHECKING:
    from adapterkit.data.files.image_file import ImageFile
    from adapterkit.data.files.images import find_images, read_image
    from adapterkit.data.files.masks import write_masks
    from adapterkit.inference.predictor import Prediction, Predictor

# Imported when asked for: they read files, with libraries that the core does without.
_WITH_FILES = {
    "ImageFile": "adapterkit.data.files.images",
    "Prediction": "adapterkit.inference.predictor",
    "Predictor": "adapterkit.inference.predictor",
    "find_images": "adapterkit.data.files.images",
    "read_image": "adapterkit.data.files.images",
    "write_masks": "adapterkit.data.files.masks",
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
    "adapters_of",
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
