"""Detail: a small U-Net on the image, whose maps sharpen every mask of the mask decoder."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Context, Frames, Read
from adapterkit.encoders.prompt_decoder import for_each_prompt
from adapterkit.parts.class_prompts import CLASSES
from adapterkit.parts.registry import register_part

_LEVELS = 5


class DetailNet(nn.Module):
    """A U-Net of an image that meets the image embedding an eighth of its size up.

    Five levels of two 3x3 convolutions with batch normalisation and ReLU, of w to 16w channels, max
    pooling between them, up-convolutions and concatenated skips on the way back. Beside the skip at
    stride 8 stands the image embedding, through a 1x1 convolution to 8w channels.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, for the U-Net; that a pretrained encoder
    beside it helps where images are few: nnSAM, arXiv 2309.16967.

    Args:
        in_channels: of the image.
        embedding_channels: of the image embedding.
        width: w.
        channels: of the maps that it gives.
        reach: of frames of a sequence, to how many before and after it `OverTime` looks in the
            deepest level and in each on the way back; 0: to none.
    """

    def __init__(
        self,
        in_channels: int,
        embedding_channels: int,
        width: int,
        channels: int,
        reach: int = 0,
    ):
        super().__init__()
        widths = [width * 2**level for level in range(_LEVELS)]
        self.down = nn.ModuleList(
            _two_convolutions(narrow, wide) for narrow, wide in pairwise([in_channels, *widths])
        )
        self.embedding = nn.Conv2d(embedding_channels, widths[-2], 1)
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2)
            for wide, narrow in pairwise(reversed(widths))
        )
        joined = [2 * narrow for narrow in reversed(widths[:-1])]
        joined[0] += widths[-2]
        given = [*reversed(widths[1:-1]), channels]
        self.up = nn.ModuleList(
            _two_convolutions(wide, narrow) for wide, narrow in zip(joined, given, strict=True)
        )
        self.over_time = nn.ModuleList(
            OverTime(channels, reach) for channels in ([widths[-1], *given] if reach else [])
        )

    def forward(
        self,
        image: Float[Tensor, "b c H W"],
        embedding: Float[Tensor, "b d h w"],
        frames: int = 1,
    ) -> Float[Tensor, "b channels H W"]:
        """Maps of the image's size, which both sides of the image must be multiples of 16 for."""
        over_time = iter(self.over_time)

        def seen_over_time(maps: Tensor) -> Tensor:
            return next(over_time)(maps, frames) if self.over_time else maps

        skips: list[Tensor] = []
        for level, convolve in enumerate(self.down):
            image = convolve(F.max_pool2d(image, 2) if level else image)
            skips.append(image)
        maps = seen_over_time(skips.pop())
        for enlarge, convolve in zip(self.enlarge, self.up, strict=True):
            skip = skips.pop()
            joined = [enlarge(maps), skip]
            if len(skips) == _LEVELS - 2:
                joined.append(_resized(self.embedding(embedding), skip))
            maps = seen_over_time(convolve(torch.cat(joined, dim=1)))
        return maps


class OverTime(nn.Module):
    """Each channel of a frame's maps becomes a weighted sum of those of the frames around it.

    The weights start at 1/8, 3/4 and 1/8 of the frames before, at and after it: a training moves
    them little, and through several layers wider ones would flatten a beat. Beyond its ends a
    sequence stands still.

    Args:
        channels: of the maps.
        reach: how many frames before and after its own.
    """

    def __init__(self, channels: int, reach: int):
        super().__init__()
        self.reach = reach
        weights = torch.zeros(2 * reach + 1, channels)
        weights[reach] = 3 / 4
        weights[reach - 1] = weights[reach + 1] = 1 / 8
        self.weights = nn.Parameter(weights)

    def forward(
        self, maps: Float[Tensor, "b channels h w"], frames: int
    ) -> Float[Tensor, "b channels h w"]:
        of_sequences = maps.unflatten(0, (-1, frames))
        times = torch.arange(frames, device=maps.device)
        weighted = [
            of_sequences[:, (times + shift).clamp(0, frames - 1)] * weights[:, None, None]
            for shift, weights in enumerate(self.weights, start=-self.reach)
        ]
        return torch.stack(weighted).sum(dim=0).flatten(0, 1)


def _two_convolutions(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)


def _resized(maps: Float[Tensor, "b c h w"], like: Tensor) -> Float[Tensor, "b c H W"]:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class ComputeMaps:
    """Computes the maps once for each image, at the end of the encoder's forward."""

    def __init__(self, network: DetailNet, frames: Frames):
        self.network = network
        self.frames = frames

    def __call__(self, image: Tensor, embedding: Tensor) -> Iterator[Tensor]:
        dtype = self.network.embedding.weight.dtype
        yield self.network(image.to(dtype), embedding.to(dtype), self.frames())


class JoinMaps:
    """A forward hook on the mask features: enlarged to the image's size, and the maps beside them.

    The last channel is one, so that what is summed with it can have a bias.

    Args:
        read: gives the maps.
        channels: of the features; an output of another number is something else.
    """

    def __init__(self, read: Read, channels: int):
        self.read = read
        self.channels = channels

    def __call__(self, module: nn.Module, args: object, output: Tensor) -> Tensor:
        if output.shape[1] != self.channels:
            return output
        maps = self.read().to(output.dtype)
        maps = for_each_prompt(maps, output.shape[0] // maps.shape[0])
        one = torch.ones_like(maps[:, :1])
        return torch.cat([_resized(output, maps), maps, one], dim=1)


class JoinWeights:
    """A forward hook on what makes a mask token the weights of the features: those of the maps.

    Args:
        weights: of a mask token.
        of_classes: those that each class has beside; None: it has none.
        context: of the adapter; it tells the classes.
    """

    def __init__(self, weights: nn.Linear, of_classes: nn.Embedding | None, context: Context):
        self.weights = weights
        self.of_classes = of_classes
        self.context = context

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        weights = self.weights(args[0].to(self.weights.weight.dtype))
        classes = self.context.values.get(CLASSES)
        if self.of_classes is not None and classes is not None:
            own = _CLASS_SCALE * self.of_classes(classes.clamp(min=0))
            weights = weights + own.masked_fill(classes[:, None] < 0, 0).view_as(weights)
        return torch.cat([output, weights.to(output.dtype)], dim=-1)


_CLASS_SCALE = 32
"""A step of Adam moves a number by the learning rate at most, whatever its gradient: from zero, the
weights of a class would take hundreds of steps to what a network's last layer starts with."""


class FitMaskPrompt:
    """A forward pre-hook that brings a mask of the image's size to that of mask prompts."""

    def __init__(self, size: tuple[int, int]):
        self.size = size

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (mask,) = args
        if tuple(mask.shape[-2:]) == self.size:
            return args
        return (F.interpolate(mask, self.size, mode="bilinear", align_corners=False),)


@register_part
@dataclass(frozen=True)
class Detail:
    """Sharpens masks with the maps of a small U-Net, made once for each image.

    The mask decoder sums its features, of a quarter of the image's size, with weights that it makes
    of a mask token. With this part its features are enlarged to the image's size, the maps of a
    `DetailNet` stand beside them, and a linear layer makes of the mask token their weights too: so
    the masks are of the image's size. The linear layer starts at zero, so that the masks are the
    base's, interpolated. A further prompt of an image costs no more than a sum of its maps.

    Args:
        width: channels of the U-Net's first level; the deepest has 16 times as many.
        channels: of the maps.
        classes: the number of structures that `ClassPrompts` name, if each is to have weights of
            its own for the maps, beside those that come of its mask token. They are learned as fast
            as the last layer of a U-Net, where the way through the decoder takes longer.
        reach: of frames of a sequence, to how many before and after it each of the U-Net's five
            levels looks; 0: each frame has maps of its own.
    """

    width: int = 18
    channels: int = 32
    classes: int = 0
    reach: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 256 or not 1 <= self.channels <= 1024:
            raise ValueError(f"{self}: expected a width of 1 to 256 and 1 to 1024 channels")
        if not 0 <= self.classes <= 65536:
            raise ValueError(f"{self}: expected 0 to 65536 classes")
        if not 0 <= self.reach <= 16:
            raise ValueError(f"{self}: expected a reach of 0 to 16 frames")

    def attach(self, to: Attachment) -> None:
        decoder = to.decoder("Detail")
        if decoder.mask_features is None:
            raise ValueError(
                f"Detail: the mask decoder of this {to.view.family} model makes more of its mask "
                "features than masks, so that no maps can stand beside them; leave it out"
            )
        if to.image_size % 2 ** (_LEVELS - 1):
            raise ValueError(
                f"Detail: the input is {to.image_size} pixels wide; expected a multiple of "
                f"{2 ** (_LEVELS - 1)}"
            )
        network = DetailNet(
            to.view.in_channels, decoder.width, self.width, self.channels, self.reach
        )
        weights = nn.Linear(decoder.width, self.channels + 1)
        nn.init.zeros_(weights.weight)
        nn.init.zeros_(weights.bias)
        of_classes = None
        to.add("detail.network", network)
        to.add("detail.weights", weights)
        if self.classes:
            of_classes = nn.Embedding(self.classes, self.channels + 1)
            nn.init.zeros_(of_classes.weight)
            to.add("detail.of_classes", of_classes)
        frames = to.context.reads_frames(_LEVELS * self.reach)
        to.context.computes_last({"detail.maps": self.channels}, ComputeMaps(network, frames))
        read = to.context.reads("detail.maps", in_decoder=True)
        to.before(decoder.mask_prompt, FitMaskPrompt((4 * decoder.grid[0], 4 * decoder.grid[1])))
        to.after(decoder.mask_features, JoinMaps(read, decoder.mask_channels))
        for makes_weights in decoder.mask_weights:
            to.after(makes_weights, JoinWeights(weights, of_classes, to.context))
