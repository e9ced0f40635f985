"""AutoSAMUS's prompt generator: a structure's prompt is made of the image itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Context, Read
from adapterkit.encoders.prompt_decoder import for_each_prompt
from adapterkit.parts.class_prompts import CLASSES
from adapterkit.parts.registry import register_part
from adapterkit.parts.structures import checked_names

_HEADS, _HEAD_WIDTH, _MLP_WIDTH, _DEPTH = 8, 64, 1024, 2
_TOKENS = 50
"""Of each structure; the mask decoder is given the first of them."""


class CrossAttention(nn.Module):
    """Queries of one set of tokens, keys and values of another, each normalised first.

    The weights of a query sum up to less than one: its softmax has one logit more, which is as high
    as the highest and whose value is zero.
    """

    def __init__(self, width: int):
        super().__init__()
        inner = _HEADS * _HEAD_WIDTH
        self.norm_queries = nn.LayerNorm(width)
        self.norm_keys = nn.LayerNorm(width)
        self.queries = nn.Linear(width, inner, bias=False)
        self.keys_values = nn.Linear(width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "b n c"], y: Float[Tensor, "b m c"]) -> Tensor:
        queries = rearrange(self.queries(self.norm_queries(x)), "b n (h d) -> b h n d", h=_HEADS)
        keys, values = rearrange(
            self.keys_values(self.norm_keys(y)), "b m (two h d) -> two b h m d", two=2, h=_HEADS
        )
        logits = queries @ keys.mT * _HEAD_WIDTH**-0.5
        weights = torch.cat([logits, logits.amax(dim=-1, keepdim=True)], dim=-1).softmax(dim=-1)
        return self.out(rearrange(weights[..., :-1] @ values, "b h n d -> b n (h d)"))


class CrossLayer(nn.Module):
    """Two sets of tokens that attend to each other, and an MLP for each."""

    def __init__(self, width: int):
        super().__init__()
        self.attend_first, self.attend_second = CrossAttention(width), CrossAttention(width)
        self.mlp_first, self.mlp_second = _mlp(width), _mlp(width)

    def forward(
        self, first: Float[Tensor, "b n c"], second: Float[Tensor, "b m c"]
    ) -> tuple[Float[Tensor, "b n c"], Float[Tensor, "b m c"]]:
        first, second = (
            first + self.attend_first(first, second),
            second + self.attend_second(second, first),
        )
        return first + self.mlp_first(first), second + self.mlp_second(second)


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, _MLP_WIDTH), nn.ReLU(), nn.Linear(_MLP_WIDTH, width)
    )


def _layers(width: int) -> nn.ModuleList:
    return nn.ModuleList(CrossLayer(width) for _ in range(_DEPTH))


class PromptNet(nn.Module):
    """Makes prompts of image embeddings, for structures that have learned tokens.

    Args:
        width: channels of image embeddings and of prompt and mask tokens.
        structures: how many.
    """

    def __init__(self, width: int, structures: int):
        super().__init__()
        self.object_tokens = nn.Parameter(torch.randn(structures, _TOKENS, width))
        self.with_mask_tokens = _layers(width)
        self.project = nn.Linear(width, width)
        self.with_image = _layers(width)
        narrow = width // 4
        widths = (width, narrow, narrow, narrow, width)
        self.dense = nn.Sequential()
        for inner, outer in pairwise(widths):
            self.dense.append(nn.Conv2d(inner, outer, 3, padding=1, bias=False))
            self.dense.append(LayerNorm2d(outer))
            self.dense.append(nn.GELU())

    def forward(
        self,
        embedding: Float[Tensor, "p c h w"],
        mask_tokens: Float[Tensor, "m c"],
        classes: Tensor,
    ) -> tuple[Float[Tensor, "p 1 c"], Float[Tensor, "p c h w"], Float[Tensor, "p c h w"]]:
        """The sparse prompt, the image embedding as it has changed it, and the dense prompt.

        Args:
            embedding: for each prompt, that of its image.
            mask_tokens: all of the mask decoder's own.
            classes: (p,), the structure of each prompt.
        """
        own = self.object_tokens[classes].to(embedding.dtype)
        of_masks = mask_tokens.to(embedding.dtype).expand(len(own), -1, -1)
        tokens, others = own, of_masks
        for layer in self.with_mask_tokens:
            tokens, others = layer(tokens, others)
        tokens = torch.cat([self.project(tokens) + own, of_masks], dim=1)
        image = rearrange(embedding, "p c h w -> p (h w) c")
        for layer in self.with_image:
            image, tokens = layer(image, tokens)
        image = rearrange(image, "p (h w) c -> p c h w", h=embedding.shape[-2])
        return tokens[:, :1], image, self.dense(image)


class KeepEmbedding:
    """Hands the image embedding on to the decoder."""

    def __call__(self, image: Tensor, embedding: Tensor) -> Iterator[Tensor]:
        yield embedding


class GeneratePrompts:
    """A forward hook on the prompt encoder: a class's prompt, before clicks if there are some.

    What the decoder adds up to its source is the changed image embedding and the dense prompt; of
    these the image embedding is added later, and so taken off here.
    """

    def __init__(self, network: PromptNet, decoder: Any, read: Read, context: Context):
        self.network = network
        self.decoder = decoder
        self.read = read
        self.context = context

    def __call__(
        self, module: nn.Module, args: object, output: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "p n c"], Float[Tensor, "p c h w"]]:
        sparse, _ = output
        classes = self.context.values.get(CLASSES)
        if classes is None:
            return output
        if (classes < 0).any():
            raise ValueError(
                "a prompt has no class, and others have one, whose prompts are generated "
                "(PromptGenerator); ask for it apart"
            )
        prompts = len(classes)
        image = self.read()
        image = for_each_prompt(image, prompts // len(image))
        mask_tokens = torch.cat([self.decoder.iou_token.weight, self.decoder.mask_tokens.weight])
        token, changed, own = self.network(image, mask_tokens, classes)
        others = sparse.expand(prompts, *sparse.shape[1:])
        return torch.cat([token.to(others.dtype), others], dim=1), changed - image + own


@register_part
@dataclass(frozen=True)
class PromptGenerator:
    """Makes a structure's prompt of the image, so that no click is needed.

    A structure has learned tokens. They attend to the mask decoder's tokens, and these to them;
    then both to the image embedding, and it to them. The first token is the prompt, and the mask
    decoder is given the image embedding as this has changed it, and a dense prompt that four
    convolutions make of it. Clicks and boxes may stand beside a class, and correct it.

    Source: AutoSAMUS, in the published code of Lin et al. 2023, arXiv 2309.06824, which is for one
    structure; of several, each has tokens of its own here, and all share the rest.

    Args:
        structures: their names, each once.
    """

    structures: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "structures", checked_names(self, self.structures))

    def attach(self, to: Attachment) -> None:
        from segment_anything.modeling import MaskDecoder

        sites = to.decoder("PromptGenerator")
        decoder = to.view.components["mask_decoder"]
        if not isinstance(decoder, MaskDecoder):
            raise ValueError(
                "PromptGenerator: this model has no mask decoder of segment_anything's; expected a "
                "Sam"
            )
        network = PromptNet(sites.width, len(self.structures))
        to.add("prompt_generator", network)
        name = "prompt_generator.embedding"
        to.context.computes_last({name: sites.width}, KeepEmbedding())
        read = to.context.reads(name, in_decoder=True)
        to.after(sites.prompt_encoder, GeneratePrompts(network, decoder, read, to.context))
