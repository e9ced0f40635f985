"""What belongs to one forward pass of an adapted model, in one object for each adapter.

A part that computes something from the image (the CNN branch's maps, say) declares it, and parts
that need it declare that they read it, while the adapter is built:

    to.context.computes({"cnn_branch.stride_1": 64, "cnn_branch.stride_2": 128}, compute)
    read = to.context.reads("cnn_branch.stride_2")

At each pass, `compute(image)` runs once, when the image reaches the patch embedding, and yields
those values, of so many channels each, in that order; `read()` gives one later in the pass, and
`read.width` is its number of channels. What nobody reads is dropped as it
comes. A block that only reads can be run again for activation checkpointing. The values are freed
at the end of the encoder's forward where no gradients are recorded, and else at the next pass, so
they belong to one pass at a time: run one model from several threads only behind a lock.

A decoder runs after the encoder, and perhaps several times, or with an embedding of long ago. What
is read there is declared by `reads(name, in_decoder=True)`, outlives the encoder, and travels with
the embedding:

    embedding = Embedding(sam.image_encoder(images), adapters.handed_on())     # encode
    with adapters.given(embedding.maps):                                  # each decode
        sam.mask_decoder(...)

where `adapters` is `ak.adapters_of(model)`. Each value is a tensor with one entry per image, first
axis first; a part that reads it for several prompts of each image repeats it
(`value.repeat_interleave(prompts // len(value), dim=0)`). Without `given`, as where `SamPredictor`
calls encoder and decoder, `read()` gives the values of the last encoded image.

A batch of N sequences of T frames each travels as N * T images, those of a sequence one after the
other. What looks from a frame to others declares so, and is told T in the pass:

    frames = to.context.reads_frames(reach=2)

`Promptable.encode(images, frames=T)` says how long the sequences are; of a bare encoder,

    with adapters.sequences(frames=T):
        encoder(images)

Else each image is a sequence of one frame.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Compute = Callable[[Tensor], Iterable[Tensor]]
"""Values of a pass, of the image that the patch embedding sees, (B, C, H, W)."""

ComputeLast = Callable[[Tensor, Tensor], Iterable[Tensor]]
"""Values of a pass, of the image that the encoder was given and of its output."""


class Context:
    """The values of the present pass, by name, and how they are computed.

    A copy starts without values: they belong to one pass, and may be part of its graph.

    Attributes:
        values: of the present pass, by name.
        frames: of each sequence in the present pass.
        reach: how many frames before and after it an image's embedding depends on.
    """

    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}
        self._image: Tensor | None = None
        self._computes: list[tuple[dict[str, int], Compute]] = []
        self._computes_last: list[tuple[dict[str, int], ComputeLast]] = []
        self._read: set[str] = set()
        self._read_in_decoder: set[str] = set()
        self.frames = 1
        self.reach = 0
        self._next_frames = 1

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "values": {}, "_image": None, "frames": 1, "_next_frames": 1}

    @property
    def computes_at_the_end(self) -> bool:
        """Whether something is computed of the encoder's output."""
        return bool(self._computes_last)

    @property
    def is_used(self) -> bool:
        """Whether something is computed in a pass."""
        return bool(self._computes or self._computes_last or self.reach)

    def computes(self, widths: Mapping[str, int], compute: Compute) -> None:
        """Let `compute(image)` yield the values of these names, in order, at each pass.

        Args:
            widths: the channels of each value, by its name.
            compute: an object rather than a closure, so that a deep copy has one of its own.
        """
        self._computes.append((dict(widths), compute))

    def computes_last(self, widths: Mapping[str, int], compute: ComputeLast) -> None:
        """Let `compute(image, embedding)` yield values at the end of each pass, for the decoder.

        Args:
            widths: the channels of each value, by its name.
            compute: of the encoder's input, (B, C, H, W), and its output; an object rather than a
                closure, so that a deep copy has one of its own.
        """
        self._computes_last.append((dict(widths), compute))

    def reads(self, name: str, in_decoder: bool = False) -> "Read":
        """What gives the value of this name, in a pass.

        Args:
            name: one that an earlier part computes.
            in_decoder: it is read after the encoder's forward.

        Raises:
            ValueError: no earlier part computes it.
        """
        computed: dict[str, int] = {}
        for widths, _ in (*self._computes, *self._computes_last):
            computed |= widths
        if name not in computed:
            raise ValueError(
                f"a part reads {name!r}, which no part before it computes; there is "
                f"{', '.join(computed) or 'nothing'}. Put the part that computes it first"
            )
        (self._read_in_decoder if in_decoder else self._read).add(name)
        return Read(self, name, computed[name])

    def reads_frames(self, reach: int) -> "Frames":
        """What tells a part that looks from a frame to others how long the sequences are.

        Args:
            reach: to how many frames before and after; those of several parts add up.
        """
        self.reach += reach
        return Frames(self)

    @contextmanager
    def sequences(self, frames: int) -> Iterator[None]:
        """Passes that begin within it are of sequences of so many frames."""
        before, self._next_frames = self._next_frames, frames
        try:
            yield
        finally:
            self._next_frames = before

    def begin(self, image: Tensor) -> None:
        """Start a pass: compute what is read in it.

        Raises:
            ValueError: the images are no whole number of sequences, where that matters.
        """
        if self.reach:
            check_frames(image.shape[0], self._next_frames)
        # It stays beyond `sequences`, for blocks that are run again in the backward pass.
        self.frames = self._next_frames
        read = self._read | self._read_in_decoder
        values: dict[str, Tensor] = {}
        for widths, compute in self._computes:
            for name, value in zip(widths, compute(image), strict=True):
                if name in read:
                    values[name] = value
        self.values = values

    def take(self, image: Tensor) -> None:
        """Keep the image that the encoder is given, where it is read at the end."""
        if self._computes_last:
            self._image = image

    def end(self, embedding: Tensor) -> None:
        """End the encoder's part of a pass: compute what comes last, and free what nobody can read
        any more."""
        if self._image is not None:
            for widths, compute in self._computes_last:
                last = compute(self._image, embedding)
                self.values |= dict(zip(widths, last, strict=True))
            self._image = None
        if not torch.is_grad_enabled():
            self.values = self.handed_on()

    def handed_on(self) -> dict[str, Tensor]:
        """What is read in the decoder."""
        return {name: self.values[name] for name in self.values if name in self._read_in_decoder}

    @contextmanager
    def given(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Within it, these values are those of the pass."""
        before = self.values
        self.values = {**before, **values}
        try:
            yield
        finally:
            self.values = before


def check_frames(images: int, frames: int) -> None:
    """See that images are a whole number of sequences.

    Args:
        images: how many.
        frames: of each sequence.

    Raises:
        ValueError: they are not.
    """
    if frames != 1 and (frames < 1 or images % frames):
        raise ValueError(
            f"frames={frames}, and there are {images} images: expected a whole number of sequences "
            "of so many frames each, those of a sequence one after the other, in one batch "
            "(N * frames, 3, H, W)"
        )


@dataclass(frozen=True)
class Frames:
    """What tells how many frames the sequences of the present pass have.

    Attributes:
        context: of the adapter.
    """

    context: Context

    def __call__(self) -> int:
        """Their number; 1 where images are no sequences."""
        return self.context.frames


@dataclass(frozen=True)
class Read:
    """What gives a value of the present pass.

    Attributes:
        context: of the adapter.
        name: of the value.
        width: its channels.
    """

    context: Context
    name: str
    width: int

    def __call__(self) -> Tensor:
        """The value.

        Raises:
            RuntimeError: there is none, since no image has been encoded.
        """
        if self.name not in self.context.values:
            raise RuntimeError(
                f"{self.name} belongs to an image that has not been encoded; encode it first, and "
                "decode what `encode` gave"
            )
        return self.context.values[self.name]


@dataclass(frozen=True)
class TakeImage:
    """A forward pre-hook on the encoder."""

    context: Context

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.context.take(args[0])


@dataclass(frozen=True)
class BeginPass:
    """A forward pre-hook on the patch embedding."""

    context: Context

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.context.begin(args[0])


@dataclass(frozen=True)
class EndPass:
    """A forward hook on the encoder; `embedding_of` is the view's."""

    context: Context
    embedding_of: Callable[[Any], Tensor]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.context.end(self.embedding_of(output))
