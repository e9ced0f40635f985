"""The command `adapterkit methods`."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.progress import track
from rich.table import Table

import adapterkit as ak
from adapterkit.system.command_line import console

HEADINGS = {
    "LoRA": "LoRA",
    "feature adapters at": "FeatureAdapter",
    "CNN branch": "CNNBranch",
    "attention over time": "TemporalAttention",
    "convolution over time": "TemporalConv",
    "positions": "PositionAdapter",
    "relative positions": "Train rel_pos",
    "another size": "Resize",
    "heads, norms": "Train",
    "peft": "peft",
}
"""The columns of the table of families, and what was tried for each."""


def methods(
    checkpoint: Path | None = None, image_size: int | None = None, families: bool = False
) -> None:
    """List the methods, and what each trains and stores on a given base.

    Example: adapterkit methods --checkpoint sam_vit_b_01ec64.pth

    Args:
        checkpoint: of a Segment Anything model: a file, a folder, or a name on the Hugging Face
            Hub. By default the sizes of its ViT-B.
        image_size: side of the square input, in pixels. By default each method's own.
        families: list the families of encoders instead, and which parts each takes.
    """
    if families:
        print_families()
        return
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


def print_families() -> None:
    """Attach each part to a small encoder of each family, and print a table of what came of it."""
    from adapterkit.adapters.trial import TRIED, refusal
    from adapterkit.encoders.examples import EXAMPLES
    from adapterkit.evaluation.tables import markdown

    notes: list[str] = []
    rows: list[list[str]] = []
    quiet = not console.is_terminal
    for encoder, build in track(
        EXAMPLES.items(), "encoders", console=console, transient=True, disable=quiet
    ):
        try:
            model = build().eval()
        except ImportError:
            rows.append([encoder, "not installed", *[""] * (len(HEADINGS) - 1)])
            continue
        reasons = {name: refusal(model, parts) for name, parts in TRIED.items()}
        rows.append([encoder, *(_cell(reasons, tried, notes) for tried in HEADINGS.values())])
    print(markdown(["encoder", *HEADINGS], rows) + "\n")
    print("\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1)))


def _cell(reasons: Mapping[str, str | None], tried: str, notes: list[str]) -> str:
    """ "yes", the number of the note that says why not, or the sites of feature adapters."""
    if tried == "FeatureAdapter":
        from adapterkit.adapters.trial import SITES

        sites = [at for at in SITES if reasons[f"FeatureAdapter at {at}"] is None]
        return "all sites" if len(sites) == len(SITES) else ", ".join(sites)
    reason = reasons[tried]
    if reason is None:
        return "yes"
    note = _of_any_family(reason)
    if note not in notes:
        notes.append(note)
    return f"no ({notes.index(note) + 1})"


def _of_any_family(reason: str) -> str:
    """A reason without what is of one encoder alone: its family, its blocks and its sizes."""
    for pattern, instead in (
        (r"this \w+ encoder", "this encoder"),
        (r"\(blocks=[^)]*\)", ""),
        (r"in block \d+", "in a block"),
        (r"block \d+", "a block"),
        (r"images of \d+ pixels", "images of one size"),
    ):
        reason = re.sub(pattern, instead, reason)
    return reason
