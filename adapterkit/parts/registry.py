"""The registry of parts: an adapter file names them, and only those in it can be loaded."""

from dataclasses import is_dataclass
from typing import Any, TypeVar

PARTS: dict[str, Any] = {}
"""The dataclasses by name, as an adapter file names them."""

PartClass = TypeVar("PartClass", bound=type)


def register_part(part: PartClass) -> PartClass:
    """Decorates a part's dataclass, so that files with it load wherever its module is imported.

    Args:
        part: a frozen dataclass with a method `attach`, as `attach.attachment.Part` has it.

    Returns:
        The same class.

    Raises:
        TypeError: it is no dataclass, or has no method `attach`.
        ValueError: a part of another module has its name.
    """
    name, is_a_dataclass = part.__name__, is_dataclass(part)
    if not is_a_dataclass or not hasattr(part, "attach"):
        raise TypeError(f"{name}: expected a dataclass with a method attach(self, to: Attachment)")
    there = PARTS.get(name)
    if there is not None and there.__module__ != part.__module__:
        raise ValueError(f"a part named {name} is defined in {there.__module__}; rename yours")
    PARTS[name] = part
    return part
