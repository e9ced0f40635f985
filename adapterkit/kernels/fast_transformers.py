"""The fast forward of the blocks of transformers' `SamVisionModel`; see `fast_forward`.

It needs transformers, and is imported where a model of it is.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.sam.modeling_sam import SamVisionLayer, SamVisionSdpaAttention

from adapterkit.kernels.sam_attention import attend


class FastSamVisionLayer(SamVisionLayer):
    """A block that leaves windows to its attention."""

    def forward(self, hidden_states: Float[Tensor, "b h w c"]) -> Any:
        attended, _ = self.attn(self.layer_norm1(hidden_states), window_size=self.window_size)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class FastSamVisionAttention(SamVisionSdpaAttention):
    """Attention with decomposed relative positions, within windows or over the whole grid."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Float[Tensor, "b h w c"], window_size: int = 0
    ) -> tuple[Float[Tensor, "b h w c"], None]:
        return attend(self, hidden_states, window_size, self.num_attention_heads), None


FAST: dict[type[nn.Module], type[nn.Module]] = {
    SamVisionLayer: FastSamVisionLayer,
    SamVisionSdpaAttention: FastSamVisionAttention,
}
