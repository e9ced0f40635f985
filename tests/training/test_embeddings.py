"""A frozen image encoder sees each image once, and training does not notice."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Subset

import adapterkit as ak
from adapterkit.data.collections.camus import CamusDataset, find_frames
from adapterkit.training.accelerator import make_accelerator
from adapterkit.training.embeddings import cached_embeddings
from adapterkit.training.loop import train
from adapterkit.training.settings import Settings
from adapterkit.training.state import Epoch
from tests.models import ECHO


@pytest.fixture(scope="module")
def echo(phantom: Path) -> CamusDataset:
    return CamusDataset(find_frames(phantom)[:6], image_size=64)


def medsam() -> ak.Segmenter:
    torch.manual_seed(0)
    return ak.Segmenter(ak.inject(ak.build_sam(ECHO, seed=0), "medsam", image_size=64))


def run(segmenter: ak.Segmenter, echo: CamusDataset, **options: Any) -> list[Epoch]:
    return train(
        segmenter,
        echo,
        Subset(echo, [0, 1]),
        Settings(epochs=3, batch_size=2, learning_rate=1e-3),
        accelerator=make_accelerator(),
        on_improvement=lambda _: None,
        **options,
    )


def encoded_images(segmenter: ak.Segmenter) -> list[int]:
    """A list that grows by the number of images whenever the encoder runs."""
    counts: list[int] = []
    segmenter.sam.image_encoder.register_forward_pre_hook(
        lambda _, images: counts.append(len(images[0]))
    )
    return counts


def test_training_is_the_same_and_encodes_each_image_once(
    echo: CamusDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plain, cached, again = medsam(), medsam(), medsam()
    expected = run(plain, echo)
    counts = encoded_images(cached)
    found = run(cached, echo, embeddings=tmp_path / "embeddings")
    assert sum(counts) == len(echo)
    assert "the image encoder is not trained; embeddings are kept in" in capsys.readouterr().out
    for one, other in zip(expected, found, strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.validation_dice == pytest.approx(one.validation_dice, abs=1e-3)
    # A further run, of the same base and images, encodes none.
    counts = encoded_images(again)
    assert run(again, echo, embeddings=tmp_path / "embeddings") == found
    assert counts == []


def test_a_trained_encoder_keeps_none(echo: CamusDataset, tmp_path: Path):
    samus = ak.Segmenter(ak.inject_samus(ak.build_sam(ECHO, seed=0), 64))
    counts = encoded_images(samus)
    run(samus, echo, embeddings=tmp_path / "embeddings")
    assert sum(counts) > len(echo)
    assert not (tmp_path / "embeddings").exists()
    with (
        pytest.raises(ValueError, match="embeddings cannot be kept while the image encoder"),
        cached_embeddings(samus, tmp_path / "embeddings"),
    ):
        pass


def images(seed: int = 0) -> Tensor:
    return 255 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_what_an_embedding_depends_on_is_told_apart(tmp_path: Path):
    one = medsam()
    other_weights = medsam()
    with torch.no_grad():
        other_weights.sam.image_encoder.get_parameter("neck.1.bias").add_(1)
    other_normalisation = medsam()
    other_normalisation.sam.get_buffer("pixel_mean").add_(20)
    with_adapter = medsam()
    ak.inject(with_adapter.sam, "msa", image_size=64, name="msa").requires_grad_(False)
    for segmenter in (one, other_weights, other_normalisation, with_adapter, one):
        for seed in (0, 1):
            expected = segmenter.encode(images(seed))
            with cached_embeddings(segmenter, tmp_path):
                for _ in range(2):
                    torch.testing.assert_close(segmenter.encode(images(seed)).image, expected.image)
            with torch.autocast("cpu", torch.bfloat16), cached_embeddings(segmenter, tmp_path):
                found = segmenter.encode(images(seed))
                torch.testing.assert_close(found.image.float(), expected.image, rtol=0.1, atol=0.1)
    assert len(list(tmp_path.iterdir())) == 4 * 2 * 2 * 2


def test_a_damaged_file_is_named(tmp_path: Path):
    segmenter = medsam()
    with cached_embeddings(segmenter, tmp_path):
        segmenter.encode(images())
        damaged = next(iter(tmp_path.iterdir()))
        damaged.write_bytes(damaged.read_bytes()[:100])
        with pytest.raises(ValueError, match=f"{damaged.name} is no whole image embedding"):
            segmenter.encode(images())
