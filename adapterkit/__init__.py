"""Composable adapters for pretrained vision transformers."""

from adapterkit import methods, parts
from adapterkit.adapter_file import (
    AdapterFileError,
    AdapterHeader,
    inspect_adapter,
    load_adapter,
    save_adapter,
)
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

__all__ = [
    "AdapterFileError",
    "AdapterHeader",
    "SamConfig",
    "Segmenter",
    "Summary",
    "activate",
    "adapters",
    "build_sam",
    "disabled",
    "eject",
    "fast",
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
    "remove",
    "save_adapter",
    "stock",
    "summary",
    "view",
]
