"""A (patched) Sam of `segment_anything` as a batched, differentiable, promptable model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam
from torch import Tensor, nn

from adapterkit.adapters.injection import adapters_of
from adapterkit.encoders.views import view
from adapterkit.parts import ClassPrompts
from adapterkit.parts.class_prompts import CLASSES, PRESENCE
from adapterkit.promptable.prompts import Prompts, every_class
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
    def structures(self) -> tuple[str, ...]:
        """The names of the structures that can be asked for by their class, in order."""
        found = adapters_of(self.sam)
        parts = [part for name in found.active for part in found[name].parts] if found else []
        named = [part.structures for part in parts if isinstance(part, ClassPrompts)]
        return named[-1] if named else ()

    @property
    def padding(self) -> Float[Tensor, "3"] | None:
        """The mean colour for the base alone, as `SamPredictor` pads; adapters are trained on
        squashed images."""
        found = adapters_of(self.sam)
        return None if found and found.active else self.normalisation[0].flatten()

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
        normalised = ((images - mean) / std).to(self._dtype)
        image = self.sam.image_encoder(normalised)
        adapters = adapters_of(self.sam)
        return Embedding(image, self.image_size, adapters.handed_on() if adapters else {})

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        prompts = self._asked(embedding, prompts)
        assert prompts.shape is not None
        batch, count = prompts.shape
        flat = {name: each.flatten(0, 1) for name, each in prompts.given.items()}
        with self.given(embedding.maps, flat.get("classes")) as presence_of:
            with _positions_in_float32(self.sam.prompt_encoder):
                sparse, dense = self.sam.prompt_encoder(
                    points=(flat["points"], flat["labels"]) if "points" in flat else None,
                    boxes=flat.get("boxes"),
                    masks=flat["masks"][:, None].to(self._dtype) if "masks" in flat else None,
                )
                position = self.sam.prompt_encoder.get_dense_pe()
            logits, iou = predict_masks(
                self.sam.mask_decoder,
                embedding.image.repeat_interleave(count, dim=0),
                position.to(self._dtype),
                sparse.to(self._dtype),
                dense.to(self._dtype),
            )
            presence = presence_of()
        shape = (batch, count)
        return Masks(
            logits.unflatten(0, shape),
            iou.unflatten(0, shape),
            embedding.image_size,
            None if presence is None else presence.unflatten(0, shape),
        )

    @property
    def _dtype(self) -> torch.dtype:
        return self.sam.prompt_encoder.no_mask_embed.weight.dtype

    def _asked(self, embedding: Embedding, prompts: Prompts) -> Prompts:
        """The prompts, or every class where there are none."""
        structures = self.structures
        if prompts.shape is None:
            if not structures:
                raise ValueError(
                    "no prompt: give points with labels, boxes, or masks; a model without class "
                    "prompts has nothing to segment without"
                )
            return _with_a_point(
                every_class(len(embedding), len(structures), embedding.image.device)
            )
        classes = prompts.classes
        if classes is not None and not structures:
            raise ValueError(
                "classes are given, and this model has no class prompts; give points or boxes, or "
                'inject a method with structures, such as "samus_plus"'
            )
        if classes is not None and int(classes.max()) >= len(structures):
            raise ValueError(
                f"classes go up to {int(classes.max())}: expected 0 to {len(structures) - 1} "
                f"({', '.join(structures)}), or -1 for none"
            )
        return _with_a_point(prompts) if prompts.given.keys() == {"classes"} else prompts

    @contextmanager
    def given(
        self, maps: Mapping[str, Tensor], classes: Int[Tensor, "p"] | None
    ) -> Iterator[Callable[[], Float[Tensor, "p"] | None]]:
        """Within it, parts in the decoder read what belongs to these images and prompts.

        Args:
            maps: what an embedding's images handed on.
            classes: of the prompts, all images' in one row.

        Yields:
            What tells, after the decoder's forward, the presence that was judged.
        """
        found = adapters_of(self.sam)
        if found is None:
            yield lambda: None
            return
        values = dict(maps)
        if classes is not None:
            values |= {f"{name}.{CLASSES}": classes for name in found.active}
        with found.given(values):
            contexts = [found[name].context.values for name in found.active]
            yield lambda: next((v[PRESENCE] for v in contexts if PRESENCE in v), None)


def _with_a_point(prompts: Prompts) -> Prompts:
    """With a point that is none: so a class alone is to the decoder what it is beside others that
    have a click, in one batch."""
    assert prompts.classes is not None
    none = torch.full_like(prompts.classes[..., None], -1)
    return replace(prompts, points=torch.zeros(*none.shape, 2, device=none.device), labels=none)


@contextmanager
def _positions_in_float32(prompt_encoder: PromptEncoder) -> Iterator[None]:
    """Within it, a prompt encoder of another dtype computes positions, which it takes in float32,
    with a matrix of float32 too."""
    buffers, name = prompt_encoder.pe_layer._buffers, "positional_encoding_gaussian_matrix"
    matrix = buffers[name]
    assert matrix is not None
    if matrix.dtype == torch.float32:
        yield
        return
    buffers[name] = matrix.float()
    try:
        yield
    finally:
        buffers[name] = matrix


def predict_masks(
    decoder: MaskDecoder,
    embedding: Float[Tensor, "p c h w"],
    position: Float[Tensor, "1 c h w"],
    sparse: Float[Tensor, "p n c"],
    dense: Float[Tensor, "p c h w"],
) -> tuple[Float[Tensor, "p m mask_h mask_w"], Float[Tensor, "p m"]]:
    """The decoder's own `predict_masks`, with an image embedding per prompt.

    It takes the prompts of one image at a time, whose embedding it repeats and adds to each dense
    prompt; here that sum is given as the dense prompt, and the image's embedding is zero.
    """
    return decoder.predict_masks(
        image_embeddings=torch.zeros_like(embedding[:1]),
        image_pe=position,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=embedding + dense,
    )
