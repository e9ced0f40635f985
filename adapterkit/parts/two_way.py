"""Another self-attention of the tokens in the mask decoder's two-way transformer."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.parts.registry import register_part


@register_part
@dataclass(frozen=True)
class ResidualSelfAttention:
    """Lets the tokens in `segment_anything`'s mask decoder attend to each other as EfficientSAM's.

    In its two-way blocks the tokens x, with their positions p, become norm(x + A(x + p, x + p, x))
    where A attends with queries, keys and values; in the first block norm(A(x, x, x)).
    EfficientSAM, and Medical SAM Adapter's code after it, computes norm(y + A(y, y, y)) with
    y = x + p; in the first block y = x. A decoder trained with one does not answer with the other.
    """

    def attach(self, to: Attachment) -> None:
        from segment_anything.modeling.transformer import TwoWayAttentionBlock, TwoWayTransformer

        transformer = getattr(to.view.components.get("mask_decoder"), "transformer", None)
        if not isinstance(transformer, TwoWayTransformer):
            raise ValueError(
                "ResidualSelfAttention: this model has no mask decoder of segment_anything's; "
                "leave it out"
            )
        for block in transformer.layers:
            assert isinstance(block, TwoWayAttentionBlock)
            attention = block.self_attn
            to.replace_forward(attention, _Residual(attention, block.skip_first_layer_pe))


class _Residual(nn.Module):
    """What a block's self-attention gives, so that the block computes EfficientSAM's.

    Args:
        attention: the block's.
        first: whether the block takes what it gives as it is, and adds no residual.
    """

    def __init__(self, attention: nn.Module, first: bool):
        super().__init__()
        self.attention = attention
        self.first = first

    def forward(
        self, q: Float[Tensor, "b n c"], k: Float[Tensor, "b n c"], v: Float[Tensor, "b n c"]
    ) -> Float[Tensor, "b n c"]:
        # Through its class, which `fast` may change, since its own forward is this one.
        attended = type(self.attention).forward(self.attention, q, q, q)
        # The block adds the tokens without their positions, v, itself.
        return attended + (q if self.first else q - v)
