"""The command `adapterkit methods`."""

import tempfile
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.table import Table

import adapterkit as ak
from adapterkit.system.command_line import console


def methods(checkpoint: Path | None = None, image_size: int | None = None) -> None:
    """List the methods, and what each trains and stores on a given base.

    Example: adapterkit methods --checkpoint sam_vit_b_01ec64.pth

    Args:
        checkpoint: of a Segment Anything model: a file, a folder, or a name on the Hugging Face
            Hub. By default the sizes of its ViT-B.
        image_size: side of the square input, in pixels. By default each method's own.
    """
    sam = ak.build_sam() if checkpoint is None else ak.load(checkpoint)
    total = sum(each.numel() for each in sam.parameters())
    table = Table(box=MARKDOWN)
    table.add_column("method", overflow="fold")
    for heading in ("trained parameters", "of the base's", "adapter file"):
        table.add_column(heading, justify="right", overflow="fold")
    options: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    for name in ak.methods.method_names():
        trained = ak.summary(ak.inject(sam, name, **options)).trained_parameters
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "adapter.safetensors"
            ak.save_adapter(sam, file)
            size = file.stat().st_size
        ak.eject(sam)
        table.add_row(name, f"{trained:,}", f"{trained / total:.1%}", f"{size / 1e6:.1f} MB")
    console.print(table, highlight=False)
