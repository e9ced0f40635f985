"""Digests by which tensors are known again."""

from collections.abc import Mapping
from hashlib import blake2b

import torch
from torch import Tensor


def tensors_digest(tensors: Mapping[str, Tensor], salt: str = "", size: int = 8) -> str:
    """A digest of named tensors: of their names, dtypes, shapes and values, in their order.

    Args:
        tensors: on any device.
        salt: what else they shall be known by.
        size: of the digest in bytes, 1 to 64.

    Returns:
        Two hexadecimal digits for each byte.
    """
    digest = blake2b(salt.encode(), digest_size=size)
    for name, each in tensors.items():
        digest.update(f"{name} {each.dtype} {tuple(each.shape)}".encode())
        digest.update(tensor_bytes(each))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The values of a tensor as they lie in memory, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
