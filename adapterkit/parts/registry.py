"""The registry of parts: an adapter file names them, and only those in it can be loaded."""

from typing import Any, TypeVar

from adapterkit.system.pages import see

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
        TypeError: it is no frozen dataclass, or has no method `attach`.
        ValueError: a part of another module has its name.
    """
    name: str = part.__name__
    made_by = getattr(part, "__dataclass_params__", None)
    if made_by is None or not made_by.frozen or not hasattr(part, "attach"):
        raise TypeError(
            f"{name}: expected a class with @dataclass(frozen=True), below @register_part, and a "
            f"method attach(self, to: Attachment); {see('tutorials/extending.md', 'a-part')}"
        )
    there = PARTS.get(name)
    if there is not None and there.__module__ != part.__module__:
        raise ValueError(f"a part named {name} is defined in {there.__module__}; rename yours")
    PARTS[name] = part
    return part
