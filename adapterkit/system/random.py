"""Sources of randomness that depend on what they are for."""

import hashlib

import torch


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """A CPU generator that depends on the seed and the name only.

    With one generator per image, an image's prompts are the same in whatever order, batch or
    subset the images are evaluated, and on every machine.

    Args:
        seed: the seed of the whole evaluation, any integer.
        name: the image's name, unique in the data set.

    Returns:
        A new generator.
    """
    # Python's own hash of a string differs from process to process.
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    # MT19937 in torch takes 32 bits of its seed, so only these are used.
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
