"""transformers' `SamModel` and `SamHQModel`."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.encoders.prompt_decoder import for_each_prompt
from adapterkit.encoders.wrappers import unwrapped
from adapterkit.promptable.sam_family import DecoderInput, SamFamily, sam_family
from adapterkit.system.files import atomic_folder


class TransformersPrompts(SamFamily):
    """What the Segment Anything models of transformers have in common.

    Their prompts have an axis for the images and one for each image's prompts. A mask belongs to an
    image there, so that here each prompt is an image of its own with one prompt.
    """

    class_name: ClassVar[str]

    @classmethod
    def takes(cls, model: nn.Module) -> bool:
        # It can be here only if its module has been imported.
        name = cls.model_types[0]
        module = sys.modules.get(f"transformers.models.{name}.modeling_{name}")
        return module is not None and isinstance(model, getattr(module, cls.class_name))

    @classmethod
    def load(cls, folder: Path) -> tuple[nn.Module, list[str]]:
        import transformers

        try:
            with _quiet():
                model, about = getattr(transformers, cls.class_name).from_pretrained(
                    folder,
                    dtype=torch.float32,
                    local_files_only=True,
                    use_safetensors=True,
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise ValueError(f"{folder} cannot be read as a {cls.class_name}: {first}") from error
        return model, sorted(about["missing_keys"])

    def save(self, path: Path) -> None:
        mean, std = (getattr(self.model, f"pixel_{name}", None) for name in ("mean", "std"))
        with _quiet(), atomic_folder(path) as draft:
            self.model.save_pretrained(draft)
            if mean is not None and std is not None:
                numbers = {"image_mean": mean, "image_std": std}
                found = {name: (each.flatten() / 255).tolist() for name, each in numbers.items()}
                (draft / "preprocessor_config.json").write_text(json.dumps(found))

    @property
    def encoder(self) -> nn.Module:
        return unwrapped(self.model.vision_encoder)

    @property
    def image_size(self) -> int:
        return self.model.prompt_encoder.input_image_size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.prompt_encoder.no_mask_embed.weight.dtype

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.vision_encoder(pixels).last_hidden_state, {}

    def embed(self, prompts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        if "classes" in prompts:
            prompts = self._with_a_point(prompts)
        given = {name: each[:, None] for name, each in prompts.items()}
        sparse, dense = self.model.prompt_encoder(
            input_points=given.get("points"),
            input_labels=given.get("labels"),
            input_boxes=given.get("boxes"),
            input_masks=given["masks"].to(self.dtype) if "masks" in given else None,
        )
        if sparse is None:  # Of masks alone.
            sparse = dense.new_empty(dense.shape[0], 1, 0, dense.shape[1])
        return sparse.to(self.dtype), dense

    def _with_a_point(self, prompts: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """With a point that is none, where there is neither point nor box, and so no tokens."""
        if prompts.keys() & {"points", "boxes"}:
            return prompts
        first = next(iter(prompts.values()))
        none = torch.full((len(first), 1), -1, device=first.device)
        place = torch.zeros(len(first), 1, 2, device=first.device)
        return {**prompts, "points": place, "labels": none}

    def positions(self) -> Float[Tensor, "1 c h w"]:
        return self.model.get_image_wide_positional_embeddings()

    def predict(self, given: DecoderInput) -> tuple[Tensor, Tensor]:
        """By the decoder's own forward, which gives all masks but the first.

        The first is what the decoder makes it of: the features that its last activation gives, and
        their weights.
        """
        decoder: Any = unwrapped(self.model.mask_decoder)
        features, iou = decoder.activation, decoder.iou_prediction_head
        weights = decoder.output_hypernetworks_mlps[0]
        with last_outputs(features, weights, iou) as last:
            others, *_ = self._decode(given, multimask_output=True)
        first = (last[weights] @ last[features].flatten(2)).unflatten(-1, others.shape[-2:])
        return torch.cat([first, others[:, 0]], dim=1), last[iou][:, 0]

    def _decode(self, given: DecoderInput, **options: Any) -> Any:
        return self.model.mask_decoder(
            image_embeddings=for_each_prompt(given.image, given.count),
            image_positional_embeddings=given.positions,
            sparse_prompt_embeddings=given.sparse,
            dense_prompt_embeddings=given.dense,
            **options,
        )

    def kinds(self) -> Float[Tensor, "5 c"]:
        prompts = self.model.prompt_encoder
        kinds = [prompts.not_a_point_embed, *prompts.point_embed]
        return torch.cat([each.weight for each in kinds])

    def embed_place(self, place: Float[Tensor, "p n 2"]) -> Float[Tensor, "p n c"]:
        return self.model.prompt_encoder.shared_embedding(place)

    def embed_masks(self, masks: Float[Tensor, "p 1 H W"]) -> Float[Tensor, "p c h w"]:
        return self.model.prompt_encoder.mask_embed(masks)

    def no_mask(self) -> Float[Tensor, "1 c 1 1"]:
        return self.model.prompt_encoder.no_mask_embed.weight[:, :, None, None]

    def as_sparse(self, tokens: Float[Tensor, "p n c"]) -> Float[Tensor, "p 1 n c"]:
        return tokens[:, None]


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, transformers says nothing on the way, and draws no bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def last_outputs(*modules: nn.Module) -> Iterator[dict[nn.Module, Tensor]]:
    """Within it, what each module gave last, as parts have changed it."""
    last: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        last[module] = output

    handles = [each.register_forward_hook(keep) for each in modules]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


@sam_family
class TransformersSam(TransformersPrompts):
    """A `SamModel`."""

    title = "a transformers SamModel"
    keeps_proportions = True
    model_types = ("sam",)
    class_name = "SamModel"


_EARLY = "encoder.early_tokens"
"""Of the first block that attends globally."""


@sam_family
class TransformersSamHQ(TransformersPrompts):
    """A `SamHQModel`, whose masks are SAM's and a refined one, summed."""

    title = "a transformers SamHQModel"
    keeps_proportions = True
    model_types = ("sam_hq",)
    class_name = "SamHQModel"

    def encode(self, pixels: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, dict[str, Tensor]]:
        found = self.model.vision_encoder(pixels)
        early = found.intermediate_embeddings
        return found.last_hidden_state, {_EARLY: early[0]} if early else {}

    def predict(self, given: DecoderInput) -> tuple[Tensor, Tensor]:
        """By the decoder's own forward, which gives the refined mask alone if it is asked to.

        SAM's are what the decoder makes them of; those for an ambiguous prompt are in the order of
        their estimated IoU, as the decoder has them.
        """
        decoder: Any = unwrapped(self.model.mask_decoder)
        weights, iou = decoder.output_hypernetworks_mlps, decoder.iou_prediction_head
        maps = given.maps
        early = [for_each_prompt(maps[_EARLY], given.count)] if _EARLY in maps else None
        with last_outputs(*weights, iou) as last, last_input(decoder.mask_conv1) as features:
            refined, *_ = self._decode(
                given, multimask_output=False, hq_token_only=True, intermediate_embeddings=early
            )
        of_sam = torch.cat([last[each] for each in weights], dim=1) @ features[0].flatten(2)
        logits = of_sam.unflatten(-1, refined.shape[-2:]) + refined[:, 0]
        scores = last[iou][:, 0]
        order = scores[:, 1:].argsort(dim=1, descending=True) + 1
        order = torch.cat([torch.zeros_like(order[:, :1]), order], dim=1)
        chosen = order[..., None, None].expand(-1, -1, *logits.shape[-2:])
        return logits.gather(1, chosen), scores.gather(1, order)


@contextmanager
def last_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, a list of what a module was given last."""
    last: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        last[:] = args

    handle = module.register_forward_pre_hook(keep)
    try:
        yield last
    finally:
        handle.remove()
