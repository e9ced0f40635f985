"""The command `adapterkit merge`."""

from pathlib import Path

import adapterkit as ak
from adapterkit.system.command_line import check_free, console


def merge(checkpoint: Path, adapter: Path, out: Path, force: bool = False) -> None:
    """Fold an adapter's LoRA, peft and trained copies into its base.

    What remains of the adapter, if anything, is written beside OUT as OUT.adapter.safetensors.

    Example: adapterkit merge --checkpoint sam_vit_b_01ec64.pth --adapter samed.safetensors \
--out merged.safetensors

    Args:
        checkpoint: the base that the adapter was trained on: a file, a folder, or a name on the
            Hugging Face Hub.
        adapter: the adapter file.
        out: the merged base: a safetensors file, or, of a model of transformers, a folder.
        force: replace OUT if it exists.
    """
    from adapterkit.promptable.families import family_of

    check_free(out, force)
    header = ak.inspect_adapter(adapter)
    sam = ak.merge(ak.load_adapter(ak.load(checkpoint), adapter))
    rest = ak.adapters_of(sam)
    if rest is not None:
        beside = out.with_name(f"{out.stem}.adapter.safetensors")
        check_free(beside, force)
        ak.save_adapter(sam, beside, classes=header.classes, training=header.training)
        console.print(f"what cannot be merged is in {beside}", soft_wrap=True)
        ak.eject(sam)
    family = family_of(sam)
    assert family is not None
    family.save(out)
    console.print(f"the merged base is in {out}", soft_wrap=True)
