"""Run-time checks of the tensor shapes that signatures promise."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

import beartype
from jaxtyping import AbstractArray


def where_shapes_are_promised(jaxtyped: Callable[..., Any]) -> Callable[..., Any]:
    """jaxtyping's decorator, which leaves alone what has no shape in its signature.

    Its wrapper takes longer than most functions, and the import hook puts it around each of them.
    """

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        def decorate(given: Any) -> Any:
            promises = (
                [field.type for field in dataclasses.fields(given)]
                if dataclasses.is_dataclass(given)
                else getattr(given, "__annotations__", {}).values()
            )
            carry = any(map(_carries_shape, promises))
            return jaxtyped(given, typechecker=typechecker) if carry else given

        return decorate

    return decorator


def shapes_only(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, for the annotations that carry a shape.

    Other annotations are pyright's to check: at run time, a wrong value has to reach the error
    message that the library has for it.
    """
    function.__annotations__ = {
        name: annotation
        for name, annotation in function.__annotations__.items()
        if _carries_shape(annotation)
    }
    return beartype.beartype(function)


def _carries_shape(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(_carries_shape(argument) for argument in typing.get_args(annotation))
