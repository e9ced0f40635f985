"""Options of a method, held to the type hints of the function that takes them."""

import types
from collections.abc import Callable, Collection, Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_types(whose: str, options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Refuse options of another type than their plain hints say; other hints are taken on trust.

    Args:
        whose: they are, for the message.
        options: by name.
        function: that takes them.

    Raises:
        ValueError: an option is of another type.
    """
    try:
        hints = get_type_hints(function)
    except NameError:  # Of names that are imported for type checkers alone.
        return
    for name, value in options.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{whose}: {name}={value!r}, expected {_in_words(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if origin is Literal:
        return value in arguments
    if hint is int or hint is float:
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if isinstance(origin, type) and issubclass(origin, Collection):
        # A text is a collection of its letters, which nobody means.
        is_collection = isinstance(value, Collection) and not isinstance(value, str)
        alike = len(arguments) == 1 or arguments[1:] == (...,)
        return is_collection and (not alike or all(_fits(each, arguments[0]) for each in value))
    return True


def _in_words(hint: Any) -> str:
    if hint is type(None):
        return "None"
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if isinstance(origin, type) and arguments:
        return f"a {origin.__name__} of {_in_words(arguments[0])}".lower()
    return getattr(hint, "__name__", str(hint))
