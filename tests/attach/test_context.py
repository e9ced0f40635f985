"""What belongs to one forward pass is computed once, read by parts, handed on, and freed."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from segment_anything.modeling import Sam
from torch import Tensor

import adapterkit as ak
from adapterkit.attach.attachment import Attachment
from adapterkit.attach.context import Frames, Read
from adapterkit.parts import CNNBranch, FeatureAdapter, Resize
from adapterkit.training.checkpointing import checkpointed_blocks
from adapterkit.training.embeddings import cached_embeddings

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@dataclass
class AddMean:
    """A hook on the decoder that adds the mean of what it reads, repeated for its prompts."""

    read: Read

    def __call__(self, module: Any, args: Any, output: Any) -> Any:
        value = self.read().mean(dim=(1, 2, 3))
        return output + value.repeat_interleave(len(output) // len(value))[:, None, None, None]


@dataclass(frozen=True)
class Detail:
    """A part that reads a map of the CNN branch in the mask decoder."""

    stride: int

    def attach(self, to: Attachment) -> None:
        read = to.context.reads(f"cnn_branch.stride_{self.stride}", in_decoder=True)
        assert read.width == {1: 4, 2: 8}[self.stride]
        features = to.decoder("Detail").mask_features
        assert features is not None
        to.after(features, AddMean(read))


@pytest.fixture
def detailed(sam: Sam) -> Sam:
    return ak.inject(sam, [Resize(64), CNNBranch(stem_channels=4), Detail(1), Detail(2)])


def context_of(sam: Sam) -> Any:
    found = ak.adapters_of(sam)
    assert found is not None
    return found["default"].context


def decode(sam: Sam, embedding: Tensor) -> Tensor:
    points = torch.full((len(embedding), 1, 2), 20.0)
    sparse, dense = sam.prompt_encoder((points, torch.ones(len(embedding), 1)), None, None)
    return sam.mask_decoder(
        embedding[:1], sam.prompt_encoder.get_dense_pe(), sparse[:1], dense[:1], False
    )[0]


def test_what_nobody_reads_any_more_is_freed(sam: Sam):
    ak.inject(sam, [Resize(64), CNNBranch(stem_channels=4)])
    sam.image_encoder(IMAGES)
    assert list(context_of(sam).values) == [f"cnn_branch.map_{i}" for i in range(3)]
    with torch.no_grad():
        sam.image_encoder(IMAGES)
    assert context_of(sam).values == {}


def test_a_pass_computes_once(sam: Sam, monkeypatch: pytest.MonkeyPatch):
    ak.inject(sam, [Resize(64), CNNBranch(stem_channels=4)])
    [[_, compute]] = context_of(sam)._computes
    calls: list[Tensor] = []
    compute.__self__.stem.register_forward_hook(lambda module, args, out: calls.append(out))
    sam.image_encoder(IMAGES)
    assert len(calls) == 1


@torch.no_grad()
def test_the_decoder_reads_the_maps_of_the_embedding_that_it_decodes(detailed: Sam):
    adapters = ak.adapters_of(detailed)
    assert adapters is not None
    one, other = IMAGES[:1], IMAGES[1:]
    embedding = detailed.image_encoder(one)
    maps = adapters.handed_on()
    assert {key: tuple(value.shape) for key, value in maps.items()} == {
        "default.cnn_branch.stride_1": (1, 4, 64, 64),
        "default.cnn_branch.stride_2": (1, 8, 32, 32),
    }
    expected = decode(detailed, embedding)  # as SamPredictor does, right after the image
    detailed.image_encoder(other)
    assert not torch.equal(decode(detailed, embedding), expected)
    with adapters.given(maps):
        assert torch.equal(decode(detailed, embedding), expected)
    assert not torch.equal(decode(detailed, embedding), expected)


def test_a_copy_has_no_values_and_reads_its_own(detailed: Sam):
    detailed.image_encoder(IMAGES)
    replica = copy.deepcopy(detailed)
    assert context_of(replica).values == {}
    replica.image_encoder(IMAGES[:1])
    assert len(context_of(detailed).values["cnn_branch.map_0"]) == 2
    assert len(context_of(replica).values["cnn_branch.map_0"]) == 1


def test_reading_before_an_image_says_so(detailed: Sam):
    with pytest.raises(RuntimeError, match=r"cnn_branch\.stride_1 belongs to an image that has"):
        decode(detailed, torch.zeros(1, 32, 4, 4))


@pytest.mark.parametrize("parts", [[Detail(1)], [Detail(1), CNNBranch()], [CNNBranch(), Detail(3)]])
def test_what_no_earlier_part_computes_is_refused(sam: Sam, parts: list[Any]):
    with pytest.raises(ValueError, match=r"a part reads 'cnn_branch.stride_\d', which no part bef"):
        ak.inject(sam, parts)


@dataclass(frozen=True)
class Halve:
    """A part that computes one value too few."""

    def attach(self, to: Attachment) -> None:
        to.context.computes({"a": 3, "b": 3}, halves)
        to.context.reads("a")


def halves(image: Tensor) -> Iterator[Tensor]:
    yield image / 2


def test_a_part_that_computes_less_than_it_says_is_an_error(sam: Sam):
    ak.inject(sam, [Resize(64), Halve(), FeatureAdapter()])
    with pytest.raises(ValueError, match="argument 2 is"):
        sam.image_encoder(IMAGES)


@dataclass
class Average:
    """What each frame's tokens are short of the mean over its sequence."""

    frames: Frames

    def __call__(self, tokens: Tensor) -> Tensor:
        clips = tokens.unflatten(0, (-1, self.frames()))
        return (clips.mean(dim=1, keepdim=True) - clips).flatten(0, 1)


@dataclass(frozen=True)
class OverFrames:
    """A part that replaces tokens by their mean over the sequence."""

    at: str = "block_out"

    def attach(self, to: Attachment) -> None:
        block = to.select((0,))[0]
        to.add_residual(self.at, Average(to.context.reads_frames(reach=3)), block=block)


@pytest.fixture
def averaging(sam: Sam) -> Sam:
    return ak.inject(sam, [Resize(64), FeatureAdapter(at="tokens"), OverFrames()])


@torch.no_grad()
def test_a_pass_knows_how_long_its_sequences_are(averaging: Sam):
    segmenter = ak.Segmenter(averaging)
    images = 255 * torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    alone = segmenter.encode(images).image
    pairs = segmenter.encode(images, frames=2).image
    assert segmenter.reach == 3
    torch.testing.assert_close(pairs[0], pairs[1])
    assert not torch.allclose(pairs[1], pairs[2])
    torch.testing.assert_close(segmenter.encode(images[2:4], frames=2).image, pairs[2:4])
    torch.testing.assert_close(segmenter.encode(images).image, alone)
    with pytest.raises(ValueError, match=r"frames=4, and there are 6 images: expected a whole num"):
        segmenter.encode(images, frames=4)
    with pytest.raises(ValueError, match="frames=0, and"):
        segmenter.encode(images, frames=0)


@torch.no_grad()
def test_a_bare_encoder_is_told_by_its_adapters(averaging: Sam):
    adapters = ak.adapters_of(averaging)
    assert adapters is not None
    images = torch.cat((IMAGES, IMAGES.flip(0)))
    alone = averaging.image_encoder(images)
    with adapters.sequences(frames=2):
        pairs = averaging.image_encoder(images)
        with pytest.raises(ValueError, match="frames=2, and there are 3 images"):
            averaging.image_encoder(images[:3])
    torch.testing.assert_close(pairs[0], pairs[1])
    assert torch.equal(averaging.image_encoder(images), alone)
    ak.activate(averaging)
    assert adapters.reach == 0


def test_the_length_of_sequences_outlives_the_pass_for_blocks_that_are_run_again(sam: Sam):
    # Within the block, so that it is run again with it.
    ak.inject(sam, [Resize(64), FeatureAdapter(at="tokens"), OverFrames(at="attn_in")])
    segmenter = ak.Segmenter(sam).train()
    images = 255 * torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = ak.adapters_of(sam)
    assert found is not None
    tensor = found["default"].added.get_parameter("feature_adapter.tokens.up.weight")
    target = torch.rand(4, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    (1e4 * target * segmenter.encode(images, frames=2).image).sum().backward()
    expected, tensor.grad = tensor.grad, None
    assert expected is not None
    assert expected.any()
    with checkpointed_blocks(segmenter):
        (1e4 * target * segmenter.encode(images, frames=2).image).sum().backward()
    torch.testing.assert_close(tensor.grad, expected)


def test_what_depends_on_other_frames_is_not_kept(averaging: Sam, tmp_path: Path):
    averaging.requires_grad_(False)
    with (
        pytest.raises(ValueError, match="that of a frame depends on 3 frames before and after it"),
        cached_embeddings(ak.Segmenter(averaging), tmp_path),
    ):
        pass
