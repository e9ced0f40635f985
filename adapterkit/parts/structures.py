"""Names of structures, as parts that tell them apart have them."""

from collections.abc import Sequence
from typing import Any


def checked_names(part: object, structures: Any) -> tuple[str, ...]:
    """`structures` as a tuple, for a part whose class is named in the message.

    Raises:
        ValueError: they are not the names of one or more structures, each once.
    """
    names = [] if isinstance(structures, str) else list(structures)
    if not names or len(set(names)) < len(names) or not all(map(_is_name, names)):
        raise ValueError(
            f"{type(part).__name__}(structures={structures!r}): expected the names of one or more "
            "structures, each once"
        )
    return tuple(names)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip())


def structures_of(parts: Sequence[object]) -> tuple[str, ...]:
    """The names of the structures that parts tell apart, in order: of several such parts, the
    last's."""
    from adapterkit.parts import ClassMasks, ClassPrompts, PromptGenerator

    named = [
        each.structures
        for each in parts
        if isinstance(each, ClassMasks | ClassPrompts | PromptGenerator)
    ]
    return named[-1] if named else ()
