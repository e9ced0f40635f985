"""The command `adapterkit methods`."""

import re
import tempfile
from collections.abc import Mapping
from functools import cache
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

SHORT = ("LoRA", "feature adapters at", "CNN branch", "another size")
"""Those of the short one."""


def methods(
    checkpoint: Path | None = None,
    image_size: int | None = None,
    families: bool = False,
    short: bool = False,
) -> None:
    """List the methods, and what each trains and stores on a given base.

    Example: adapterkit methods --checkpoint sam_vit_b_01ec64.pth

    Args:
        checkpoint: of a Segment Anything model: a file, a folder, or a name on the Hugging Face
            Hub. By default the sizes of its ViT-B.
        image_size: side of the square input, in pixels. By default each method's own.
        families: list the families of encoders instead, and which parts each takes.
        short: those that take the same in one line.
    """
    if short:
        print_supported()
        return
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
    refused: dict[str, str] = {}
    for name in ak.methods.method_names():
        try:
            trained = ak.summary(ak.inject(sam, name, **options)).trained_parameters
        except ValueError as error:
            refused[name] = str(error)
            table.add_row(name, "refused", "", "")
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "adapter.safetensors"
            ak.save_adapter(sam, file)
            size = file.stat().st_size
        ak.eject(sam)
        table.add_row(name, f"{trained:,}", f"{trained / total:.1%}", f"{size / 1e6:.1f} MB")
    console.print(table, highlight=False)
    for name, reason in refused.items():
        console.print(f"{name}: {reason}", highlight=False, markup=False)


@cache
def _tried() -> Mapping[str, Mapping[str, str | None] | None]:
    """For each encoder, why each part is refused, or None where it is not; None for an encoder of a
    library that is not installed."""
    from adapterkit.adapters.trial import refusals
    from adapterkit.encoders.examples import EXAMPLES

    found: dict[str, Mapping[str, str | None] | None] = {}
    quiet = not console.is_terminal
    for encoder, build in track(
        EXAMPLES.items(), "encoders", console=console, transient=True, disable=quiet
    ):
        try:
            model = build().eval()
        except ImportError:
            found[encoder] = None
            continue
        found[encoder] = refusals(model)
    return found


def print_families() -> None:
    """Attach each part to a small encoder of each family, and print a table of what came of it."""
    from adapterkit.evaluation.tables import markdown

    notes: list[str] = []
    rows: list[list[str]] = []
    for encoder, reasons in _tried().items():
        if reasons is None:
            rows.append([encoder, "not installed", *[""] * (len(HEADINGS) - 1)])
        else:
            rows.append([encoder, *(_cell(reasons, each, notes) for each in HEADINGS.values())])
    print(markdown(["encoder", *HEADINGS], rows) + "\n")
    print("\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1)))


def print_supported() -> None:
    """Print the same in short: classes of a library that take the same are in one line."""
    from adapterkit.encoders.examples import PROMPTED
    from adapterkit.evaluation.tables import markdown

    alike: dict[tuple[str, ...], list[str]] = {}
    for encoder, reasons in _tried().items():
        if reasons is not None:
            cells = [_cell(reasons, HEADINGS[each], []).partition(" (")[0] for each in SHORT]
            kind = (encoder.split()[0], *cells, "asked" * (encoder in PROMPTED))
            alike.setdefault(kind, []).append(encoder)
    rows = []
    for (library, *cells, _), encoders in alike.items():
        classes = [_class(encoder.partition(" ")[2]) for encoder in encoders]
        around = [_class(PROMPTED[each]) for each in encoders if each in PROMPTED]
        rows.append([library, ", ".join(classes), ", ".join(around), *cells])
    print(markdown(["library", "encoder", "of the promptable model", *SHORT], rows))


def _class(name: str) -> str:
    """`name` as code, without what is in brackets behind it."""
    cls, bracket, which = name.partition(" (")
    return f"`{cls}`{bracket}{which}"


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
