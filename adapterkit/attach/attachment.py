"""How parts attach to an encoder: reversible actions on modules that stay what they are.

A part is built against a `ViT` view without touching it: `Attachment` collects the new modules and
the actions (hooks, overlays, attribute values) that will connect them. The finished `Adapter` is
then switched on and off by applying and undoing those actions, which is all that injecting,
ejecting, disabling and switching between adapters amount to.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapterkit.attach.actions import (
    Action,
    AddToInput,
    AddToOutput,
    Attribute,
    ChannelsLast,
    CheckImageSize,
    Forward,
    ForwardHook,
    ForwardPreHook,
    KeepStatistics,
    Overlay,
    StandIn,
    clash,
)
from adapterkit.attach.connected import check_connected
from adapterkit.attach.context import BeginPass, Context, EndPass, TakeImage
from adapterkit.attach.overlay import Override, Transform
from adapterkit.encoders.prompt_decoder import PromptDecoder
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.encoders.views import Block, Blocks, Site, ViT
from adapterkit.encoders.wrappers import CONTAINER


class Part(Protocol):
    """What is attached, at which site and in which blocks: a frozen dataclass of plain values."""

    def attach(self, to: "Attachment") -> None:
        """Add this part's modules and actions to `to`, leaving the encoder untouched.

        Raises:
            ValueError: the encoder lacks what this part needs.
        """


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
        grid: rows and columns of tokens that it embeds the image as.
        requires_image_size: whether images of another size are refused.
        modules: what the parts add.
        paths: where under `modules` the present part added something, in order.
        context: what the parts compute from an image and read in a pass.
        actions: what connects it, in order of application.
        last_actions: its actions that are applied after all parts' others.
        blocks: indices of the blocks that it selected.
        replaced: the base's parameters that parts have others for; there is nothing of them to
            train.
    """

    view: ViT
    image_size: int = field(init=False)
    grid: tuple[int, int] = field(init=False)
    requires_image_size: bool = False
    modules: Namespace = field(default_factory=Namespace)
    paths: list[str] = field(default_factory=list)
    context: Context = field(default_factory=Context)
    actions: list[Action] = field(default_factory=list)
    last_actions: list[Action] = field(default_factory=list)
    blocks: set[int] = field(default_factory=set)
    replaced: set[nn.Parameter] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.image_size = self.view.image_size
        self.grid = self.view.grid

    def site(self, at: str, block: Block | None = None) -> Site:
        """A site as a part sees it: on the grid that a `Resize` asks for, its channels last.

        Raises:
            ValueError: there is no such site here.
        """
        site = self.view.site(at, block)
        layout = site.layout
        if layout.form == "channels_first":
            layout = TokenLayout("grid")
        return replace(site, grid=self._resized(site.grid), layout=layout)

    def decoder(self, part: str) -> PromptDecoder:
        """The sites of the prompt encoder and the mask decoder, for a part of this name.

        Raises:
            ValueError: there are none.
        """
        decoder = self.view.decoder
        if decoder is None:
            raise ValueError(
                f"{part} attaches to a prompt encoder and a mask decoder, which this "
                f"{self.view.family} model lacks; expected a Segment Anything model as a whole"
            )
        return replace(decoder, grid=self._resized(decoder.grid))

    def _resized(self, grid: tuple[int, int]) -> tuple[int, int]:
        """A grid of the view as the parts so far make it."""
        rows, columns = (
            there * asked // first
            for there, asked, first in zip(grid, self.grid, self.view.grid, strict=True)
        )
        return rows, columns

    def select(
        self, blocks: Blocks, fits: Callable[[Block], bool] | None = None
    ) -> tuple[Block, ...]:
        """The blocks that a part's selection names, in order; a summary shows them.

        Args:
            blocks: the selection.
            fits: whether a block has what the part needs. A word means those blocks that have it,
                where any has: encoders may start with convolutions, and attend later.

        Raises:
            ValueError: as `ViT.select`.
        """
        chosen = self.view.select(blocks)
        if isinstance(blocks, str) and fits is not None:
            chosen = tuple(filter(fits, chosen)) or chosen
        self.blocks |= {block.index for block in chosen}
        return chosen

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
        """Add `scale * branch(x)` at a site, x being the tokens there, channels last."""
        site = self.view.site(at, block)
        first = site.layout.form == "channels_first"
        tokens_last = ChannelsLast(branch) if first else branch
        for module in site.modules:
            if site.kind == "input":
                self.before(module, AddToInput(tokens_last, scale))
            else:
                parallel = site.kind == "parallel"
                self.after(module, AddToOutput(tokens_last, scale, parallel, site.item))

    def require_image_size(self) -> None:
        """Refuse images of another size than the parts so far ask for, at each pass."""
        check = CheckImageSize(self.image_size)
        if not any(
            isinstance(each, ForwardPreHook) and each.hook == check for each in self.actions
        ):
            self.before(self.view.patch_embed, check)

    def before(self, module: nn.Module, hook: Callable[[nn.Module, Any], Any]) -> None:
        """Run `hook(module, args)` before `module`; what it returns replaces the arguments.

        The arguments lie as the module takes them: channels first, say, in an encoder that has
        them so.
        """
        self.actions.append(ForwardPreHook(module, hook))

    def after(self, module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> None:
        """Run `hook(module, args, output)` after `module`; its result replaces the output.

        Arguments and output lie as the module has them, as with `before`.
        """
        self.actions.append(ForwardHook(module, hook))

    def replace_forward(self, module: nn.Module, layer: nn.Module) -> None:
        """Let `module` compute `layer.forward` instead of its own forward."""
        self.actions.append(Forward(module, layer))

    def overlay(
        self, module: nn.Module, name: str, transform: Transform, last: bool = False
    ) -> None:
        """Let `module` read its parameter `name` through `transform`.

        With `last`, the transform is applied after those of the parts that follow too.

        Raises:
            ValueError: it has no such parameter of its own, but computes it from others.
        """
        if module._parameters.get(name) is None:
            raise ValueError(
                f"the {name} of a {type(module).__name__} is no parameter, but computed (by "
                "weight_norm or another parametrisation); remove that first, or leave the part out"
            )
        actions = self.last_actions if last else self.actions
        actions.append(Overlay(module, name, transform))

    def replace_parameters(self, path: str, module: nn.Module, initial: nn.Module) -> None:
        """Let `module` compute with trained parameters of its own, each of whatever shape.

        Args:
            path: where they are added, below it under their names.
            module: of the base.
            initial: has their first values, under the same names.
        """
        for name, value in initial.named_parameters(recurse=False):
            trained = Override(value)
            self.add(f"{path}.{name}", trained)
            self.overlay(module, name, trained)
        self.replaced |= {*module.parameters(recurse=False)}

    def stand_in(self, owner: nn.Module, name: str, module: nn.Module) -> None:
        """Let `owner` call a module that was added in the place of its child `name`."""
        action = StandIn(owner, name, module)
        self.actions.append(action)
        self.replaced |= {*action.replaced.parameters()}

    def set(self, owner: nn.Module, name: str, value: Any) -> None:
        """Give `owner` another value of its attribute or buffer `name`."""
        self.actions.append(Attribute(owner, name, value))


@dataclass
class AttachedPart:
    """A part and what came of it.

    Attributes:
        part: a callable selection of blocks is replaced by the indices that it selected.
        paths: of the modules that it added.
        actions: what connects them.
        last_actions: those applied after all parts' others.
        blocks: indices of the blocks that it selected.
    """

    part: Part
    paths: list[str]
    actions: list[Action]
    last_actions: list[Action]
    blocks: tuple[int, ...]


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
            known = {*view.model.parameters(), *view.encoder.parameters(), *to.modules.parameters()}
            calls = [] if to.context.is_used else to.paths
            check_connected(type(part).__name__, calls, [*to.actions, *to.last_actions], known)
            blocks = tuple(sorted(to.blocks))
            self.attached.append(AttachedPart(part, to.paths, to.actions, to.last_actions, blocks))
            to.paths, to.actions, to.last_actions, to.blocks = [], [], [], set()
        self.added = to.modules
        self.image_size = to.image_size
        self.context = to.context
        self._resting: set[str] = set()
        self._pass_actions: list[Action] = [*_kept_statistics(view)]
        if to.context.is_used:
            # After the parts' own hooks, which may check or change the image.
            take = ForwardPreHook(view.encoder, TakeImage(to.context))
            self._pass_actions += [
                *([take] if to.context.computes_at_the_end else []),
                ForwardPreHook(view.patch_embed, BeginPass(to.context)),
                ForwardHook(view.encoder, EndPass(to.context, view.embedding_of)),
            ]
        found = clash(self.actions)
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

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that require gradients while the adapter is active, by name."""
        return {
            name: each
            for name, each in self.named_parameters()
            if each.requires_grad or name in self._resting
        }

    def activate(self) -> None:
        """Apply every action, or none if one fails; its parameters require gradients again."""
        done: list[Action] = []
        try:
            for action in self.actions:
                action.apply()
                done.append(action)
        except Exception:
            for action in reversed(done):
                action.undo()
            raise
        for each in self.trained.values():
            each.requires_grad_(True)
        self._resting.clear()

    def deactivate(self) -> None:
        """Undo every action, last first.

        Its parameters do not require gradients then: in DistributedDataParallel, those that do and
        get none are an error.
        """
        for action in reversed(self.actions):
            action.undo()
        trained = self.trained
        self._resting = set(trained)
        for each in trained.values():
            each.requires_grad_(False)


def _kept_statistics(view: ViT) -> Iterator[KeepStatistics]:
    """For each batch norm of the base."""
    for path, module in view.model.named_modules():
        if isinstance(module, _BatchNorm) and CONTAINER not in path.split("."):
            yield KeepStatistics(module)


def _with_block_indices(part: Any, view: ViT) -> Part:
    blocks = getattr(part, "blocks", None)
    if not callable(blocks):
        return part
    return replace(part, blocks=tuple(block.index for block in view.select(blocks)))  # pyright: ignore[reportArgumentType]
