"""Image embeddings on disk, so that an image encoder that is not trained sees each image once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapterkit.promptable.protocol import Embedding, Promptable
from adapterkit.system.digests import tensors_digest
from adapterkit.system.files import save_tensors


class EmbeddingCache:
    """`Promptable.encode`, of images that it has seen before from files.

    A file is named by what its embedding depends on: the image's pixels, the encoder's tensors and
    parts, the normalisation and the precision. Embeddings of several models and data sets can
    share a folder. An image's is its own, whatever sequence it is a frame of: see
    `cached_embeddings`.

    Args:
        segmenter: whose encoder is frozen, as it is now.
        folder: for the files; made if it is not there.
    """

    def __init__(self, segmenter: Promptable, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._encode = segmenter.encode
        self._encoder = tensors_digest(
            segmenter.encoder_tensors(), f"{segmenter.image_size} {segmenter.parts}", size=64
        )

    def __call__(self, images: Float[Tensor, "b 3 H W"], frames: int = 1) -> Embedding:
        paths = [self._path(image) for image in images]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if missing:
            with torch.no_grad():
                computed = self._encode(images[missing])
            for i, embedding in zip(missing, computed, strict=True):
                save_tensors(paths[i], _tensors(embedding.map(Tensor.cpu)), {})
        return _stack([_read(path) for path in paths], images)

    def _path(self, image: Float[Tensor, "3 H W"]) -> Path:
        device = image.device.type
        precision = image.dtype
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        digest = blake2b(f"{self._encoder} {precision} {tuple(image.shape)}".encode())
        digest.update(image.detach().cpu().contiguous().numpy().data)
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"


@contextmanager
def cached_embeddings(segmenter: Promptable, folder: Path) -> Iterator[None]:
    """Within it, `segmenter` takes the embeddings of images that it has seen before from `folder`.

    Raises:
        ValueError: the image encoder, or an adapter on it, is trained, or looks from an image to
            others of its sequence.
    """
    if not has_frozen_encoder(segmenter):
        raise ValueError(
            "embeddings cannot be kept while the image encoder, or an adapter on it, is trained"
        )
    if segmenter.reach:
        raise ValueError(
            "embeddings cannot be kept of a model with temporal parts: that of a frame depends on "
            f"{segmenter.reach} frames before and after it, which differ from clip to clip; train "
            "without keeping embeddings"
        )
    segmenter.encode = EmbeddingCache(segmenter, folder)
    try:
        yield
    finally:
        del segmenter.encode


def has_frozen_encoder(segmenter: Promptable) -> bool:
    """Whether training changes nothing that an image embedding depends on."""
    return not any(each.requires_grad for each in segmenter.encoder_tensors().values())


def _tensors(embedding: Embedding) -> dict[str, Tensor]:
    maps = {f"map {name}": value.contiguous() for name, value in embedding.maps.items()}
    return {"embedding": embedding.image, **maps}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(path)
        return {"embedding": tensors.pop("embedding"), **tensors}
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no whole image embedding ({error}); delete it") from error


def _stack(found: Sequence[dict[str, Tensor]], images: Float[Tensor, "b 3 H W"]) -> Embedding:
    stacked = {
        name: torch.cat([each[name] for each in found]).to(images.device) for name in found[0]
    }
    maps = {name.removeprefix("map "): value for name, value in stacked.items()}
    return Embedding(maps.pop("embedding"), images.shape[-1], maps)
