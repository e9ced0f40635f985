"""transformers' `Sam2Model`."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from adapterkit.encoders.prompt_decoder import for_each_prompt
from adapterkit.encoders.wrappers import unwrapped
from adapterkit.promptable.sam_family import DecoderInput, sam_family
from adapterkit.promptable.transformers_sam import TransformersPrompts

_FINE, _MEDIUM = "encoder.stride_4", "encoder.stride_8"
"""The neck's maps of higher resolution, from which the mask decoder takes detail."""


@sam_family
class TransformersSam2(TransformersPrompts):
    """A `Sam2Model`: SAM 2 and 2.1 for single images, without memory.

    The decoder's own convolutions of the finer maps run in `predict`, so that an embedding depends
    on the encoder alone.
    """

    title = "a transformers Sam2Model"
    keeps_proportions = False
    # The published checkpoints are of the model for videos, which has this one within.
    model_types = ("sam2", "sam2_video")
    class_name = "Sam2Model"
    box_tokens = 1

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, dict[str, Tensor]]:
        fine, medium, coarse, *_ = self.model.vision_encoder(pixels).fpn_hidden_states
        return coarse, {_FINE: fine, _MEDIUM: medium}

    def embed(self, prompts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return super().embed(self._with_a_point(prompts))

    def predict(self, given: DecoderInput) -> tuple[Tensor, Tensor]:
        """Where the first mask is not stable, the best of the others stands for it, in evaluation
        mode and where the model's configuration says so."""
        decoder: Any = unwrapped(self.model.mask_decoder)
        logits, iou = super().predict(replace(given, image=given.image + self.no_memory()))
        if decoder.dynamic_multimask_via_stability and not decoder.training:
            found = decoder._dynamic_multimask_via_stability(logits[:, None], iou[:, None])
            first, score = (each[:, 0] for each in found)
            logits = torch.cat([first, logits[:, 1:]], dim=1)
            iou = torch.cat([score, iou[:, 1:]], dim=1)
        return logits, iou

    def no_memory(self) -> Float[Tensor, "1 c 1 1"] | float:
        """What the image embedding is added up with where there are no frames before."""
        return self.model.no_memory_embedding.view(1, -1, 1, 1)

    def _decode(self, given: DecoderInput, **options: Any) -> Any:
        decoder: Any = unwrapped(self.model.mask_decoder)
        finer = decoder.conv_s0(given.maps[_FINE]), decoder.conv_s1(given.maps[_MEDIUM])
        maps = [for_each_prompt(each, given.count) for each in finer]
        return super()._decode(given, high_resolution_features=maps, **options)

    def kinds(self) -> Float[Tensor, "5 c"]:
        prompts = self.model.prompt_encoder
        return torch.cat([prompts.not_a_point_embed.weight, prompts.point_embed.weight])
