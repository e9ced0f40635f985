"""What parts do to a model: reversible actions, and the hooks that they put on its modules."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterkit.attach.overlay import Override, Transform, count_hooks, overlays, set_overlay


class Action(Protocol):
    def apply(self) -> None: ...
    def undo(self) -> None: ...


@dataclass
class ForwardHook:
    """`hook(module, args, output)` after a module's forward; its result replaces the output."""

    module: nn.Module
    hook: Callable[[nn.Module, Any, Any], Any]
    handle: RemovableHandle | None = None

    def apply(self) -> None:
        if self.handle is None:
            self.handle = self.module.register_forward_hook(self.hook)
        else:
            # Under its former number, by which a compiled forward knows it.
            self.module._forward_hooks[self.handle.id] = self.hook
        count_hooks(self.module, 1)

    def undo(self) -> None:
        assert self.handle is not None
        self.handle.remove()
        count_hooks(self.module, -1)


@dataclass
class ForwardPreHook:
    """`hook(module, args)` before a module's forward; its result replaces the arguments."""

    module: nn.Module
    hook: Callable[[nn.Module, Any], Any]
    handle: RemovableHandle | None = None

    def apply(self) -> None:
        if self.handle is None:
            self.handle = self.module.register_forward_pre_hook(self.hook)
        else:
            self.module._forward_pre_hooks[self.handle.id] = self.hook
        count_hooks(self.module, 1)

    def undo(self) -> None:
        assert self.handle is not None
        self.handle.remove()
        count_hooks(self.module, -1)


@dataclass
class Forward:
    """`module` computes `layer.forward` instead of its own forward."""

    module: nn.Module
    layer: nn.Module
    original: Callable[..., Any] | None = None
    """The forward that the module had of its own, rather than of its class."""

    def apply(self) -> None:
        self.original = vars(self.module).get("forward")
        self.module.forward = self.layer.forward

    def undo(self) -> None:
        self.original = _restore_forward(self.module, self.original)


@dataclass
class KeepStatistics:
    """A batch norm of the base computes, in training too, what it computes in evaluation.

    Else training would change its running statistics, which no adapter saves and no eject restores.
    """

    module: nn.Module
    original: Callable[..., Any] | None = None
    """The forward that the module had of its own, rather than of its class."""

    def apply(self) -> None:
        self.original = vars(self.module).get("forward")
        self.module.forward = _InEvaluation(self.module, self.original).forward

    def undo(self) -> None:
        self.original = _restore_forward(self.module, self.original)


def _restore_forward(module: nn.Module, original: Callable[..., Any] | None) -> None:
    del module.forward
    if original is not None:
        module.forward = original


@dataclass(frozen=True, eq=False)
class _InEvaluation:
    module: nn.Module
    original: Callable[..., Any] | None

    def forward(self, *args: Any, **options: Any) -> Any:
        module, was_training = self.module, self.module.training
        module.training = False
        try:
            if self.original is not None:
                return self.original(*args, **options)
            return type(module).forward(module, *args, **options)
        finally:
            module.training = was_training


@dataclass
class Overlay:
    """`module` reads its parameter `name` through `transform`, after the overlays it has.

    A trained copy stands for the parameter itself, so it comes before them.
    """

    module: nn.Module
    name: str
    transform: Transform

    def apply(self) -> None:
        below = overlays(self.module).get(self.name, ())
        replaces = isinstance(self.transform, Override)
        transforms = (self.transform, *below) if replaces else (*below, self.transform)
        set_overlay(self.module, self.name, transforms)

    def undo(self) -> None:
        below = overlays(self.module).get(self.name, ())
        kept = tuple(each for each in below if each is not self.transform)
        set_overlay(self.module, self.name, kept)


@dataclass
class Attribute:
    """`owner.name` is `value`. A tensor follows the device and dtype of the one it replaces."""

    owner: nn.Module
    name: str
    value: Any
    original: Any = None

    def apply(self) -> None:
        self.original = getattr(self.owner, self.name)
        self._set(self.value)

    def undo(self) -> None:
        self._set(self.original)
        self.original = None

    def _set(self, value: Any) -> None:
        if isinstance(value, Tensor):
            value = value.to(getattr(self.owner, self.name))
        setattr(self.owner, self.name, value)


@dataclass
class StandIn:
    """`owner` calls another child of this name, which lives among the adapter's modules.

    The owner's own child stays in its state dict, and is not called.
    """

    owner: nn.Module
    name: str
    module: nn.Module
    original: nn.Module | None = None
    """The stand-in of another adapter."""

    def apply(self) -> None:
        self.original = vars(self.owner).get(self.name)
        # An attribute proper, which Python finds before a module's children.
        vars(self.owner)[self.name] = self.module

    def undo(self) -> None:
        del vars(self.owner)[self.name]
        if self.original is not None:
            vars(self.owner)[self.name] = self.original

    @property
    def replaced(self) -> nn.Module:
        """The owner's own."""
        found = self.owner._modules[self.name]
        assert found is not None
        return found


def clash(actions: Sequence[Action]) -> str | None:
    """Why these actions cannot be applied together, or None if they can."""
    return (
        set_twice(actions)
        or overlaid_below_a_layer(actions)
        or sized_differently(actions)
        or attached_to_what_is_replaced(actions)
    )


def set_twice(actions: Iterable[Action]) -> str | None:
    """What two of these actions set, or None: only the later would count."""
    settings: Counter[tuple[nn.Module, str]] = Counter()
    for action in actions:
        if isinstance(action, Attribute):
            settings[action.owner, action.name] += 1
        elif isinstance(action, Forward):
            settings[action.module, "forward"] += 1
        elif isinstance(action, StandIn):
            settings[action.owner, action.name] += 1
        elif isinstance(action, Overlay) and isinstance(action.transform, Override):
            settings[action.module, action.name] += 1
    for (owner, name), count in settings.items():
        if count > 1:
            return f"{count} of them set the {type(owner).__name__}'s {name}"
    return None


def sized_differently(actions: Iterable[Action]) -> str | None:
    """What sizes of images these actions ask for, or None if it is one at most."""
    sizes = {
        action.hook.image_size
        for action in actions
        if isinstance(action, ForwardPreHook) and isinstance(action.hook, CheckImageSize)
    }
    if len(sizes) < 2:
        return None
    return f"they are made for images of {' and of '.join(map(str, sorted(sizes)))} pixels a side"


def overlaid_below_a_layer(actions: Sequence[Action]) -> str | None:
    """Which module has both another forward and an overlay, or None.

    Some of peft's layers read the weight without its gradient, so that the overlay would not train.
    """
    replaced = {action.module for action in actions if isinstance(action, Forward)}
    for action in actions:
        if isinstance(action, Overlay) and action.module in replaced:
            return (
                f"one adapts a {type(action.module).__name__} with peft, and another (LoRA, Train) "
                f"changes its {action.name}"
            )
    return None


def attached_to_what_is_replaced(actions: Sequence[Action]) -> str | None:
    """Which module has something attached that would do nothing, since another stands in for it."""
    stand_ins = [each for each in actions if isinstance(each, StandIn)]
    replaced = {module: each for each in stand_ins for module in each.replaced.modules()}
    for action in actions:
        if isinstance(action, ForwardHook | ForwardPreHook | Forward | Overlay):
            found = replaced.get(action.module)
            if found is not None:
                return (
                    f"one puts others in the place of the {type(found.owner).__name__}'s "
                    f"{found.name}, to which another attaches"
                )
    return None


@dataclass(frozen=True)
class ChannelsLast:
    """A branch of tokens with channels last, for maps with channels first."""

    branch: Callable[[Tensor], Tensor]

    def __call__(self, maps: Tensor) -> Tensor:
        return self.branch(maps.movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True)
class AddToOutput:
    """A forward hook that adds `scale * branch(x)` to a module's output.

    Args:
        branch: the added computation, shape-preserving.
        scale: its factor.
        parallel: x is the module's input rather than its output.
        item: of the tuple that is the output, what is added to; None: to the output itself.
    """

    branch: Callable[[Tensor], Tensor]
    scale: float
    parallel: bool
    item: int | None = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> Any:
        tokens = output if self.item is None else output[self.item]
        added = self.branch(args[0] if self.parallel else tokens)
        result = torch.add(tokens, added, alpha=self.scale)
        if self.item is None:
            return result
        return (*output[: self.item], result, *output[self.item + 1 :])


@dataclass(frozen=True)
class AddToInput:
    """A forward pre-hook that adds `scale * branch(x)` to x, a module's first argument.

    Args:
        branch: the added computation, shape-preserving.
        scale: its factor.
    """

    branch: Callable[[Tensor], Tensor]
    scale: float

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = args
        return torch.add(x, self.branch(x), alpha=self.scale), *others


@dataclass(frozen=True)
class CheckImageSize:
    """A forward pre-hook that refuses images of another size than an adapter is made for."""

    image_size: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        height, width = args[0].shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"the image is {height}x{width} pixels, but this encoder was adapted to "
                f"{self.image_size}x{self.image_size}; resize the image first"
            )
