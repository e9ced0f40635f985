"""The command `adapterkit convert`."""

from pathlib import Path
from typing import Any

import adapterkit as ak
from adapterkit.system.command_line import check_free, console


def convert(
    checkpoint: Path,
    published: Path,
    method: str,
    out: Path,
    image_size: int | None = None,
    structures: tuple[str, ...] = (),
    load_base: bool = False,
    force: bool = False,
) -> None:
    """Make an adapter file of a published implementation's checkpoint.

    Example: adapterkit convert --checkpoint sam_vit_b_01ec64.pth --published SAMUS.pth \
--method samus --out samus.safetensors

    Args:
        checkpoint: the Segment Anything model that it was trained from.
        published: the published checkpoint.
        method: whose it is, by its name in `adapterkit methods`.
        out: the adapter file.
        image_size: side of the square input that it was trained with, in pixels, where its file
            does not tell (SAMed's, 512 by default).
        structures: names of its classes, of samed_auto's in order.
        load_base: take the base's tensors from the published checkpoint too, where it has them;
            the adapter then fits only that base, which is written as OUT's .base.safetensors.
        force: replace OUT if it exists.
    """
    from adapterkit.promptable.stock_sam import save_sam

    beside = out.with_name(f"{out.stem}.base.safetensors")
    for path in (out, beside) if load_base else (out,):
        check_free(path, force)
    options: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    options |= {"structures": structures} if structures else {}
    sam = ak.load_sam(checkpoint)
    ak.load_published(sam, published, method, load_base=load_base, **options)
    ak.save_adapter(sam, out, training={"converted from": published.name, "method": method})
    console.print(f"the adapter is in {out}", soft_wrap=True)
    if load_base:
        save_sam(ak.eject(sam), beside)
        console.print(f"its base is in {beside}", soft_wrap=True)
