"""A forward for SAM's blocks that does less, of the same numbers up to rounding.

`fast` gives the blocks of `segment_anything`, timm and transformers, their attentions and channel
norms other forwards, which

- attend without a matrix of all queries by all keys in memory, neither in the forward pass nor for
  the gradient (`relative_attention`);
- project the tokens that are there, not the zeros that fill up the windows, and ask nothing for
  these. 32 x 32 tokens in windows of 14 would be 42 x 42;
- on a CPU, multiply matrices with the faster of PyTorch's two libraries (`onednn`), and convolve
  with a quarter of the multiplications (`winograd`);
- convolve and normalise in one memory layout, which is that of tokens, too;
- keep less for the gradient of convolution blocks and pooling (`max_pool`);
- train low-rank updates by what they add to a layer's output.

Parameters, their names, hooks and adapters stay as they are, on a model with or without them.
"""

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.image_encoder import Attention, Block
from segment_anything.modeling.transformer import Attention as TwoWayAttention
from timm.models import vision_transformer_sam as timm_sam
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapterkit.attach.overlay import plain_class, set_class
from adapterkit.kernels.linear import FastLinear
from adapterkit.kernels.max_pool import max_pool
from adapterkit.kernels.relative_attention import attention
from adapterkit.kernels.sam_attention import attend
from adapterkit.kernels.winograd import winograd
from adapterkit.parts.cnn_branch import CrossBranchAttention
from adapterkit.parts.conv import ConvBlock

Model = TypeVar("Model", bound=nn.Module)


def fast(model: Model) -> Model:
    """Let `model` compute the same faster, in place; `stock` undoes it.

    It is made for CPUs. On a GPU it saves memory and costs time; see docs/speed.md.

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


def fast_if_known(model: Model) -> Model:
    """`fast`, or the model as it is where adapterkit has no faster forward for it."""
    try:
        return fast(model)
    except TypeError:
        return model


def stock(model: Model) -> Model:
    """Let `model` compute as its library has it again, in place.

    Args:
        model: what `fast` takes, whether it was given to `fast` or not.

    Returns:
        The same model.
    """
    _change_classes(model, {fast: stock for stock, fast in _fast_classes().items()})
    return model


def keep_fast(model: nn.Module, added: nn.Module) -> None:
    """Let what is `added` to `model` be fast if `model` is."""
    classes = _fast_classes()
    if any(_is_block(each) and plain_class(each) not in classes for each in model.modules()):
        _change_classes(added, classes)


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


class FastConv2d(nn.Conv2d):
    """A convolution in channels-last memory: what it gives are tokens without a copy.

    It is by Winograd's algorithm where this is faster: 3 x 3, on a CPU, in float32, of so many
    channels and pixels that it saves more than it takes to transform them.
    """

    def forward(self, input: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b d g v"]:
        if input.ndim == 3:
            return super().forward(input)
        input = input.contiguous(memory_format=torch.channels_last)
        channels = min(self.in_channels, self.out_channels)
        pixels = input.shape[0] * input.shape[2:].numel()
        saves = channels >= 128 and pixels >= 1024 and _in_float32_on_cpu(input)
        if not saves or not self._keeps_the_size():
            return super().forward(input)
        output = winograd(input, self.weight)
        return output if self.bias is None else output + self.bias[:, None, None]

    def _keeps_the_size(self) -> bool:
        """Whether it is a plain one of 3 x 3 with a border of zeros."""
        setting = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return setting == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and self.padding_mode == "zeros"


def _in_float32_on_cpu(x: Tensor) -> bool:
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    )


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


class FastCrossBranchAttention(CrossBranchAttention):
    """Attention to the CNN branch, in the fastest way there is."""

    def attend(
        self,
        q: Float[Tensor, "b heads n d"],
        k: Float[Tensor, "b heads m d"],
        v: Float[Tensor, "b heads m d"],
    ) -> Float[Tensor, "b heads n d"]:
        return attention(q, k, v)


class FastConvBlock(ConvBlock):
    """A block that keeps for its gradient what its convolution gives, and normalises that again.

    Of an image, which takes no time to convolve, it keeps the image.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d g v"]:
        layers = list(self)
        once = 0 if input.shape[1] <= 3 else len(layers) - 2
        return checkpoint(
            _through,
            layers[once:],
            _through(layers[:once], input),
            use_reentrant=False,
            preserve_rng_state=False,
        )


def _through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class FastMaxPool2d(nn.MaxPool2d):
    """Pooling that keeps for its gradient where the largest were, and not what they were among."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Any:
        if self.return_indices or not (torch.is_grad_enabled() and input.requires_grad):
            return super().forward(input)
        settings = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return max_pool(input, *settings)


class FastLayerNorm2d(LayerNorm2d):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # Under autocast, the stock norm's own weight makes it float32.
        x = x.permute(0, 2, 3, 1).to(torch.promote_types(x.dtype, self.weight.dtype))
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    Block: FastBlock,
    Attention: FastAttention,
    timm_sam.Block: FastTimmBlock,
    timm_sam.Attention: FastTimmAttention,
    nn.Linear: FastLinear,
    nn.Conv2d: FastConv2d,
    TwoWayAttention: FastTwoWayAttention,
    CrossBranchAttention: FastCrossBranchAttention,
    ConvBlock: FastConvBlock,
    nn.MaxPool2d: FastMaxPool2d,
    LayerNorm2d: FastLayerNorm2d,
}


def _fast_classes() -> dict[type[nn.Module], type[nn.Module]]:
    # A model of transformers can be here only if its module has been imported.
    if "transformers.models.sam.modeling_sam" not in sys.modules:
        return _FAST
    from adapterkit.kernels.fast_transformers import FAST

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
