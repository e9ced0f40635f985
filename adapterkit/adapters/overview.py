"""What an adapter adds to a model, as numbers and as a table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from adapterkit.adapters.fingerprint import replaced_tensors
from adapterkit.adapters.injection import CONTAINER, adapters_of, deactivated, trained_tensors
from adapterkit.attach.attachment import Adapter, AttachedPart
from adapterkit.encoders.views import ViT


@dataclass(frozen=True)
class PartSummary:
    """One part of an adapter.

    Attributes:
        adapter: the adapter's name.
        part: the part, with the values that are not its defaults.
        site: its field `at`; "" for a part that has none, as it changes weights or several places.
        blocks: in which blocks; empty for a part that no block has.
        parameters: trained parameters that it adds.
        bytes: of all that the adapter file holds of it.
    """

    adapter: str
    part: str
    site: str
    blocks: tuple[int, ...]
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Summary:
    """The parts of all adapters on a model; printed, a table.

    Attributes:
        parts: in order.
        active: names of the adapters that take part in the forward pass.
        base_parameters: of the model without adapters.
        notes: sentences on what is trained and not saved, or frozen and perhaps not meant to be.
    """

    parts: tuple[PartSummary, ...]
    active: tuple[str, ...]
    base_parameters: int
    notes: tuple[str, ...] = ()

    @property
    def trained_parameters(self) -> int:
        """Of all adapters."""
        return sum(part.parameters for part in self.parts)

    @property
    def bytes(self) -> int:
        """Of what they train, as it is saved."""
        return sum(part.bytes for part in self.parts)

    def table(self) -> Table:
        """The summary as a rich table."""
        total = self.trained_parameters + self.base_parameters
        table = Table(
            caption="\n".join(
                (
                    f"{self.trained_parameters:,} trained of {total:,} parameters "
                    f"({self.trained_parameters / total:.1%}), {_readable(self.bytes)}",
                    *self.notes,
                )
            ),
            show_lines=False,
        )
        for heading in ("adapter", "part", "site", "blocks"):
            table.add_column(heading, overflow="fold")
        for heading in ("trained", "size"):
            table.add_column(heading, justify="right", overflow="fold")
        for part in self.parts:
            table.add_row(
                part.adapter + ("" if part.adapter in self.active else " (inactive)"),
                part.part,
                part.site,
                ", ".join(map(str, part.blocks)),
                f"{part.parameters:,}" if part.parameters else "",
                _readable(part.bytes) if part.bytes else "",
            )
        return table

    def __str__(self) -> str:
        console = Console(width=120, color_system=None)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get().rstrip()


def summary(model: nn.Module) -> Summary:
    """The parts on `model`, with their sites, blocks, trained parameters and bytes.

    Args:
        model: one that `view` knows, with adapters or without.

    Returns:
        What prints as a table; of a model without adapters, without parts.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
    """
    found = adapters_of(model)
    with deactivated(model) as base:
        notes = tuple(_notes(base, dict(found.items()))) if found else ()
    return Summary(
        parts=tuple(
            _part_summary(name, adapter, each)
            for name, adapter in (found.items() if found else ())
            for each in adapter.attached
        ),
        active=found.active if found else (),
        base_parameters=sum(
            parameter.numel()
            for key, parameter in model.named_parameters()
            if CONTAINER not in key.split(".")
        ),
        notes=notes,
    )


def _notes(base: ViT, adapters: Mapping[str, Adapter]) -> Iterator[str]:
    outside = trained_tensors(base)
    if outside:
        names, how = ", ".join(list(outside)[:3]), next(iter(outside.values()))
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        yield (
            f"{names}{more}: trained, and not part of an adapter, so save_adapter refuses it; "
            + (f"{how} would save it" if how else "freeze it")
        )
    head = base.components.get("head")
    replaced = {name for each in adapters.values() for name in replaced_tensors(base, each)}
    is_frozen = head is not None and not any(each.requires_grad for each in head.parameters())
    if head is not None and is_frozen and not any(".head." in name for name in replaced):
        count = sum(each.numel() for each in head.parameters())
        yield f'head ({count:,} parameters) is frozen; if it is new, Train("head") trains it'


def _part_summary(name: str, adapter: Adapter, attached: AttachedPart) -> PartSummary:
    part: Any = attached.part
    modules = [adapter.added.get_submodule(path) for path in attached.paths]
    saved = [each for module in modules for each in module.state_dict().values()]
    trained = set(adapter.trained.values())
    parameters = [each for module in modules for each in module.parameters() if each in trained]
    return PartSummary(
        adapter=name,
        part=_short(part),
        site=getattr(part, "at", ""),
        blocks=attached.blocks,
        parameters=sum(each.numel() for each in parameters),
        bytes=sum(each.numel() * each.element_size() for each in saved),
    )


def _short(part: Any) -> str:
    changed = [
        f"{each.name}={getattr(part, each.name)!r}"
        for each in fields(part)
        if each.name != "at" and getattr(part, each.name) != each.default
    ]
    return f"{type(part).__name__}({', '.join(changed)})"


def _readable(size: int) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000  # pyright: ignore[reportAssignmentType]
    return f"{size:.3g} GB"
