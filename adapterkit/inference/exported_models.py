"""What is exported of a Segment Anything model: its encoder and its decoder, each as one graph."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adapterkit.promptable.class_maps import against_other_classes
from adapterkit.promptable.sam_family import DecoderInput
from adapterkit.promptable.segmenter import Segmenter


class Encoder(nn.Module):
    """The image encoder of a `Sam`, with its normalisation, and what parts hand on beside."""

    def __init__(self, sam: nn.Module):
        super().__init__()
        self.segmenter = Segmenter(sam)

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> tuple[Tensor, ...]:
        embedding = self.segmenter.encode(images)
        return embedding.image, *(embedding.maps[name] for name in sorted(embedding.maps))


class Decoder(nn.Module):
    """The prompt encoder and mask decoder of a `Sam`, with every prompt in tensors.

    The stock prompt encoder takes other prompts by other code, and assigns to indices; here a
    prompt that is absent is a value, so that one graph does for all.

    Args:
        sam: it.
        maps: the names of what parts hand on from the encoder, sorted.
    """

    positions: Tensor
    kinds: Tensor

    def __init__(self, sam: nn.Module, maps: Sequence[str]):
        super().__init__()
        self.segmenter = Segmenter(sam)
        self.maps = tuple(maps)
        self.register_buffer("positions", self.segmenter.family.positions().contiguous())
        self.register_buffer("kinds", self.segmenter.family.kinds())

    def forward(
        self,
        image_embeddings: Float[Tensor, "b c h w"],
        point_coords: Float[Tensor, "b k n 2"],
        point_labels: Int[Tensor, "b k n"],
        mask_input: Float[Tensor, "b k mask_h mask_w"],
        has_mask_input: Float[Tensor, "b k"],
        *others: Tensor,
    ) -> tuple[Tensor, ...]:
        """Masks, their estimated quality and, with class prompts, the presence; `others` are the
        maps and, with class prompts, the classes, (b, k)."""
        batch, prompts = point_labels.shape[:2]
        # That axes of one name are one size, without which a trace guards against sizes of 1.
        for each in (image_embeddings, point_coords, mask_input, has_mask_input, *others):
            torch._check(each.shape[0] == batch)
        for each in (point_coords, mask_input, has_mask_input, *others[len(self.maps) :]):
            torch._check(each.shape[1] == prompts)
        coords, labels, mask, has_mask = (
            each.flatten(0, 1) for each in (point_coords, point_labels, mask_input, has_mask_input)
        )
        family = self.segmenter.family
        # To the pixels' centres, as the stock prompt encoder does.
        place = family.embed_place((coords + 0.5) / self.segmenter.image_size)
        tokens = torch.where(labels[..., None] < 0, 0.0, place) + self.kinds[labels + 1]
        sparse = family.as_sparse(tokens)
        with_mask = has_mask[:, None, None, None] > 0
        dense = torch.where(with_mask, family.embed_masks(mask[:, None]), family.no_mask())
        maps = dict(zip(self.maps, others, strict=False))
        classes = others[-1] if self.segmenter.structures else None
        # Of the labels, 2 and 3 are a box's corners.
        pointed_at = (labels >= 1).any(dim=-1)
        found = self._answers(image_embeddings, maps, sparse, dense, classes, pointed_at, prompts)
        logits, *rest = (each.unflatten(0, (batch, prompts)) for each in found)
        if classes is not None and self.segmenter.classes_exclude:
            count = len(self.segmenter.structures)
            every = torch.arange(count, device=classes.device).expand(batch, count)
            # A class without a click has a point that is none, and the prompt encoder pads it.
            sparse = family.as_sparse(self.kinds[:1].expand(batch * count, 2, -1))
            dense = family.no_mask().expand(batch * count, *dense.shape[1:])
            by_name, *_ = self._answers(image_embeddings, maps, sparse, dense, every, None, count)
            by_name = by_name[:, 0].unflatten(0, (batch, count))
            logits = against_other_classes(logits, by_name, classes)
        return logits, *rest

    def _answers(
        self,
        image_embeddings: Float[Tensor, "b c h w"],
        maps: Mapping[str, Tensor],
        sparse: Tensor,
        dense: Tensor,
        classes: Int[Tensor, "b k"] | None,
        pointed_at: Bool[Tensor, "p"] | None,
        count: int,
    ) -> tuple[Tensor, ...]:
        """Logits, estimated quality and, with class prompts, presence of P prompts in all."""
        family = self.segmenter.family
        flat = None if classes is None else classes.flatten()
        with self.segmenter.given(maps, flat, pointed_at) as presence_of:
            # What parts do after the stock prompt encoder.
            for hook in family.prompt_encoder._forward_hooks.values():
                changed = hook(family.prompt_encoder, (), (sparse, dense))
                sparse, dense = (sparse, dense) if changed is None else changed
            logits, iou = family.predict(
                DecoderInput(image_embeddings, maps, self.positions, sparse, dense, count)
            )
            presence = presence_of()
        return (logits, iou) if presence is None else (logits, iou, presence)
