"""Image embeddings on disk, so that an image encoder that is not trained sees each image once."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapterkit.adapters.injection import adapters_of
from adapterkit.encoders.views import view
from adapterkit.promptable.segmenter import Segmenter
from adapterkit.system.files import save_tensors


class EmbeddingCache:
    """`Segmenter.encode`, of images that it has seen before from files.

    A file is named by what its embedding depends on: the image's pixels, the encoder's tensors and
    parts, the normalisation and the precision. Embeddings of several models and data sets can
    share a folder.

    Args:
        segmenter: whose encoder is frozen, as it is now.
        folder: for the files; made if it is not there.
    """

    def __init__(self, segmenter: Segmenter, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._encode = segmenter.encode
        self._encoder = _digest_of_encoder(segmenter)

    def __call__(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        paths = [self._path(image) for image in images]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        if missing:
            with torch.no_grad():
                computed = self._encode(images[missing])
            for i, embedding in zip(missing, computed, strict=True):
                save_tensors(paths[i], {"embedding": embedding.cpu()}, {})
        return torch.stack([_read(path) for path in paths]).to(images.device)

    def _path(self, image: Float[Tensor, "3 H W"]) -> Path:
        device = image.device.type
        precision = image.dtype
        if torch.is_autocast_enabled(device):
            precision = torch.get_autocast_dtype(device)
        digest = blake2b(f"{self._encoder} {precision} {tuple(image.shape)}".encode())
        digest.update(image.detach().cpu().contiguous().numpy().data)
        return self.folder / f"{digest.hexdigest()[:32]}.safetensors"


@contextmanager
def cached_embeddings(segmenter: Segmenter, folder: Path) -> Iterator[None]:
    """Within it, `segmenter` takes the embeddings of images that it has seen before from `folder`.

    Raises:
        ValueError: the image encoder, or an adapter on it, is trained.
    """
    if not has_frozen_encoder(segmenter):
        raise ValueError(
            "embeddings cannot be kept while the image encoder, or an adapter on it, is trained"
        )
    segmenter.encode = EmbeddingCache(segmenter, folder)
    try:
        yield
    finally:
        del segmenter.encode


def has_frozen_encoder(segmenter: Segmenter) -> bool:
    """Whether training changes nothing that an image embedding depends on."""
    return not any(each.requires_grad for each in _own_tensors(segmenter).values())


def _own_tensors(segmenter: Segmenter) -> dict[str, Tensor]:
    """What an embedding depends on: the encoder's tensors, without what adapters add elsewhere."""
    encoder = view(segmenter.sam).encoder
    elsewhere = (".prompt_encoder.", ".mask_decoder.")
    state = encoder.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if not any(e in key for e in elsewhere)}


def _digest_of_encoder(segmenter: Segmenter) -> str:
    digest = blake2b(str(segmenter.image_size).encode())
    found = adapters_of(segmenter.sam)
    if found is not None:
        digest.update(repr([found[name].parts for name in found.active]).encode())
    tensors = _own_tensors(segmenter)
    tensors |= {name: segmenter.sam.get_buffer(name) for name in ("pixel_mean", "pixel_std")}
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> Tensor:
    try:
        return load_file(path)["embedding"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is no whole image embedding ({error}); delete it") from error
