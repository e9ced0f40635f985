"""The view of an encoder of which it is said what its modules are called.

What else a view holds (widths, grids, layouts, stages) is seen when an image goes through a copy of
the encoder that has no data.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from adapterkit.encoders.calls import BATCH, calls_with_an_image
from adapterkit.encoders.tokens import Form, TokenLayout
from adapterkit.encoders.views import (
    Block,
    Changes,
    Geometry,
    PositionEmbedding,
    Projection,
    Resizer,
    Site,
    Stage,
    ViT,
    projections,
)
from adapterkit.encoders.wrappers import CONTAINER, plain_names, unwrapped
from adapterkit.system.pages import see

_HEADS = ("num_heads", "heads", "num_attention_heads")


@dataclass(frozen=True)
class BlockNames:
    """What the modules of a kind of block are called, by their paths in the block.

    Attributes:
        blocks: a regular expression that matches the paths of these blocks in the encoder, whole.
        attn_in: gives what the attention reads; the attention itself, where no module does; None:
            there is no such site.
        attn_out: the attention, or whatever gives its output.
        mlp: the MLP.
        layers: what projects queries, keys and values: of "qkv", or "q", "k" and "v", or "q" and
            "kv", or "qk" and "v", to the path of an `nn.Linear`, whose rows they share equally. A
            path that a block lacks, or that is another layer there, projects nothing.
        rows_of_heads: of the attention, for each of q, k and v the (first, last + 1) of its rows
            among those of a head, where a layer of "qkv" has a head's side by side.
        maps: how tensors of four dimensions lie; those of three are rows.
        in_order: whether a row's tokens are the grid's rows, one after another.
        windowed: whether such a block attends within windows, or a function of the block; None:
            where its attention is given more than one window of an image.
        items: for each site whose module gives a tuple, which item the tokens are; 0 where a site
            is not named.
        of: one that matches their classes' names, where blocks of several lie side by side.
    """

    blocks: str
    attn_in: str | None = "norm1"
    attn_out: str | None = "attn"
    mlp: str | None = "mlp"
    layers: Mapping[str, str] = field(default_factory=lambda: {"qkv": "attn.qkv"})
    rows_of_heads: Callable[[Any], Mapping[str, tuple[int, int]]] | None = None
    maps: Form = "grid"
    in_order: bool = True
    windowed: bool | Callable[[Any], bool] | None = None
    items: Mapping[str, int] = field(default_factory=dict)
    of: str = ".*"

    def fits(self, path: str, block: nn.Module) -> bool:
        """Whether what is at a path of an encoder is a block of this kind."""
        names_class = re.fullmatch(self.of, type(block).__name__)
        return names_class is not None and re.fullmatch(self.blocks, path) is not None


@dataclass(frozen=True)
class Description:
    """What the modules of a family of encoders are called, by their paths in the encoder.

    Attributes:
        family: its name.
        patch_embed: reads the image.
        blocks: the kinds of blocks that it has.
        tokens: gives the embedded patches; None: `patch_embed`.
        maps: how these lie where they have four dimensions.
        pos_embed: the parameter that is the absolute position embedding, whose rows before those of
            the grid are for prefix tokens.
        prefix_tokens: how many tokens stand before those of patches, or what tells of an encoder.
        reads_patches: as `ViT.reads_patches`, or what tells of an encoder.
        resizer: as `ViT.resizer`; None: its size cannot be changed.
    """

    family: str
    patch_embed: str
    blocks: tuple[BlockNames, ...]
    tokens: str | None = None
    maps: Form = "channels_first"
    pos_embed: str | None = None
    prefix_tokens: int | Callable[[Any], int] = 0
    reads_patches: bool | Callable[[Any], bool] = True
    resizer: Callable[[Any, Changes, Geometry], None] | None = None

    def view(self, encoder: nn.Module, image_size: int) -> ViT:
        """The view of an encoder that is as described.

        Args:
            encoder: it takes a batch of images as its one argument that has no default.
            image_size: side of the square input, in pixels.

        Raises:
            ValueError: it lacks what is described, does not take such images, or its tokens are of
                no square grid.
        """
        return _Seen(self, encoder, image_size).view()


def any_size(encoder: Any, changes: Changes, to: Geometry) -> None:
    """As `Description.resizer`: nothing in the encoder is made for a size of images."""


class _Seen:
    """An encoder while its view is taken."""

    def __init__(self, description: Description, encoder: nn.Module, image_size: int):
        self.description = description
        self.encoder = encoder
        self.image_size = image_size
        self.patch_embed = self._module(description.patch_embed)
        self.tokens = self._module(description.tokens or description.patch_embed)
        layers = [m for m in self.patch_embed.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        convolutions = [each for each in layers if isinstance(each, nn.Conv2d)]
        if not layers:
            raise ValueError(
                f"{description.patch_embed} of this {description.family} encoder has neither an "
                "nn.Conv2d nor an nn.Linear; expected the module that embeds patches"
            )
        self.projection = (convolutions or layers)[-1]
        self.channels = convolutions[0].in_channels if convolutions else 3
        prefix = description.prefix_tokens
        self.prefix_tokens = prefix(encoder) if callable(prefix) else prefix
        self.named = self._blocks()
        weight = self.projection.weight
        try:
            self.calls = calls_with_an_image(encoder, weight, image_size, self.channels)
        except Exception as error:
            raise ValueError(
                f"this {description.family} encoder does not take an image of "
                f"{image_size}x{image_size} pixels: {error}"
            ) from error

    def view(self) -> ViT:
        description, encoder = self.description, self.encoder
        stages = self._stages()
        tokens = self._embedded()
        reads = description.reads_patches
        last = stages[-1].blocks[-1].sites["block_out"]
        return ViT(
            family=description.family,
            model=encoder,
            encoder=encoder,
            components={"image_encoder": encoder, **self._components()},
            patch_embed=self.patch_embed,
            patch_projection=self.projection,
            tokens=tokens,
            pos_embed=self._positions(),
            stages=stages,
            output=last,
            image_size=self.image_size,
            patch_size=self.image_size // tokens.grid[0],
            resizer=self._resizer(),
            drops_patches=_drops_patches(encoder),
            reads_patches=reads(encoder) if callable(reads) else reads,
        )

    def _embedded(self) -> Site:
        """The site of the embedded patches, among which prefix tokens may be already."""
        call = self.calls.get(self.tokens)
        shape = call.gave[0] if call else None
        among = shape is not None and len(shape) == 3 and math.isqrt(shape[1]) ** 2 != shape[1]
        prefix = self.prefix_tokens if among else 0
        as_named = BlockNames("", maps=self.description.maps)
        return self._site("tokens", self.tokens, as_named, prefix=prefix)

    def _module(self, path: str) -> nn.Module:
        try:
            return unwrapped(self.encoder.get_submodule(path))
        except AttributeError:
            raise ValueError(
                f"this {self.description.family} encoder has no module {path!r}; it has "
                f"{', '.join(name for name, _ in self.encoder.named_children())}"
            ) from None

    def _blocks(self) -> list[tuple[BlockNames, nn.Module]]:
        plain = plain_names(self.encoder)
        found: list[tuple[BlockNames, nn.Module]] = []
        for path, module in self.encoder.named_modules():
            for names in self.description.blocks:
                if unwrapped(module) is module and names.fits(plain(path), module):
                    found.append((names, module))
                    break
        if not found:
            patterns = ", ".join(names.blocks for names in self.description.blocks)
            raise ValueError(
                f"no module of this {self.description.family} encoder has a path that {patterns} "
                f"matches; the paths begin {', '.join(n for n, _ in self.encoder.named_children())}"
            )
        for names in self.description.blocks:
            own = [block for kind, block in found if kind is names]
            for at in ("attn_in", "attn_out", "mlp"):
                path = getattr(names, at)
                if own and path and not any(_within(block, path) for block in own):
                    raise ValueError(
                        f"{at}={path!r}: no block that {names.blocks} matches has such a module; "
                        f"they have {', '.join(name for name, _ in own[0].named_children())}"
                    )
        return found

    def _stages(self) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        for index, (names, module) in enumerate(self.named):
            block = self._block(index, names, module)
            out = block.sites["block_out"]
            if stages and (stages[-1].width, stages[-1].grid) == (out.width, out.grid):
                before = stages.pop()
                stages.append(Stage((*before.blocks, block), out.width, out.grid))
            else:
                stages.append(Stage((block,), out.width, out.grid))
        return tuple(stages)

    def _block(self, index: int, names: BlockNames, block: nn.Module) -> Block:
        out = self._site("block_out", block, names)
        sites: dict[str, Site] = {}
        attention = _within(block, names.attn_out)
        for at in ("attn_in", "attn_out", "mlp"):
            path = getattr(names, at)
            module = _within(block, path)
            if module is None or module not in self.calls:
                continue
            kind = "parallel" if at == "mlp" else "output"
            kind = "input" if at == "attn_in" and path == names.attn_out else kind
            sites[at] = self._site(at, module, names, kind, out.grid)
        call = self.calls.get(attention) if attention else None
        given = (call.given or call.gave[0]) if call else None
        windowed = names.windowed
        if windowed is None:
            several = names.maps == "windows" and given is not None and given[1] > 1
            windowed = given is None or given[0] != BATCH or several
        return Block(
            index=index,
            module=block,
            sites={**sites, "block_out": out},
            projections=_projections(block, attention, names),
            num_heads=next((getattr(attention, n) for n in _HEADS if hasattr(attention, n)), 1),
            attends_globally=not (windowed(block) if callable(windowed) else windowed),
            rel_pos=(),
        )

    def _site(
        self,
        at: str,
        module: nn.Module,
        names: BlockNames,
        kind: Literal["output", "parallel", "input"] = "output",
        grid: tuple[int, int] | None = None,
        prefix: int | None = None,
    ) -> Site:
        """The site of a name at a module, on a grid where its tokens do not tell theirs."""
        family, call = self.description.family, self.calls.get(module)
        if call is None:
            raise ValueError(
                f"{at}: the forward of this {family} encoder never calls a {type(module).__name__}"
            )
        item = names.items.get(at, 0) if call.a_tuple else None
        shape = call.gave[item or 0] if kind == "output" else call.given
        if shape is None or len(shape) not in (3, 4):
            raise ValueError(
                f"{at}: a {type(module).__name__} of this {family} encoder has tokens of shape "
                f"{shape}; expected three dimensions, or four, of its output and, by position, its "
                "first argument"
            )
        prefix = self.prefix_tokens if prefix is None else prefix
        width, own_grid, layout = _layout(shape, names.maps, prefix, names.in_order)
        own_grid = grid or own_grid if layout.form == "windows" else own_grid
        if own_grid is None or own_grid[0] != own_grid[1]:
            raise ValueError(
                f"{at} of this {family} encoder has tokens of shape {shape} for images of "
                f"{self.image_size} pixels a side, which as {layout.form!r} are of no square grid; "
                "say how they lie"
            )
        return Site((module,), width, own_grid, layout, kind, item)

    def _positions(self) -> PositionEmbedding | None:
        path = self.description.pos_embed
        if path is None:
            return None
        parent, _, name = path.rpartition(".")
        owner = self._module(parent) if parent else self.encoder
        table = owner._parameters.get(name)
        if table is None:
            return None
        width = table.shape[-1]
        if table.ndim == 4:
            first = table.shape[2] == table.shape[3] != table.shape[1]
            sides = table.shape[2:] if first else table.shape[1:3]
            layout = TokenLayout("channels_first" if first else "grid")
            width, grid = table.shape[1] if first else width, (int(sides[0]), int(sides[1]))
        else:
            number = table.shape[-2]
            side = math.isqrt(number)
            layout, grid = TokenLayout("row", number - side**2), (side, side)
        return PositionEmbedding(owner, name, width, grid, layout)

    def _components(self) -> dict[str, nn.Module]:
        """What stands in the encoder beside its patches and blocks: a neck, norms, heads."""
        parts = {self.patch_embed, self.tokens, *(block for _, block in self.named)}
        return {
            name: unwrapped(child)
            for name, child in self.encoder.named_children()
            if name != CONTAINER
            and parts.isdisjoint(child.modules())
            and next(child.parameters(), None) is not None
        }

    def _resizer(self) -> Resizer:
        description, encoder = self.description, self.encoder

        def resize(changes: Changes, to: Geometry) -> None:
            if description.resizer is None:
                raise ValueError(
                    f"Resize: the windows or positions of this {description.family} encoder are "
                    f"made for images of {self.image_size} pixels; build the encoder at the size "
                    "that you want, and leave Resize out; "
                    + see("encoders.md", "which-family-takes-which-part")
                )
            description.resizer(encoder, changes, to)

        return resize


def _within(block: nn.Module, path: str | None) -> nn.Module | None:
    if path is None:
        return None
    try:
        return unwrapped(block.get_submodule(path))
    except AttributeError:
        return None


def _projections(block: nn.Module, attention: Any, names: BlockNames) -> dict[str, Projection]:
    if names.rows_of_heads is None:
        return projections(**{key: _within(block, path) for key, path in names.layers.items()})
    layer = _within(block, names.layers["qkv"])
    if not isinstance(layer, nn.Linear):
        return {}
    heads = next(getattr(attention, name) for name in _HEADS if hasattr(attention, name))
    rows = names.rows_of_heads(attention)
    return {target: Projection(layer, each, heads) for target, each in rows.items()}


def _layout(
    shape: tuple[int, ...], maps: Form, prefix_tokens: int, in_order: bool
) -> tuple[int, tuple[int, int] | None, TokenLayout]:
    """Width, grid and layout of tokens of a shape; no grid where the tokens do not tell."""
    if len(shape) == 4 and maps == "channels_first":
        return shape[1], (shape[2], shape[3]), TokenLayout("channels_first")
    width, number = shape[-1], math.prod(shape[:-1]) // BATCH
    if len(shape) == 4 and maps == "grid" and shape[0] == BATCH:
        return width, (shape[1], shape[2]), TokenLayout("grid")
    side = math.isqrt(number - prefix_tokens)
    grid = (side, side) if side**2 == number - prefix_tokens else None
    if shape[0] != BATCH or maps == "windows" or grid is None or not in_order:
        return width, grid, TokenLayout("windows")
    return width, grid, TokenLayout("row", prefix_tokens)


def _drops_patches(encoder: Any) -> bool:
    rate = getattr(getattr(encoder, "patch_drop", None), "prob", 0)
    return max(rate, getattr(encoder, "patch_drop_rate", 0)) > 0
