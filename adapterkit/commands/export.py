"""The command `adapterkit export`."""

from pathlib import Path
from typing import Literal

import adapterkit as ak
from adapterkit.system.command_line import console


def export(
    out: Path,
    checkpoint: Path | None = None,
    adapter: Path | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    int8: bool = False,
) -> None:
    """Write a model with its adapter as files that run without adapterkit.

    OUT gets the encoder, the decoder of prompts, and export.json, which says what they take. An
    existing folder is not written to unless it is empty.

    Example: adapterkit export --checkpoint sam_vit_b_01ec64.pth --adapter echo.safetensors \
--out echo_onnx

    Args:
        out: a new folder.
        checkpoint: of a Segment Anything model: a file, a folder, or a name on the Hugging Face
            Hub. By default adapterkit's own small one.
        adapter: an adapter file for it. By default the model is exported as it is.
        format: ONNX, for onnxruntime; or what PyTorch's torch.export.load reads.
        int8: with ONNX, weights of linear layers in eight bits, for CPUs.
    """
    sam = ak.mini_sam() if checkpoint is None else ak.load(checkpoint)
    classes: tuple[str, ...] = ()
    if adapter is not None:
        ak.load_adapter(sam, adapter)
        classes = ak.inspect_adapter(adapter).classes
    ak.export(sam, out, format, int8, classes)
    for file in sorted(out.iterdir()):
        console.print(f"{file}: {file.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
