"""The sites of SAM 2's decoder, which SAM 3's tracker and EdgeTAM have too."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from adapterkit.encoders.prompt_decoder import PromptDecoder
from adapterkit.encoders.transformers_sam import Zeros, prompt_decoder
from adapterkit.encoders.views import Changes
from adapterkit.encoders.wrappers import unwrapped


def sam2_decoder(model: Any) -> PromptDecoder:
    """The sites of a whole model."""
    features: nn.Module = unwrapped(model.mask_decoder).get_submodule("activation")
    return prompt_decoder(model, features, partial(_finer_maps, model))


def object_score(model: Any) -> nn.Module:
    """What tells whether an object is seen at all, which counts in videos alone."""
    return unwrapped(model.mask_decoder).get_submodule("pred_obj_score_head")


def resize_decoder(model: Any, changes: Changes, image_size: int, side: int) -> None:
    """Let what reads prompts and decodes masks take another size.

    Args:
        model: a whole one.
        changes: where this is said.
        image_size: side of the square images, in pixels.
        side: of the finest map that the decoder reads; each other's is half of the one before.
    """
    prompts: Any = unwrapped(model.prompt_encoder)
    sizes = [[side // 2**level] * 2 for level in range(len(model.backbone_feature_sizes))]
    changes.set(model, "backbone_feature_sizes", sizes)
    changes.set(prompts, "input_image_size", image_size)
    changes.set(prompts, "image_embedding_size", tuple(sizes[-1]))
    changes.set(prompts, "mask_input_size", tuple(4 * side for side in sizes[-1]))


def _finer_maps(model: Any, zeros: Zeros) -> Mapping[str, Any]:
    decoder: Any = unwrapped(model.mask_decoder)
    (rows, columns), width = model.prompt_encoder.image_embedding_size, decoder.hidden_size
    fine = decoder.conv_s0(zeros(1, width, 4 * rows, 4 * columns))
    medium = decoder.conv_s1(zeros(1, width, 2 * rows, 2 * columns))
    return {"high_resolution_features": [fine, medium]}
