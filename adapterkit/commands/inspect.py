"""The command `adapterkit inspect`."""

import math
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table
from tyro.conf import Positional

import adapterkit as ak
from adapterkit.system.command_line import console


def inspect(file: Positional[Path]) -> None:
    """Show what an adapter file holds, without its base.

    Example: adapterkit inspect echo.safetensors

    Args:
        file: what `save_adapter` or a recipe wrote.
    """
    from safetensors import safe_open

    header = ak.inspect_adapter(file)
    with safe_open(file, framework="pt") as tensors:
        counts = [math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()]  # noqa: SIM118
    table = Table(title=str(file), show_header=False, title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
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


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
