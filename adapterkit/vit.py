"""Where the sites of a vision transformer are, for each family of encoders.

A site is a named place of any ViT to which a part can be attached:

    image       the encoder's input, (B, 3, H, W)
    tokens      the patch embedding's output, before positions are added
    pos_embed   the absolute position embedding, a parameter
    attn_in     in each block, the tokens after norm1, before any window partition
    qkv         in each block, parallel to the fused query-key-value projection
    attn_out    in each block, the attention's output
    mlp         in each block, parallel to the MLP (its input is the tokens after norm2)
    block_out   in each block, its output
    output      the last block's output, before the neck or the final norm

Parts know these names and never a family; a family is known here and nowhere else.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

Blocks = Literal["all", "global", "windowed"] | Collection[int] | Callable[["Block"], bool]
BlockSite = Literal["attn_in", "qkv", "attn_out", "mlp", "block_out"]

BLOCK_SITES: tuple[str, ...] = ("attn_in", "qkv", "attn_out", "mlp", "block_out")
ENCODER_SITES: tuple[str, ...] = ("tokens", "output")
PARALLEL_SITES: frozenset[str] = frozenset({"qkv", "mlp"})
"""Sites where a part sees the input of the module that it is added to, rather than its output."""


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block.

    Attributes:
        index: its position in the encoder, from 0.
        module: the block itself.
        sites: the module whose output each site of the block names.
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
        patch_projection: the convolution inside `patch_embed`.
        pos_embed: (module, parameter name) of the absolute position embedding, (1, H, W, C).
        blocks: in order.
        width: channels of a token.
        image_size: side of the square input image, in pixels.
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

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the token grid."""
        (kernel, _), (stride, _) = self.patch_projection.kernel_size, self.patch_projection.stride
        side = (self.image_size - kernel) // stride + 1
        return side, side

    def select(self, blocks: Blocks) -> tuple[Block, ...]:
        """The blocks that `blocks` names, in order.

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
            return (block for block in self.blocks if block.attends_globally in wanted)
        absent = [index for index in blocks if index not in range(len(self.blocks))]
        if absent:
            raise ValueError(
                f"blocks={tuple(blocks)} names {absent}, but this encoder has blocks 0 to "
                f"{len(self.blocks) - 1}"
            )
        return (block for block in self.blocks if block.index in blocks)

    def site(self, at: str, block: Block | None = None) -> nn.Module:
        """The module whose output is site `at` (of `block`, for a site that blocks have)."""
        if block is not None:
            return block.sites[at]
        return {"tokens": self.patch_embed, "output": self.blocks[-1].module}[at]


def view(model: nn.Module) -> ViT:
    """The view of `model`.

    Args:
        model: a `segment_anything` `Sam` or its image encoder.

    Raises:
        TypeError: `model` is of no family that adapterkit knows.
    """
    for family in (_segment_anything,):
        found = family(model)
        if found is not None:
            return found
    raise TypeError(
        f"adapterkit does not know where the blocks of a {type(model).__module__}."
        f"{type(model).__qualname__} are; expected a segment_anything Sam or its image encoder"
    )


def _segment_anything(model: nn.Module) -> ViT | None:
    from segment_anything.modeling import Sam
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    encoder = model.image_encoder if isinstance(model, Sam) else model
    if not isinstance(encoder, ImageEncoderViT):
        return None
    components: dict[str, nn.Module] = {"image_encoder": encoder, "neck": encoder.neck}
    if isinstance(model, Sam):
        components |= {"prompt_encoder": model.prompt_encoder, "mask_decoder": model.mask_decoder}
    projection = encoder.patch_embed.proj
    return ViT(
        family="segment_anything",
        model=model,
        encoder=encoder,
        components=components,
        patch_embed=encoder.patch_embed,
        patch_projection=projection,
        pos_embed=None if encoder._parameters.get("pos_embed") is None else (encoder, "pos_embed"),
        blocks=tuple(_segment_anything_block(i, b) for i, b in enumerate(encoder.blocks)),
        width=projection.out_channels,
        image_size=encoder.img_size,
    )


def _segment_anything_block(index: int, block: Any) -> Block:
    attention = block.attn
    return Block(
        index=index,
        module=block,
        sites={
            "attn_in": block.norm1,
            "qkv": attention.qkv,
            "attn_out": attention,
            "mlp": block.mlp,
            "block_out": block,
        },
        num_heads=attention.num_heads,
        attends_globally=block.window_size == 0,
        rel_pos=tuple((attention, f"rel_pos_{axis}") for axis in "hw" if attention.use_rel_pos),
    )
