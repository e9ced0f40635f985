"""The registry of methods: what each is called, attaches, trained with and reads.

@register_method("shallow", title="Adapters in the first blocks")
def shallow(view, blocks=4):
    return [FeatureAdapter(at="mlp", blocks=range(blocks))]

ak.inject(model, "shallow", blocks=2)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import Tensor

from adapterkit.attach.attachment import Part
from adapterkit.encoders.views import ViT
from adapterkit.methods.option_types import check_types
from adapterkit.system.pages import see

MakeParts = Callable[..., list[Part]]
"""The parts for a view, which comes first, or None for a Sam that has a place for all of them; and
for the method's options, each with a default."""

Mapped = tuple[list[Part], dict[str, str]]
"""A method's parts and, for each published key that it trains, the adapter's key."""

ReadCheckpoint = Callable[..., Mapped]
"""What a published checkpoint, its keys named as within a `Sam`, holds of a method: of a view, the
checkpoint's tensors by key, and options, each with a default, for what it does not tell. It raises
KeyError where a tensor is missing."""

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
        return _options(self.make_parts, 1)

    @property
    def image_size(self) -> int | None:
        """Side of its input in pixels, by default and for a base of 1024; None: the base's own."""
        option = inspect.signature(self.make_parts).parameters.get("image_size")
        return None if option is None else option.default

    def parts(self, view: ViT | None = None, **options: Any) -> list[Part]:
        """Its parts for an encoder.

        Args:
            view: of the encoder; None for a `Sam`, which has a place for all of them.
            **options: the method's own.

        Raises:
            ValueError: it has no such option, or one of another type, or the encoder lacks what
                the method is about.
        """
        _check_options(f"method {self.name!r}", options, self.options)
        check_types(f"method {self.name!r}", options, self.make_parts)
        return self.make_parts(view, **options)

    def read(self, view: ViT, tensors: Mapping[str, Tensor], **options: Any) -> Mapped:
        """Its parts as a published checkpoint has them, and where its tensors go.

        Args:
            view: of the base that the checkpoint was trained from.
            tensors: the checkpoint's, named as within a `Sam`.
            **options: what the checkpoint does not tell.

        Raises:
            KeyError: it lacks a tensor.
            ValueError: no checkpoints of this method are published, reading them takes no such
                option, or it holds what adapterkit does not read.
        """
        if self.read_checkpoint is None:
            published = [each.name for each in _METHODS.values() if each.read_checkpoint]
            raise ValueError(
                f"no checkpoints of method {self.name!r} are published; expected one of "
                f"{', '.join(published)}"
            )
        known = _options(self.read_checkpoint, 2)
        _check_options(f"a checkpoint of {self.name!r}", options, known)
        return self.read_checkpoint(view, tensors, **options)


def _options(function: Callable[..., Any], first: int) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)[first:]


def _check_options(whose: str, options: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(
            f"{whose} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
        )


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
        ValueError: the name is taken by another module's method, or is no identifier; or the
            function does not take a view first and options with defaults after it.
    """
    if not name.isidentifier():
        raise ValueError(f"method name {name!r}: expected letters, digits and underscores")

    def register(make_parts: Function) -> Function:
        _check_signature(name, make_parts)
        there = _METHODS.get(name)
        if there is not None and there.make_parts.__module__ != make_parts.__module__:
            raise ValueError(
                f"a method named {name!r} is defined in {there.make_parts.__module__}; give "
                "yours another name"
            )
        _METHODS[name] = Method(name, title or name, make_parts, schedule, read_checkpoint)
        return make_parts

    return register


def _check_signature(name: str, make_parts: MakeParts) -> None:
    first, *options = inspect.signature(make_parts).parameters.values() or (None,)
    plain = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    takes_view = first is not None and first.default in (None, first.empty)
    if not takes_view or any(e.default is e.empty or e.kind not in plain for e in options):
        raise ValueError(
            f"method {name!r}: expected a function that takes the view of an encoder first, or "
            "None, and then options, each with a default, (view=None, rank=4) say; it takes "
            f"{inspect.signature(make_parts)}; {see('tutorials/extending.md', 'a-method')}"
        )


def method_names() -> tuple[str, ...]:
    """The names of all methods, in the order in which they were registered."""
    return tuple(_METHODS)


def find_method(name: str) -> Method:
    """The method of a name.

    Raises:
        ValueError: there is none; the message lists those that there are.
    """
    if name not in _METHODS:
        raise ValueError(
            f"method {name!r}: expected one of {', '.join(_METHODS)}, or one of your own, once its "
            "file is loaded (adapterkit --plugin FILE.py COMMAND, or ak.methods.load_plugin); "
            + see("tutorials/extending.md", "load-the-plugin")
        )
    return _METHODS[name]


def parts_of(name: str, view: ViT | None = None, **options: Any) -> list[Part]:
    """`find_method(name).parts(view, **options)`: a list to vary, and to give to `inject`."""
    return find_method(name).parts(view, **options)
