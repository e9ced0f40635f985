"""The registry of methods: what each is called, attaches, trained with and reads.

@register_method("shallow", title="Adapters in the first blocks")
def shallow(view, blocks=4):
    return [FeatureAdapter(at="mlp", blocks=range(blocks))]

ak.inject(model, "shallow", blocks=2)
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT

MakeParts = Callable[..., list[Part]]
"""The parts for a view, which comes first, or None for a Sam that has a place for all of them; and
for the method's options, each with a default."""

Mapped = tuple[list[Part], dict[str, str]]
"""A method's parts and, for each published key that it trains, the adapter's key."""

ReadCheckpoint = Callable[[ViT, Mapping[str, Tensor]], Mapped]
"""What a published checkpoint, its keys named as within a `Sam`, holds of a method for a view.
It raises KeyError where a tensor is missing."""

Function = TypeVar("Function", bound=MakeParts)


@dataclass(frozen=True)
class Schedule:
    """How a method is trained by those who published it.

    Attributes:
        learning_rate: the highest.
        batch_size: images per step.
        optimizer: "sgd" has a momentum of 0.9.
        weight_decay: decoupled from the gradient in "adamw" alone.
        schedule: of the learning rate after the warm-up; "polynomial" is (1 - t)^0.9.
        warmup_steps: steps over which the learning rate rises from 0.
    """

    learning_rate: float
    batch_size: int
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    weight_decay: float = 0
    schedule: Literal["constant", "cosine", "polynomial"] = "constant"
    warmup_steps: int = 0


@dataclass(frozen=True)
class Method:
    """A list of parts under a name.

    Attributes:
        name: by which `inject` and command lines know it.
        title: in tables and figures.
        make_parts: its parts for a view.
        schedule: the published one; None where there is none.
        read_checkpoint: how published checkpoints map onto its parts; None where there are none.
    """

    name: str
    title: str
    make_parts: MakeParts
    schedule: Schedule | None = None
    read_checkpoint: ReadCheckpoint | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options."""
        return tuple(inspect.signature(self.make_parts).parameters)[1:]

    def parts(self, view: ViT | None = None, **options: Any) -> list[Part]:
        """Its parts for an encoder.

        Args:
            view: of the encoder; None for a `Sam`, which has a place for all of them.
            **options: the method's own.

        Raises:
            ValueError: it has no such option, or the encoder lacks what the method is about.
        """
        unknown = [option for option in options if option not in self.options]
        if unknown:
            raise ValueError(
                f"method {self.name!r} has no option {unknown[0]!r}; it has "
                f"{', '.join(self.options) or 'none'}"
            )
        return self.make_parts(view, **options)


_METHODS: dict[str, Method] = {}


def register_method(
    name: str,
    *,
    title: str | None = None,
    schedule: Schedule | None = None,
    read_checkpoint: ReadCheckpoint | None = None,
) -> Callable[[Function], Function]:
    """Decorates the function that makes a method's parts; from then on its name stands for it.

    Args:
        name: letters, digits and underscores, not taken by another method.
        title: in tables and figures; None: the name.
        schedule: the published one.
        read_checkpoint: how published checkpoints map onto its parts.

    Returns:
        What takes the function, and gives it back as it is.

    Raises:
        ValueError: the name is taken by another module's method, or is no identifier.
    """
    if not name.isidentifier():
        raise ValueError(f"method name {name!r}: expected letters, digits and underscores")

    def register(make_parts: Function) -> Function:
        there = _METHODS.get(name)
        if there is not None and there.make_parts.__module__ != make_parts.__module__:
            raise ValueError(
                f"a method named {name!r} is defined in {there.make_parts.__module__}; give "
                "yours another name"
            )
        _METHODS[name] = Method(name, title or name, make_parts, schedule, read_checkpoint)
        return make_parts

    return register


def method_names() -> tuple[str, ...]:
    """The names of all methods, in the order in which they were registered."""
    return tuple(_METHODS)


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in _METHODS:
        raise ValueError(f"method {name!r}: expected one of {', '.join(_METHODS)}")
    return _METHODS[name]


def parts_of(name: str, view: ViT | None = None, **options: Any) -> list[Part]:
    """`find_method(name).parts(view, **options)`: a list to vary, and to give to `inject`."""
    return find_method(name).parts(view, **options)
