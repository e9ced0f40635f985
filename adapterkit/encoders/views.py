"""Where the sites of a vision transformer are, for each family of encoders.

A site is a named place of any ViT to which a part can be attached:

    image       the patch embedding's input, (B, 3, H, W)
    tokens      the patch embedding's output, before positions are added
    pos_embed   the absolute position embedding, a parameter
    attn_in     in each block, the tokens that its attention reads, before any window partition
    attn_out    in each block, the attention's output
    mlp         in each block, parallel to the MLP (its input is the tokens after norm2)
    block_out   in each block, its output
    output      the last block's output, before the neck or the final norm

A site knows the width, the grid and the layout of its tokens. Parts know sites and never a family.
The layers that project queries, keys and values are no sites, since what lies over their weight is
no token; a block has them as `projections`.
A family registers itself beside its code, see `encoders.registry`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor, nn

from adapterkit.encoders.prompt_decoder import PromptDecoder
from adapterkit.encoders.tokens import TokenLayout
from adapterkit.system.pages import see

Words = Literal["all", "global", "windowed", "last_of_stage"]
Blocks = Words | Collection[int] | Callable[["Block"], bool]
BlockSite = Literal["attn_in", "attn_out", "mlp", "block_out"]

_EXPECTED_BLOCKS = (
    f"expected {', '.join(map(repr, get_args(Words)))}, block indices, (0, 3) say, or a callable "
    "of a Block"
)

BLOCK_SITES: tuple[str, ...] = ("attn_in", "attn_out", "mlp", "block_out")
ENCODER_SITES: tuple[str, ...] = ("tokens", "output")


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


@dataclass(frozen=True, eq=False)
class Site:
    """A named place of an encoder, to which parts can be attached.

    Attributes:
        modules: where it is: one module; for an input, those that read it.
        width: channels of a token there, as a part sees it.
        grid: rows and columns of tokens.
        layout: how the tokens lie.
        kind: "output": what the module gives. "parallel": a part sees the module's input, and what
            it computes is added to the module's output. "input": the first argument that the
            modules are called with, where no module has it as its output.
        item: which item of the tuple that the module gives; None where it gives a tensor.
    """

    modules: tuple[nn.Module, ...]
    width: int
    grid: tuple[int, int]
    layout: TokenLayout
    kind: Literal["output", "parallel", "input"] = "output"
    item: int | None = None


@dataclass(frozen=True, eq=False)
class Projection:
    """The rows of a linear layer's weight that project queries, keys or values.

    Attributes:
        layer: whose weight it is. Its forward may be bypassed (EVA02, BEiT), its weight is read.
        rows: (first, last + 1) of them, in each group.
        groups: of equally many rows, one after another: one, or one for each head where queries,
            keys and values of a head lie side by side.
    """

    layer: nn.Linear
    rows: tuple[int, int]
    groups: int = 1


def projections(**layers: nn.Module | None) -> dict[str, Projection]:
    """The projections that layers share equally among them, in the order of their names' letters.

    Args:
        **layers: by what they project: qkv, or q, k and v, or q and kv, or qk and v. What is no
            `nn.Linear`, or has a number of rows that cannot be shared, projects nothing here.
    """
    found: dict[str, Projection] = {}
    for targets, layer in layers.items():
        if isinstance(layer, nn.Linear) and layer.out_features % len(targets) == 0:
            height = layer.out_features // len(targets)
            for place, target in enumerate(targets):
                rows = (place * height, (place + 1) * height)
                found[target] = Projection(layer, rows)
    return found


@dataclass(frozen=True, eq=False)
class PositionEmbedding:
    """The site that is a parameter: an encoder's absolute position embedding.

    Attributes:
        module: that has it.
        name: of the parameter in it.
        width: channels of a token.
        grid: rows and columns of the tokens that it is for.
        layout: how they lie.
    """

    module: nn.Module
    name: str
    width: int
    grid: tuple[int, int]
    layout: TokenLayout


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block.

    Attributes:
        index: its position in the encoder, from 0.
        module: the block itself.
        sites: by name; a block may lack some.
        projections: of queries, keys and values, as "q", "k" and "v"; a block may lack some.
        num_heads: attention heads.
        attends_globally: whether it attends over all tokens rather than within windows.
        rel_pos: (module, parameter name) of its relative-position tables, each (2 * size - 1, d).
    """

    index: int
    module: nn.Module
    sites: Mapping[str, Site]
    projections: Mapping[str, Projection]
    num_heads: int
    attends_globally: bool
    rel_pos: tuple[tuple[nn.Module, str], ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """Consecutive blocks whose tokens have one width and lie on one grid.

    A plain ViT has one stage; a hierarchical one has several, each with fewer, wider tokens.

    Attributes:
        blocks: in order; their indices go on from stage to stage.
        width: channels of a token.
        grid: rows and columns of tokens.
    """

    blocks: tuple[Block, ...]
    width: int
    grid: tuple[int, int]


def _itself(output: Any) -> Any:
    return output


@dataclass(frozen=True, eq=False)
class ViT:
    """A view of an encoder: its sites and its geometry, under names that all families share.

    Attributes:
        family: the family's name, as an adapter file records it.
        model: what the view was taken of, an encoder or a model around one.
        encoder: the vision transformer.
        components: the model's named modules that a `Train` part can name.
        patch_embed: reads the image.
        patch_projection: the last convolution inside `patch_embed`, in most encoders the only one;
            or the linear layer that projects patches.
        tokens: the site of that name.
        pos_embed: the absolute position embedding, or None.
        stages: the blocks, in order.
        output: the site of that name.
        image_size: side of the square input image, in pixels.
        patch_size: pixels of the image from one token of the first stage to the next.
        resizer: changes what the family itself has to know of another geometry: its attributes and
            its rotary or relative positions, but not `pos_embed` and the stride.
        drops_patches: whether it leaves out patch tokens at random in training.
        reads_patches: whether its forward reads the last block's patch tokens, and not a class
            token alone.
        decoder: the sites of the model's prompt encoder and mask decoder, or None.
        embedding_of: the image embedding, (B, C, h, w), in what the encoder's forward gives.
        not_trained: modules of components that `Train` leaves as they are, since no mask depends
            on them.
        normalisation: mean and standard deviation, (3, 1, 1) each, of the channels of images in
            [0, 255], by which they become what the encoder takes; None where the caller knows.
    """

    family: str
    model: nn.Module
    encoder: nn.Module
    components: Mapping[str, nn.Module]
    patch_embed: nn.Module
    patch_projection: nn.Conv2d | nn.Linear
    tokens: Site
    pos_embed: PositionEmbedding | None
    stages: tuple[Stage, ...]
    output: Site
    image_size: int
    patch_size: int
    resizer: Resizer
    drops_patches: bool = False
    reads_patches: bool = True
    decoder: PromptDecoder | None = None
    embedding_of: Callable[[Any], Tensor] = _itself
    not_trained: tuple[nn.Module, ...] = ()
    normalisation: tuple[Tensor, Tensor] | None = None

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Of all stages."""
        return tuple(block for stage in self.stages for block in stage.blocks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens that the image is embedded as, equal."""
        return self.tokens.grid

    @property
    def in_channels(self) -> int:
        """Channels of the image."""
        for module in self.patch_embed.modules():
            if isinstance(module, nn.Conv2d):
                return module.in_channels
        assert isinstance(self.patch_projection, nn.Linear)
        return self.patch_projection.in_features // self.patch_size**2

    @property
    def patches_can_overlap(self) -> bool:
        """Whether one convolution embeds patches side by side, so that a smaller stride does."""
        embeds = self.patch_projection
        return isinstance(embeds, nn.Conv2d) and embeds.kernel_size[0] == self.patch_size

    def select(self, blocks: Blocks) -> tuple[Block, ...]:
        """The blocks that `blocks` names, in order: by a word, by indices, (0, 3) say, or by a
        function that says of a `Block` whether it is one of them.

        "all": all of them. "last_of_stage": the last of each stage. "windowed": those that attend
        within windows, or not at all. "global": those that attend globally; or, where all do, the
        last of each stage; and where there is one stage, four of its blocks evenly spaced up to
        the last (2, 5, 8 and 11 of 12), as many as SAM has.

        Raises:
            ValueError: `blocks` is not a selection, names a block that is not there, or selects
                none.
        """
        chosen = tuple(self._matching(blocks))
        if not chosen:
            raise ValueError(
                f"blocks={blocks!r} selects none of this encoder's {len(self.blocks)} blocks "
                f"(global attention in {[b.index for b in self.blocks if b.attends_globally]}; the "
                f"last of a stage are {[stage.blocks[-1].index for stage in self.stages]})"
            )
        return chosen

    def _matching(self, blocks: Blocks) -> Iterator[Block]:
        if callable(blocks):
            return (block for block in self.blocks if blocks(block))
        if isinstance(blocks, str):
            return iter(self._named(blocks))
        if not isinstance(blocks, Collection):
            raise ValueError(f"blocks={blocks!r}: {_EXPECTED_BLOCKS}")
        absent = [index for index in blocks if index not in range(len(self.blocks))]
        if absent:
            raise ValueError(
                f"blocks={tuple(blocks)} names {absent}, but this encoder has blocks 0 to "
                f"{len(self.blocks) - 1}"
            )
        return (block for block in self.blocks if block.index in blocks)

    def _named(self, word: str) -> Sequence[Block]:
        blocks, last = self.blocks, [stage.blocks[-1] for stage in self.stages]
        if word == "all":
            return blocks
        if word == "last_of_stage":
            return last
        if word == "windowed":
            return [block for block in blocks if not block.attends_globally]
        if word != "global":
            raise ValueError(f"blocks={word!r}: {_EXPECTED_BLOCKS}")
        if not all(block.attends_globally for block in blocks):
            return [block for block in blocks if block.attends_globally]
        if len(last) > 1:
            return last
        number = min(4, len(blocks))
        return [blocks[(i + 1) * len(blocks) // number - 1] for i in range(number)]

    def site(self, at: str, block: Block | None = None) -> Site:
        """Site `at` (of `block`, for a site that blocks have).

        Raises:
            ValueError: there is no such site here.
        """
        encoder_sites = {"tokens": self.tokens, "output": self.output}
        sites = encoder_sites if block is None else block.sites
        if at in BLOCK_SITES and block is None:
            raise ValueError(
                f"the site {at!r} is one of a block: expected site({at!r}, block), with a block "
                "that select gives"
            )
        if at not in sites:
            where = "" if block is None else f" in block {block.index}"
            raise ValueError(
                f"this {self.family} encoder has no site {at!r}{where}; there is "
                f"{', '.join(sites)}; {see('encoders.md', 'which-family-takes-which-part')}"
            )
        return sites[at]


def square_side(size: int | Sequence[int], encoder: str) -> int:
    """The side of an encoder's images, given as one number or as (height, width), in pixels.

    Raises:
        ValueError: they are not square; the message calls the encoder so.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(
            f"this {encoder} takes images of {height}x{width} pixels; adapterkit takes square ones"
        )
    return height


def position_embedding(
    encoder: nn.Module, width: int, grid: tuple[int, int], layout: TokenLayout
) -> PositionEmbedding | None:
    """The encoder's parameter `pos_embed`, or None where it has none."""
    if encoder._parameters.get("pos_embed") is None:
        return None
    return PositionEmbedding(encoder, "pos_embed", width, grid, layout)
