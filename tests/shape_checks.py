"""Run-time checks of the tensor shapes that signatures promise."""

import typing
from collections.abc import Callable
from typing import Any

import beartype
from jaxtyping import AbstractArray


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
