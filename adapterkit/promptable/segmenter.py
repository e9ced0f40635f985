"""A (patched) Sam of `segment_anything` as a batched, differentiable, promptable model."""

import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, Sam
from torch import Tensor, nn

from adapterkit.adapters.injection import adapters_of
from adapterkit.encoders.views import view
from adapterkit.promptable.prompts import Prompts
from adapterkit.promptable.protocol import Embedding, Masks, Promptable


class Segmenter(Promptable):
    """A `Sam`, with or without adapters, that segments K prompted structures in each of B images.

    Args:
        sam: a `segment_anything` `Sam`; its pixel_mean and pixel_std normalise the images, its
            parameters stay its own.

    Raises:
        TypeError: it is another model.
    """

    def __init__(self, sam: Sam):
        super().__init__()
        if not isinstance(sam, Sam):
            raise TypeError(
                f"Segmenter: expected a segment_anything Sam, not a {type(sam).__qualname__}"
            )
        self.sam = sam

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.sam.image_encoder.img_size

    @property
    def model(self) -> nn.Module:
        """The `Sam`."""
        return self.sam

    @property
    def parts(self) -> str:
        """What the active adapters add."""
        found = adapters_of(self.sam)
        return str([found[name].parts for name in found.active]) if found else ""

    @property
    def normalisation(self) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
        """Mean and standard deviation of an image's channels, in [0, 255]."""
        return self.sam.get_buffer("pixel_mean"), self.sam.get_buffer("pixel_std")

    def encoder_tensors(self) -> dict[str, Tensor]:
        """The image encoder's, without what adapters add elsewhere, and the normalisation."""
        elsewhere = (".prompt_encoder.", ".mask_decoder.")
        state = view(self.sam).encoder.state_dict(keep_vars=True)
        own = {key: each for key, each in state.items() if not any(e in key for e in elsewhere)}
        return own | dict(zip(("mean", "std"), self.normalisation, strict=True))

    def _encode(self, images: Float[Tensor, "b 3 H W"]) -> Embedding:
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            height, width = images.shape[-2:]
            raise ValueError(
                f"images are {height}x{width} pixels, and this model takes {size[0]}x{size[1]}; "
                "resize them first"
            )
        mean, std = self.normalisation
        image = self.sam.image_encoder((images - mean) / std)
        adapters = adapters_of(self.sam)
        return Embedding(image, self.image_size, adapters.handed_on() if adapters else {})

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        if prompts.shape is None:
            raise ValueError("no prompt: give points with labels, boxes, or masks")
        batch, count = prompts.shape
        flat = {name: each.flatten(0, 1) for name, each in prompts.given.items()}
        sparse, dense = self.sam.prompt_encoder(
            points=(flat["points"], flat["labels"]) if "points" in flat else None,
            boxes=flat.get("boxes"),
            masks=flat["masks"][:, None] if "masks" in flat else None,
        )
        logits, iou = predict_masks(
            self.sam.mask_decoder,
            embedding.image.repeat_interleave(count, dim=0),
            self.sam.prompt_encoder.get_dense_pe(),
            sparse,
            dense,
        )
        shape = (batch, count)
        return Masks(logits.unflatten(0, shape), iou.unflatten(0, shape), embedding.image_size)


def predict_masks(
    decoder: MaskDecoder,
    embedding: Float[Tensor, "p c h w"],
    position: Float[Tensor, "1 c h w"],
    sparse: Float[Tensor, "p n c"],
    dense: Float[Tensor, "p c h w"],
) -> tuple[Float[Tensor, "p m mask_h mask_w"], Float[Tensor, "p m"]]:
    """`MaskDecoder.predict_masks`, with an image embedding per prompt.

    The original takes the prompts of one image at a time.
    """
    prompts = sparse.shape[0]  # and not len, which fixes it where the decoder is exported
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(prompts, -1, -1), sparse], dim=1)
    tokens, features = decoder.transformer(
        embedding + dense, position.expand(prompts, -1, -1, -1), tokens
    )
    upscaled = decoder.output_upscaling(features.transpose(1, 2).reshape(embedding.shape))
    mask_tokens = tokens[:, 1 : 1 + decoder.num_mask_tokens].unbind(dim=1)
    weights = [
        mlp(token)
        for mlp, token in zip(decoder.output_hypernetworks_mlps, mask_tokens, strict=True)
    ]
    logits = torch.stack(weights, dim=1) @ upscaled.flatten(2)
    return logits.unflatten(2, upscaled.shape[2:]), decoder.iou_prediction_head(tokens[:, 0])
