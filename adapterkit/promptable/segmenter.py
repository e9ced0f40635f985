"""A (patched) Segment Anything model as a batched, differentiable, promptable model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from adapterkit.adapters.injection import adapters_on
from adapterkit.attach.attachment import Part
from adapterkit.encoders.registry import view
from adapterkit.encoders.wrappers import unwrapped
from adapterkit.parts import ClassMasks, ClassPrompts, PromptGenerator
from adapterkit.parts.class_prompts import CLASSES, POINTED_AT, PRESENCE
from adapterkit.parts.normalise import normalisation_of
from adapterkit.parts.structures import structures_of
from adapterkit.promptable.class_maps import ClassMaps, against_other_classes
from adapterkit.promptable.families import family_of, titles
from adapterkit.promptable.prompts import Prompts, every_class
from adapterkit.promptable.protocol import Embedding, Masks, Promptable
from adapterkit.promptable.sam_family import DecoderInput
from adapterkit.system.pages import see


class Segmenter(Promptable):
    """A `Sam`, with or without adapters, that segments K prompted structures in each of B images.

    Args:
        sam: a `segment_anything` `Sam`, or a `SamModel`, `SamHQModel`, `Sam2Model`,
            `Sam3TrackerModel` or `EdgeTamModel` of transformers; its parameters stay its own.
            Images are normalised as its family does, or as the adapter in use says.

    Raises:
        TypeError: it is another model.

    Attributes:
        sam: it, without what wraps it.
        family: the same, as its family has it.
    """

    def __init__(self, sam: Any):
        super().__init__()
        family = family_of(sam)
        if family is None:
            raise TypeError(f"Segmenter: expected {titles()}, not a {type(sam).__qualname__}")
        self.sam: Any = family.model
        self.family = family

    @property
    def image_size(self) -> int:
        """Side of the square input, in pixels."""
        return self.family.image_size

    @property
    def model(self) -> nn.Module:
        """The model within."""
        return self.sam

    @property
    def parts(self) -> str:
        """What the active adapters add."""
        found = adapters_on(self.family.encoder)
        return str([found[name].parts for name in found.active]) if found else ""

    @property
    def reach(self) -> int:
        """By the parts of the active adapters."""
        found = adapters_on(self.family.encoder)
        return found.reach if found else 0

    def sequences(self, frames: int) -> AbstractContextManager[None]:
        """Within it, images that are encoded are sequences of so many frames."""
        found = adapters_on(self.family.encoder)
        return found.sequences(frames) if found else nullcontext()

    @property
    def structures(self) -> tuple[str, ...]:
        """The names of the structures that can be asked for by their class, in order."""
        return structures_of(self._active())

    @property
    def takes_clicks(self) -> bool:
        """Not where an adapter gives a mask for each class at once."""
        return not any(isinstance(part, ClassMasks) for part in self._active())

    @property
    def padding(self) -> Float[Tensor, "3"] | None:
        """The mean colour for a base alone whose family pads images, as its own predictor does;
        adapters are trained on squashed images."""
        found = adapters_on(self.family.encoder)
        if (found and found.active) or not self.family.keeps_proportions:
            return None
        return self.normalisation[0].flatten()

    @property
    def normalisation(self) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
        """Mean and standard deviation of an image's channels, in [0, 255]."""
        found = normalisation_of(view(self.sam), self._active())
        assert found is not None
        device = next(self.sam.parameters()).device
        return found[0].to(device), found[1].to(device)

    def encoder_tensors(self) -> dict[str, Tensor]:
        """The image encoder's, without what adapters add elsewhere, and the normalisation."""
        elsewhere = (".prompt_encoder.", ".mask_decoder.")
        state = self.family.encoder.state_dict(keep_vars=True)
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
        image, maps = self.family.encode(((images - mean) / std).to(self.family.dtype))
        adapters = adapters_on(self.family.encoder)
        return Embedding(image, self.image_size, maps | (adapters.handed_on() if adapters else {}))

    def _decode(self, embedding: Embedding, prompts: Prompts) -> Masks:
        if not self.takes_clicks:
            return self._decode_every_class(embedding, prompts)
        prompts = self._asked(embedding, prompts)
        found = self._answers(embedding, prompts)
        if prompts.classes is None or not self.classes_exclude:
            return found
        by_name = found
        if not _is_every_class(prompts, len(self.structures)):
            by_name = self._answers(embedding, self._asked(embedding, Prompts()))
        odds = against_other_classes(found.all_logits, by_name.low_res_logits, prompts.classes)
        return replace(found, all_logits=odds)

    def _answers(self, embedding: Embedding, prompts: Prompts) -> Masks:
        """To each prompt by itself."""
        assert prompts.shape is not None
        flat = {name: each.flatten(0, 1) for name, each in prompts.given.items()}
        with self.given(embedding.maps, flat.get("classes"), _pointed_at(flat)) as presence_of:
            sparse, dense = self.family.embed(flat)
            positions, count = self.family.positions(), prompts.shape[1]
            logits, iou = self.family.predict(
                DecoderInput(embedding.image, embedding.maps, positions, sparse, dense, count)
            )
            presence = presence_of()
        return Masks(
            logits.unflatten(0, prompts.shape),
            iou.unflatten(0, prompts.shape),
            embedding.image_size,
            None if presence is None else presence.unflatten(0, prompts.shape),
        )

    @property
    def classes_exclude(self) -> bool:
        """Whether a pixel is of one of the named structures at most, as `ClassPrompts` has it."""
        naming = [p for p in self._active() if isinstance(p, ClassPrompts | PromptGenerator)]
        return bool(naming) and isinstance(naming[-1], ClassPrompts) and len(self.structures) > 1

    @property
    def generates_prompts(self) -> bool:
        """Where an adapter makes the prompt of a class, and needs no other."""
        return any(isinstance(part, PromptGenerator) for part in self._active())

    def _decode_every_class(self, embedding: Embedding, prompts: Prompts) -> ClassMaps:
        """By the prompt encoder's embedding of no prompt, and one mask for each class."""
        labels = prompts.labels
        if prompts.given.keys() & {"boxes", "masks"} or (labels is not None and labels.max() >= 0):
            raise ValueError(
                "this adapter finds all its structures at once (ClassMasks), and takes neither "
                "clicks nor boxes nor masks; give no prompt, or classes"
            )
        self._check_classes(prompts.classes)
        images = len(embedding)
        with self.given(embedding.maps, None):
            sparse, dense = self.family.embed({})
            logits, iou = self.family.predict(
                DecoderInput(
                    embedding.image,
                    embedding.maps,
                    self.family.positions(),
                    sparse.expand(images, *sparse.shape[1:]),
                    dense.expand(images, *dense.shape[1:]),
                    count=1,
                )
            )
        return ClassMaps.of(logits, embedding.image_size, prompts.classes, iou[:, 1:])

    def _active(self) -> list[Part]:
        """The parts of the active adapters, in order."""
        found = adapters_on(self.family.encoder)
        return [part for name in found.active for part in found[name].parts] if found else []

    def _asked(self, embedding: Embedding, prompts: Prompts) -> Prompts:
        """The prompts, or every class where there are none."""
        structures = self.structures
        if prompts.shape is None:
            if not structures:
                raise ValueError(
                    "no prompt: give points with labels, boxes, or masks; a model without class "
                    "prompts has nothing to segment without"
                )
            prompts = every_class(len(embedding), len(structures), embedding.image.device)
        self._check_classes(prompts.classes)
        is_alone = prompts.given.keys() == {"classes"}
        return _with_a_point(prompts) if is_alone and not self.generates_prompts else prompts

    def _check_classes(self, classes: Int[Tensor, "b k"] | None) -> None:
        structures = self.structures
        if classes is None:
            return
        if not structures:
            raise ValueError(
                "classes are given, and this model has no class prompts; give points or boxes, or "
                'inject a method with structures, such as "samus_plus"'
            )
        or_none = ", or -1 for none" if self.takes_clicks else ""
        low, high = (int(each) for each in classes.aminmax())
        if high >= len(structures) or (low < 0 and not self.takes_clicks):
            raise ValueError(
                f"classes go from {low} to {high}: expected 0 to {len(structures) - 1} "
                f"({', '.join(structures)}){or_none}"
            )

    @contextmanager
    def given(
        self,
        maps: Mapping[str, Tensor],
        classes: Int[Tensor, "p"] | None,
        pointed_at: Bool[Tensor, "p"] | None = None,
    ) -> Iterator[Callable[[], Float[Tensor, "p"] | None]]:
        """Within it, parts in the decoder read what belongs to these images and prompts.

        Args:
            maps: what an embedding's images handed on.
            classes: of the prompts, all images' in one row.
            pointed_at: whether a click or a box says that their structure is there; None: none
                does.

        Yields:
            What tells, after the decoder's forward, the presence that was judged.
        """
        found = adapters_on(self.family.encoder)
        if found is None:
            yield lambda: None
            return
        values = dict(maps)
        if classes is not None:
            values |= {f"{name}.{CLASSES}": classes for name in found.active}
        if pointed_at is not None:
            values |= {f"{name}.{POINTED_AT}": pointed_at for name in found.active}
        with found.given(values):
            contexts = [found[name].context.values for name in found.active]
            yield lambda: next((v[PRESENCE] for v in contexts if PRESENCE in v), None)


def _pointed_at(prompts: Mapping[str, Tensor]) -> Bool[Tensor, "p"] | None:
    """Of prompts, all images' in one row, whether each has a click inside or a box."""
    if "boxes" in prompts:
        return torch.ones_like(prompts["boxes"][:, 0], dtype=torch.bool)
    return (prompts["labels"] == 1).any(dim=-1) if "labels" in prompts else None


def _is_every_class(prompts: Prompts, structures: int) -> bool:
    """Whether prompts are the names of all structures, in order, and nothing else; False where
    their values cannot be looked at."""
    classes, labels = prompts.classes, prompts.labels
    assert classes is not None
    unknown = torch.compiler.is_compiling() or classes.is_meta
    if unknown or "boxes" in prompts.given or "masks" in prompts.given:
        return False
    every = torch.arange(structures, device=classes.device)
    return (
        classes.shape[1] == structures
        and bool((classes == every).all())
        and (labels is None or bool((labels < 0).all()))
    )


def _with_a_point(prompts: Prompts) -> Prompts:
    """With a point that is none: so a class alone is to the decoder what it is beside others that
    have a click, in one batch."""
    assert prompts.classes is not None
    none = torch.full_like(prompts.classes[..., None], -1)
    return replace(prompts, points=torch.zeros(*none.shape, 2, device=none.device), labels=none)


def as_promptable(model: nn.Module) -> Promptable:
    """`model` as a promptable model, which keeps it as its own.

    Args:
        model: what `Segmenter` takes, or a `Promptable` already; wrapped or not.

    Raises:
        TypeError: it is of no family that can be prompted.
    """
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    if isinstance(model, Promptable):
        return model
    if family_of(model) is not None:
        return Segmenter(model)
    raise TypeError(
        f"a {type(model).__module__}.{type(model).__qualname__} cannot be prompted; expected "
        f"{titles()}, or an adapterkit.promptable.protocol.Promptable; "
        + see("encoders.md", "segment-anything")
    )
