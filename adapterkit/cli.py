"""The command `adapterkit`: what is done with adapter files."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from tyro.conf import Positional
from tyro.extras import SubcommandApp

import adapterkit as ak
from adapterkit import methods as published
from adapterkit.command_line import one_line_errors
from adapterkit.commands.export import export
from adapterkit.sam import save_sam

app = SubcommandApp()
console = Console()
app.command(export)


def main() -> None:
    """Run the command line's command."""
    with one_line_errors():
        app.cli(prog="adapterkit", description=__doc__)


@app.command
def inspect(file: Positional[Path]) -> None:
    """Show what an adapter file holds, without its base.

    Example: adapterkit inspect echo.safetensors

    Args:
        file: what `save_adapter` or a recipe wrote.
    """
    header = ak.inspect_adapter(file)
    with safe_open(file, framework="pt") as tensors:
        counts = [math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()]  # noqa: SIM118
    table = Table(title=str(file), show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value")
    size = file.stat().st_size
    table.add_row("size", f"{size / 1e6:.2f} MB, {sum(counts):,} values in {len(counts)} tensors")
    table.add_row("base", f"{header.family}, {len(header.fingerprint)} tensors")
    table.add_row("input", f"{header.image_size}x{header.image_size} pixels")
    if header.mean is not None and header.std is not None:
        table.add_row("normalisation", f"mean {_numbers(header.mean)}, std {_numbers(header.std)}")
    if header.classes:
        table.add_row("structures", ", ".join(header.classes))
    for number, part in enumerate(header.parts):
        table.add_row("parts" if number == 0 else "", str(part))
    for key, value in header.training.items():
        table.add_row(f"training: {key}", str(value))
    console.print(table, highlight=False)


@app.command
def methods(checkpoint: Path | None = None, image_size: int | None = None) -> None:
    """List the methods, and what each trains and stores on a given base.

    Example: adapterkit methods --checkpoint sam_vit_b_01ec64.pth

    Args:
        checkpoint: of a Segment Anything model. By default the sizes of its ViT-B.
        image_size: side of the square input, in pixels. By default each method's own.
    """
    sam = ak.build_sam() if checkpoint is None else ak.load_sam(checkpoint)
    total = sum(each.numel() for each in sam.parameters())
    table = Table(title=f"methods on a base of {total:,} parameters", title_justify="left")
    for heading in ("method", "trained", "of the base", "file"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    options = {} if image_size is None else {"image_size": image_size}
    for name in ("samus", "samed", "msa", "medsam"):
        found = ak.summary(ak.inject(sam, getattr(published, name)(**options)))
        trained = found.trained_parameters
        table.add_row(name, f"{trained:,}", f"{trained / total:.1%}", f"{found.bytes / 1e6:.1f} MB")
        ak.eject(sam)
    console.print(table, highlight=False)


@app.command
def merge(checkpoint: Path, adapter: Path, out: Path, force: bool = False) -> None:
    """Fold an adapter's LoRA, peft and trained copies into its base.

    What remains of the adapter, if anything, is written beside OUT as OUT.adapter.safetensors.

    Example: adapterkit merge --checkpoint sam_vit_b_01ec64.pth --adapter samed.safetensors \
--out merged.safetensors

    Args:
        checkpoint: the base that the adapter was trained on.
        adapter: the adapter file.
        out: the merged base, safetensors.
        force: replace OUT if it exists.
    """
    _check_free(out, force)
    header = ak.inspect_adapter(adapter)
    sam = ak.merge(ak.load_adapter(ak.load_sam(checkpoint), adapter))
    rest = ak.adapters(sam)
    if rest is not None:
        beside = out.with_name(f"{out.stem}.adapter.safetensors")
        _check_free(beside, force)
        ak.save_adapter(sam, beside, classes=header.classes, training=header.training)
        console.print(f"what cannot be merged is in {beside}", soft_wrap=True)
        ak.eject(sam)
    save_sam(sam, out)
    console.print(f"the merged base is in {out}", soft_wrap=True)


@app.command
def convert(
    checkpoint: Path,
    published: Path,
    method: Literal["samus", "samed", "msa", "medsam"],
    out: Path,
    load_base: bool = False,
    force: bool = False,
) -> None:
    """Make an adapter file of a published implementation's checkpoint.

    Example: adapterkit convert --checkpoint sam_vit_b_01ec64.pth --published SAMUS.pth \
--method samus --out samus.safetensors

    Args:
        checkpoint: the Segment Anything model that it was trained from.
        published: the published checkpoint.
        method: whose it is.
        out: the adapter file.
        load_base: take the base's tensors from the published checkpoint too, where it has them;
            the adapter then fits only that base, which is written as OUT's .base.safetensors.
        force: replace OUT if it exists.
    """
    beside = out.with_name(f"{out.stem}.base.safetensors")
    for path in (out, beside) if load_base else (out,):
        _check_free(path, force)
    sam = ak.load_published(ak.load_sam(checkpoint), published, method, load_base=load_base)
    ak.save_adapter(sam, out, training={"converted from": published.name, "method": method})
    console.print(f"the adapter is in {out}", soft_wrap=True)
    if load_base:
        save_sam(ak.eject(sam), beside)
        console.print(f"its base is in {beside}", soft_wrap=True)


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _check_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise FileExistsError(f"{path} exists; give --force to replace it, or another --out")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first")


if __name__ == "__main__":
    main()
