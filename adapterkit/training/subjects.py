"""What an experiment trains: a model, and how what was trained of it is kept in a file."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import RenderableType
from torch import nn

from adapterkit.adapters.file import load_adapter, save_adapter
from adapterkit.adapters.injection import adapters_of, disabled, eject, inject
from adapterkit.adapters.overview import summary
from adapterkit.attach.attachment import Part
from adapterkit.kernels.fast_forward import fast_if_known
from adapterkit.promptable.loading import load
from adapterkit.promptable.protocol import Promptable
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.promptable.stock_sam import mini_sam


class Subject(Protocol):
    """A model that an experiment trains and measures."""

    @property
    def title(self) -> str:
        """In tables and figures."""
        ...

    @property
    def base(self) -> str:
        """What it starts from, for tables."""
        ...

    @property
    def file(self) -> str:
        """The name of the file of what was trained."""
        ...

    def build(self) -> Promptable:
        """The model, with what is to be trained requiring gradients."""
        ...

    def save(
        self, model: Promptable, path: Path, structures: Sequence[str], notes: Mapping[str, Any]
    ) -> None:
        """Write what was trained, with the structures' names and what else is to be known."""
        ...

    def load(self, model: Promptable, path: Path) -> None:
        """Bring back what `save` wrote."""
        ...

    def untrained(self) -> AbstractContextManager[Any]:
        """Within it, the model is what it was before anything was done to it."""
        ...

    def describe(self, model: Promptable) -> RenderableType:
        """What of it is trained, for people."""
        ...


@dataclass(frozen=True)
class Base:
    """The model that is adapted.

    Attributes:
        sam: it.
        name: for tables.
        epochs: that it takes by default.
        learning_rate: by default.
    """

    sam: nn.Module
    name: str
    epochs: int
    learning_rate: float

    @classmethod
    def of(cls, checkpoint: Path | None) -> "Base":
        """What `load` gives, trained as in the paper; None for the small one that comes with
        adapterkit.

        Raises:
            OSError, ValueError: as `load`.
        """
        if checkpoint is not None:
            name = checkpoint.name if checkpoint.exists() else checkpoint.as_posix()
            return cls(load(checkpoint), name, 50, 1e-4)
        return cls(mini_sam(), "adapterkit's small SAM (no --checkpoint given)", 12, 1e-3)


@dataclass(frozen=True)
class Adapted:
    """A Sam with parts, of which the file holds what they train.

    Attributes:
        sam: the base; it is changed.
        base: its name.
        title: of the method.
        parts: of the method; none: the base as it comes, of which nothing is trained.
        segmenter: makes the promptable model of it.
    """

    sam: nn.Module
    base: str
    title: str
    parts: Sequence[Part]
    segmenter: Callable[[Any], Promptable] = Segmenter
    file: str = field(default="adapter.safetensors", init=False)

    def build(self) -> Promptable:
        """The segmenter, computed by the exact faster forward.

        Raises:
            ValueError: the parts do not fit the base.
        """
        sam = fast_if_known(self.sam)
        return self.segmenter(inject(sam, self.parts) if self.parts else sam.requires_grad_(False))

    def untrained(self) -> AbstractContextManager[nn.Module]:
        """Within it, the model is the base as it comes, at its own input size."""
        return disabled(self.sam)

    def describe(self, model: Promptable) -> RenderableType:
        """The table of its parts."""
        return summary(self.sam).table()

    def save(
        self, model: Promptable, path: Path, structures: Sequence[str], notes: Mapping[str, Any]
    ) -> None:
        """Write an adapter file."""
        save_adapter(model.model, path, classes=list(structures), training=dict(notes))

    def load(self, model: Promptable, path: Path) -> None:
        """The adapter as it was saved, on the base that it came from."""
        sam = model.model
        load_adapter(eject(sam) if adapters_of(sam) else sam, path)


def trained_numbers(model: torch.nn.Module) -> int:
    """How many numbers training changes."""
    return sum(each.numel() for each in model.parameters() if each.requires_grad)
