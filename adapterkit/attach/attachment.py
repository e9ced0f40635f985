"""How parts attach to an encoder: reversible actions on modules that stay what they are.

A part is built against a `ViT` view without touching it: `Attachment` collects the new modules and
the actions (hooks, overlays, attribute values) that will connect them. The finished `Adapter` is
then switched on and off by applying and undoing those actions, which is all that injecting,
ejecting, disabling and switching between adapters amount to.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from adapterkit.attach.context import BeginPass, Context, EndPass
from adapterkit.attach.overlay import Override, Transform, overlays, set_overlay
from adapterkit.encoders.views import PARALLEL_SITES, Block, ViT

CONTAINER = "adapterkit"
"""The encoder's attribute, and so the state-dict prefix, under which adapters live."""


class Part(Protocol):
    """What is attached, at which site and in which blocks: a frozen dataclass of plain values."""

    def attach(self, to: "Attachment") -> None:
        """Add this part's modules and actions to `to`, leaving the encoder untouched.

        Raises:
            ValueError: the encoder lacks what this part needs.
        """


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
        self.handle = self.module.register_forward_hook(self.hook)

    def undo(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


@dataclass
class ForwardPreHook:
    """`hook(module, args)` before a module's forward; its result replaces the arguments."""

    module: nn.Module
    hook: Callable[[nn.Module, Any], Any]
    handle: RemovableHandle | None = None

    def apply(self) -> None:
        self.handle = self.module.register_forward_pre_hook(self.hook)

    def undo(self) -> None:
        if self.handle is not None:
            self.handle.remove()
        self.handle = None


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
        del self.module.forward
        if self.original is not None:
            self.module.forward = self.original
        self.original = None


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


def set_twice(actions: Iterable[Action]) -> str | None:
    """What two of these actions set, or None: only the later would count."""
    settings: Counter[tuple[nn.Module, str]] = Counter()
    for action in actions:
        if isinstance(action, Attribute):
            settings[action.owner, action.name] += 1
        elif isinstance(action, Forward):
            settings[action.module, "forward"] += 1
        elif isinstance(action, Overlay) and isinstance(action.transform, Override):
            settings[action.module, action.name] += 1
    for (owner, name), count in settings.items():
        if count > 1:
            return f"{count} of them set the {type(owner).__name__}'s {name}"
    return None


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


class Residual:
    """A forward hook that adds `scale * branch(x)` to a module's output.

    Args:
        branch: the added computation, shape-preserving.
        scale: its factor.
        parallel: x is the module's input rather than its output.
    """

    def __init__(self, branch: Callable[[Tensor], Tensor], scale: float, parallel: bool):
        self.branch = branch
        self.scale = scale
        self.parallel = parallel

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        added = self.branch(args[0] if self.parallel else output)
        return torch.add(output, added, alpha=self.scale)


class Namespace(nn.Module):
    """Modules under names, and nothing else. It holds what parts add, a level per dot in a path."""

    def place(self, path: str, module: nn.Module) -> None:
        """Add `module` at the dotted `path`, with the namespaces on the way.

        Raises:
            ValueError: something is there already.
        """
        *parents, name = path.split(".")
        space = self
        for parent in parents:
            if parent not in space._modules:
                space.add_module(parent, Namespace())
            child = space._modules[parent]
            if not isinstance(child, Namespace):
                raise ValueError(f"two parts add modules under {path!r}; keep one of them")
            space = child
        if name in space._modules:
            raise ValueError(f"two parts add a module {path!r}; keep one of them")
        space.add_module(name, module)


@dataclass
class Attachment:
    """What a list of parts would add to an encoder and change about it.

    Attributes:
        view: the untouched encoder.
        image_size: side of the square input that the patched encoder takes, in pixels.
        grid: rows and columns of its tokens.
        modules: what the parts add.
        paths: where under `modules` the present part added something, in order.
        context: what the parts compute from an image and read in a pass.
        actions: what connects it, in order of application.
        last_actions: its actions that are applied after all parts' others.
    """

    view: ViT
    image_size: int = field(init=False)
    grid: tuple[int, int] = field(init=False)
    modules: Namespace = field(default_factory=Namespace)
    paths: list[str] = field(default_factory=list)
    context: Context = field(default_factory=Context)
    actions: list[Action] = field(default_factory=list)
    last_actions: list[Action] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.image_size = self.view.image_size
        self.grid = self.view.grid

    def add(self, path: str, module: nn.Module) -> None:
        """Add a module to the adapter under a dotted path: the part, then the site, the block."""
        weight = self.view.patch_projection.weight
        device = None if any(each.is_meta for each in module.parameters()) else weight.device
        self.modules.place(path, module.to(device=device, dtype=weight.dtype))
        self.paths.append(path)

    def add_residual(
        self,
        at: str,
        branch: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        block: Block | None = None,
    ) -> None:
        """Add `scale * branch(x)` at a site, x being its output, or its input at parallel sites."""
        hook = Residual(branch, scale, parallel=at in PARALLEL_SITES)
        self.actions.append(ForwardHook(self.view.site(at, block), hook))

    def before(self, module: nn.Module, hook: Callable[[nn.Module, Any], Any]) -> None:
        """Run `hook(module, args)` before `module`; what it returns replaces the arguments."""
        self.actions.append(ForwardPreHook(module, hook))

    def after(self, module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
        """Run `hook(module, args, output)` after `module`; its result replaces the output."""
        self.actions.append(ForwardHook(module, hook))

    def replace_forward(self, module: nn.Module, layer: nn.Module) -> None:
        """Let `module` compute `layer.forward` instead of its own forward."""
        self.actions.append(Forward(module, layer))

    def overlay(
        self, module: nn.Module, name: str, transform: Transform, last: bool = False
    ) -> None:
        """Let `module` read its parameter `name` through `transform`.

        With `last`, the transform is applied after those of the parts that follow too.
        """
        actions = self.last_actions if last else self.actions
        actions.append(Overlay(module, name, transform))

    def set(self, owner: nn.Module, name: str, value: Any) -> None:
        """Give `owner` another value of its attribute or buffer `name`."""
        self.actions.append(Attribute(owner, name, value))


@dataclass
class AttachedPart:
    """A part, the paths of the modules that it added, and its actions, those applied last apart.

    Its callable selection of blocks, if it had one, is replaced by the indices that it selected.
    """

    part: Part
    paths: list[str]
    actions: list[Action]
    last_actions: list[Action]


class Adapter(nn.Module):
    """A list of parts, attached to one encoder; switched on and off as a whole.

    Attributes:
        attached: the parts, in order, and what came of each.
        added: what the parts added; its state dict is what an adapter file holds.
        image_size: side of the square input that the adapted encoder takes, in pixels.
        context: what its parts compute from an image and read in a pass.
    """

    def __init__(self, view: ViT, parts: Sequence[Part]):
        super().__init__()
        to = Attachment(view)
        self.attached: list[AttachedPart] = []
        for part in parts:
            part = _with_block_indices(part, view)
            part.attach(to)
            self.attached.append(AttachedPart(part, to.paths, to.actions, to.last_actions))
            to.paths, to.actions, to.last_actions = [], [], []
        self.added = to.modules
        self.image_size = to.image_size
        self.context = to.context
        self._pass_actions: list[Action] = []
        if to.context.is_used:
            # After the parts' own hooks, which may check or change the image.
            self._pass_actions = [
                ForwardPreHook(view.patch_embed, BeginPass(to.context)),
                ForwardHook(view.encoder, EndPass(to.context)),
            ]
        found = set_twice(self.actions) or overlaid_below_a_layer(self.actions)
        if found:
            raise ValueError(f"these parts cannot be combined: {found}")

    @property
    def parts(self) -> tuple[Part, ...]:
        return tuple(each.part for each in self.attached)

    @property
    def actions(self) -> list[Action]:
        """All actions, in order of application."""
        first = [action for each in self.attached for action in each.actions]
        last = [action for each in self.attached for action in each.last_actions]
        return first + last + self._pass_actions

    def remove(self, attached: AttachedPart) -> None:
        """Forget a part and what it added, while the adapter is not active."""
        self.attached.remove(attached)
        for path in attached.paths:
            parent, _, name = path.rpartition(".")
            delattr(self.added.get_submodule(parent), name)

    def activate(self) -> None:
        """Apply every action, or none if one fails."""
        done: list[Action] = []
        try:
            for action in self.actions:
                action.apply()
                done.append(action)
        except Exception:
            for action in reversed(done):
                action.undo()
            raise

    def deactivate(self) -> None:
        """Undo every action, last first."""
        for action in reversed(self.actions):
            action.undo()


def _with_block_indices(part: Any, view: ViT) -> Part:
    blocks = getattr(part, "blocks", None)
    if not callable(blocks):
        return part
    return replace(part, blocks=tuple(block.index for block in view.select(blocks)))  # pyright: ignore[reportArgumentType]
