"""Where the sites of a vision transformer are, for each family of encoders.

A site is a named place of any ViT to which a part can be attached:

    image       the patch embedding's input, (B, 3, H, W)
    tokens      the patch embedding's output, before positions are added
    pos_embed   the absolute position embedding, a parameter
    attn_in     in each block, the tokens that its attention reads, before any window partition
    qkv         in each block, parallel to the query-key-value projection
    attn_out    in each block, the attention's output
    mlp         in each block, parallel to the MLP (its input is the tokens after norm2)
    block_out   in each block, its output
    output      the last block's output, before the neck or the final norm

Parts know these names and never a family. A family registers itself with `family` beside its code,
in the file of its library.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Blocks = Literal["all", "global", "windowed"] | Collection[int] | Callable[["Block"], bool]
BlockSite = Literal["attn_in", "qkv", "attn_out", "mlp", "block_out"]

BLOCK_SITES: tuple[str, ...] = ("attn_in", "qkv", "attn_out", "mlp", "block_out")
ENCODER_SITES: tuple[str, ...] = ("tokens", "output")
PARALLEL_SITES: frozenset[str] = frozenset({"qkv", "mlp"})
"""Sites where a part sees the input of the module that it is added to, rather than its output."""


@dataclass(frozen=True)
class TokenLayout:
    """How tokens lie in a tensor: as a grid, (B, H, W, C), or in a row, (B, P + H * W, C).

    Attributes:
        in_a_row: row by row, after the prefix tokens, rather than as a grid.
        num_prefix_tokens: P, class, distillation and register tokens; 0 for a grid.
    """

    in_a_row: bool = False
    num_prefix_tokens: int = 0

    def grid(self, tokens: Float[Tensor, "b *n c"]) -> Float[Tensor, "b h w c"]:
        """The patch tokens, of a square grid, as a grid."""
        if not self.in_a_row:
            return tokens
        side = math.isqrt(tokens.shape[1] - self.num_prefix_tokens)
        return tokens[:, self.num_prefix_tokens :].unflatten(1, (side, side))

    def with_grid(
        self, tokens: Float[Tensor, "b *n c"], grid: Float[Tensor, "b h w c"]
    ) -> Float[Tensor, "b *m c"]:
        """`tokens` with other patch tokens, of any number, and the prefix tokens that it has."""
        if not self.in_a_row:
            return grid
        return torch.cat((tokens[:, : self.num_prefix_tokens], grid.flatten(1, 2)), dim=1)

    def of_grid(self, grid: Float[Tensor, "b h w c"]) -> Float[Tensor, "b *m c"]:
        """Patch tokens in this layout, with zeros for the prefix tokens."""
        if not self.in_a_row:
            return grid
        return F.pad(grid.flatten(1, 2), (0, 0, self.num_prefix_tokens, 0))


@dataclass(frozen=True)
class OnGrid:
    """An overlay that applies another to the grid of a position embedding, and not to its prefix.

    Args:
        layout: of the position embedding.
        transform: of a grid, (1, H, W, C) to (1, h, w, C).
    """

    layout: TokenLayout
    transform: Callable[[Tensor], Tensor]

    def __call__(self, pos_embed: Float[Tensor, "1 *n c"]) -> Float[Tensor, "1 *m c"]:
        return self.layout.with_grid(pos_embed, self.transform(self.layout.grid(pos_embed)))


@dataclass(frozen=True)
class Geometry:
    """What a resized encoder takes: square images, and how they become tokens.

    Attributes:
        image_size: side of the input, in pixels.
        patch_stride: pixels between patches.
        grid: rows and columns of tokens.
    """

    image_size: int
    patch_stride: int
    grid: tuple[int, int]


class Changes(Protocol):
    """Where a family says what it changes about an encoder, reversibly: an `Attachment`."""

    def set(self, owner: nn.Module, name: str, value: Any) -> None: ...

    def overlay(
        self,
        module: nn.Module,
        name: str,
        transform: Callable[[Tensor], Tensor],
        last: bool = False,
    ) -> None: ...


Resizer = Callable[[Changes, Geometry], None]


class InputOf(nn.Module):
    """What some modules are given, as a site where no module has it as its output.

    A forward hook on it runs before each of the modules, sees the module's first argument as it
    would see an output, and replaces it.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.readers = modules

    def register_forward_hook(self, hook: Callable[..., Any], **options: Any) -> Any:
        before = _BeforeModule(hook)
        return _Handles([each.register_forward_pre_hook(before) for each in self.readers])


@dataclass(frozen=True)
class _BeforeModule:
    hook: Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.hook(module, args, args[0]), *args[1:]


@dataclass
class _Handles:
    handles: list[RemovableHandle]

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block.

    Attributes:
        index: its position in the encoder, from 0.
        module: the block itself.
        sites: the module whose output each site of the block names, or an `InputOf`; a block may
            lack some. Where queries, keys and values are projected apart, "q", "k" and "v" stand
            for "qkv". The forward of "qkv" may be bypassed (EVA02, BEiT), its weight is always
            read.
        num_heads: attention heads.
        attends_globally: whether it attends over all tokens rather than within windows.
        rel_pos: (module, parameter name) of its relative-position tables, each (2 * size - 1, d).
    """

    index: int
    module: nn.Module
    sites: Mapping[str, nn.Module]
    num_heads: int
    attends_globally: bool
    rel_pos: tuple[tuple[nn.Module, str], ...]


@dataclass(frozen=True, eq=False)
class ViT:
    """A view of an encoder: its sites and its geometry, under names that all families share.

    Attributes:
        family: the family's name, as an adapter file records it.
        model: what the view was taken of, an encoder or a model around one.
        encoder: the vision transformer.
        components: the model's named modules that a `Train` part can name.
        patch_embed: its output is the `tokens` site.
        patch_projection: the last convolution inside `patch_embed`; in most encoders the only one.
        pos_embed: (module, parameter name) of the absolute position embedding, or None.
        blocks: in order.
        width: channels of a token.
        image_size: side of the square input image, in pixels.
        patch_size: pixels of the image from one token to the next.
        grid: rows and columns of tokens, equal.
        resizer: changes what the family itself has to know of another geometry: its attributes and
            its rotary or relative positions, but not `pos_embed` and the stride.
        layout: of the tokens between blocks.
        pos_embed_layout: of the position embedding.
        drops_patches: whether it leaves out patch tokens at random in training.
    """

    family: str
    model: nn.Module
    encoder: nn.Module
    components: Mapping[str, nn.Module]
    patch_embed: nn.Module
    patch_projection: nn.Conv2d
    pos_embed: tuple[nn.Module, str] | None
    blocks: tuple[Block, ...]
    width: int
    image_size: int
    patch_size: int
    grid: tuple[int, int]
    resizer: Resizer
    layout: TokenLayout = TokenLayout()
    pos_embed_layout: TokenLayout = TokenLayout()
    drops_patches: bool = False

    def select(self, blocks: Blocks) -> tuple[Block, ...]:
        """The blocks that `blocks` names, in order.

        "all": all of them. "windowed": those that attend within windows. "global": those that
        attend globally, or, where all do, four of them evenly spaced up to the last (2, 5, 8 and
        11 of 12), as many as SAM has.

        Raises:
            ValueError: `blocks` is not a selection, names a block that is not there, or selects
                none.
        """
        chosen = tuple(self._matching(blocks))
        if not chosen:
            raise ValueError(
                f"blocks={blocks!r} selects none of this encoder's {len(self.blocks)} blocks "
                f"(global attention in {[b.index for b in self.blocks if b.attends_globally]})"
            )
        return chosen

    def _matching(self, blocks: Blocks) -> Iterator[Block]:
        if callable(blocks):
            return (block for block in self.blocks if blocks(block))
        if isinstance(blocks, str):
            if blocks not in ("all", "global", "windowed"):
                raise ValueError(
                    f"blocks={blocks!r}: expected 'all', 'global', 'windowed', block indices, "
                    "or a callable of a Block"
                )
            wanted = {"all": (True, False), "global": (True,), "windowed": (False,)}[blocks]
            if blocks == "global" and all(block.attends_globally for block in self.blocks):
                depth = len(self.blocks)
                number = min(4, depth)
                return (self.blocks[(i + 1) * depth // number - 1] for i in range(number))
            return (block for block in self.blocks if block.attends_globally in wanted)
        absent = [index for index in blocks if index not in range(len(self.blocks))]
        if absent:
            raise ValueError(
                f"blocks={tuple(blocks)} names {absent}, but this encoder has blocks 0 to "
                f"{len(self.blocks) - 1}"
            )
        return (block for block in self.blocks if block.index in blocks)

    def site(self, at: str, block: Block | None = None) -> nn.Module:
        """The module whose output is site `at` (of `block`, for a site that blocks have).

        Raises:
            ValueError: there is no such site here.
        """
        encoder_sites = {"tokens": self.patch_embed, "output": self.blocks[-1].module}
        sites = encoder_sites if block is None else block.sites
        if at not in sites:
            where = "" if block is None else f" in block {block.index}"
            raise ValueError(
                f"this {self.family} encoder has no site {at!r}{where}; there is {', '.join(sites)}"
            )
        return sites[at]


Family = Callable[[nn.Module], ViT | None]
"""The view of a model of its kind, or None of another."""

_FAMILIES: list[Family] = []


def family(view_of: Family) -> Family:
    """Decorates a function that gives the view of a model of one family, and None of others."""
    _FAMILIES.append(view_of)
    return view_of


def position_embedding(encoder: nn.Module) -> tuple[nn.Module, str] | None:
    """(module, parameter name) of the encoder's `pos_embed`, or None where it has none."""
    return None if encoder._parameters.get("pos_embed") is None else (encoder, "pos_embed")


def view(model: nn.Module) -> ViT:
    """The view of `model`.

    Args:
        model: a `segment_anything` `Sam` or its image encoder; a timm `VisionTransformer`,
            `VisionTransformerSAM`, `Eva` or `Beit`; a transformers `SamModel`, `SamVisionModel` or
            its encoder.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
        ValueError: it is, but its input is not square, or its patch embedding is none that
            adapterkit knows.
    """
    for view_of in _FAMILIES:
        found = view_of(model)
        if found is not None:
            return found
    raise TypeError(
        f"adapterkit does not know where the blocks of a {type(model).__module__}."
        f"{type(model).__qualname__} are; expected a Sam of segment_anything or transformers or "
        "its image encoder, or a VisionTransformer, VisionTransformerSAM, Eva or Beit of timm"
    )
