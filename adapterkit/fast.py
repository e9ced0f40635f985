"""A forward for SAM's blocks that does less, of the same numbers up to rounding.

`fast` gives the blocks of `segment_anything`, timm and transformers, their attentions and channel
norms other forwards, which

- attend without a matrix of all queries by all keys in memory, neither in the forward pass nor for
  the gradient (`relative_attention`);
- project the tokens that are there, not the zeros that fill up the windows, and ask nothing for
  these. 32 x 32 tokens in windows of 14 would be 42 x 42;
- normalise channels in the memory layout that the convolutions give.

Parameters, their names, hooks and adapters stay as they are, on a model with or without them.
"""

import sys
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block, get_rel_pos
from segment_anything.modeling.transformer import Attention as TwoWayAttention
from timm.models import vision_transformer_sam as timm_sam
from torch import Tensor, nn

from adapterkit.overlay import plain_class, set_class
from adapterkit.relative_attention import relative_attention

Model = TypeVar("Model", bound=nn.Module)


def fast(model: Model) -> Model:
    """Let `model` compute the same faster, in place; `stock` undoes it.

    Args:
        model: a `Sam` of `segment_anything`, a `VisionTransformerSAM` of timm, a `SamModel` of
            transformers, or the image encoder of one, with or without adapters, which can be
            injected, switched and ejected before and after.

    Returns:
        The same model.

    Raises:
        TypeError: it has no block of SAM's, or one that attends in another way, with rotary
            positions say; it is as before.
    """
    classes = _fast_classes()
    blocks = [each for each in model.modules() if _is_block(each)]
    if not blocks:
        raise TypeError(
            f"fast: this {type(model).__qualname__} has no block of SAM's; expected a Sam of "
            "segment_anything, timm or transformers, or its image encoder"
        )
    for block in blocks:
        other = _attends_otherwise(block.attn)
        if other:
            raise TypeError(
                f"fast: the attention of this {type(model).__qualname__} has {other}, which the "
                "fast forward does not compute; use the model as it is"
            )
    _change_classes(model, classes)
    return model


def stock(model: Model) -> Model:
    """Let `model` compute as its library has it again, in place."""
    _change_classes(model, {fast: stock for stock, fast in _fast_classes().items()})
    return model


class FastBlock(Block):
    """A block that leaves windows to its attention."""

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.attn(self.norm1(x), self.window_size)
        return x + self.mlp(self.norm2(x))


class FastAttention(Attention):
    """Attention with decomposed relative positions, within windows or over the whole grid."""

    def forward(
        self, x: Float[Tensor, "b h w c"], window_size: int = 0
    ) -> Float[Tensor, "b h w c"]:
        return attend(self, x, window_size, self.num_heads)


class FastTimmBlock(timm_sam.Block):
    """A block of timm's that leaves windows to its attention."""

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), self.window_size)))
        tokens = x.flatten(1, 2)
        return (tokens + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens))))).view_as(x)


class FastTimmAttention(timm_sam.Attention):
    """Timm's attention, as `FastAttention`."""

    def forward(
        self, x: Float[Tensor, "b h w c"], window_size: int = 0
    ) -> Float[Tensor, "b h w c"]:
        return self.proj_drop(attend(self, x, window_size, self.num_heads))


def attend(
    attention: Any, x: Float[Tensor, "b h w c"], window_size: int, num_heads: int
) -> Float[Tensor, "b h w c"]:
    """What SAM's attention, a module with `qkv`, `proj`, `use_rel_pos`, `rel_pos_h` and
    `rel_pos_w`, makes of a grid of tokens within windows; of the whole grid where the size is 0."""
    qkv = attention.qkv(x)
    filling = torch.zeros_like(qkv[0, 0, 0])
    if window_size:
        filling = attention.qkv(torch.zeros_like(x[0, 0, 0]))
    rows, columns = (window_size or side for side in x.shape[1:3])
    if attention.use_rel_pos:
        of_rows = get_rel_pos(rows, rows, attention.rel_pos_h)
        of_columns = get_rel_pos(columns, columns, attention.rel_pos_w)
    else:
        channels = x.shape[-1] // num_heads
        of_rows = x.new_zeros(rows, rows, channels)
        of_columns = x.new_zeros(columns, columns, channels)
    return attention.proj(relative_attention(qkv, filling, of_rows, of_columns, num_heads))


class FastTwoWayAttention(TwoWayAttention):
    """The mask decoder's attention, fused."""

    def forward(
        self, q: Float[Tensor, "b n c"], k: Float[Tensor, "b m c"], v: Float[Tensor, "b m c"]
    ) -> Float[Tensor, "b n c"]:
        attended = F.scaled_dot_product_attention(
            self._separate_heads(self.q_proj(q), self.num_heads),
            self._separate_heads(self.k_proj(k), self.num_heads),
            self._separate_heads(self.v_proj(v), self.num_heads),
        )
        return self.out_proj(self._recombine_heads(attended))


class FastLayerNorm2d(LayerNorm2d):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        x = x.permute(0, 2, 3, 1)
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    Block: FastBlock,
    Attention: FastAttention,
    timm_sam.Block: FastTimmBlock,
    timm_sam.Attention: FastTimmAttention,
    TwoWayAttention: FastTwoWayAttention,
    LayerNorm2d: FastLayerNorm2d,
}


def _fast_classes() -> dict[type[nn.Module], type[nn.Module]]:
    # A model of transformers can be here only if its module has been imported.
    if "transformers.models.sam.modeling_sam" not in sys.modules:
        return _FAST
    from adapterkit.fast_transformers import FAST

    return _FAST | FAST


def _is_known(module: nn.Module) -> bool:
    return plain_class(module) in {kind for pair in _fast_classes().items() for kind in pair}


def _is_block(module: nn.Module) -> bool:
    return _is_known(module) and hasattr(module, "window_size")


def _attends_otherwise(attention: Any) -> str | None:
    if not _is_known(attention):
        return f"the class {type(attention).__qualname__}"
    if getattr(attention, "rope", None) is not None:
        return "rotary positions"
    if not isinstance(getattr(attention, "q_norm", nn.Identity()), nn.Identity):
        return "norms of queries and keys"
    if getattr(attention, "attn_drop", nn.Dropout(0)).p > 0:
        return "dropout of its weights"
    return None


def _change_classes(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> None:
    for module in model.modules():
        wanted = classes.get(plain_class(module))
        if wanted is not None:
            set_class(module, wanted)
