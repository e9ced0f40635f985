"""Whether what a part adds and what it connects are the same modules."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from adapterkit.attach.actions import Action
from adapterkit.system.pages import see


def check_connected(
    name: str, paths: Sequence[str], actions: Sequence[Action], known: Collection[nn.Parameter]
) -> None:
    """Refuse a part whose modules would be neither trained nor saved, or would do nothing.

    Args:
        name: of the part, for the message.
        paths: of the modules that it added and that no value of a pass is computed by.
        actions: what connects it.
        known: the parameters of the base, and of what the parts added.

    Raises:
        ValueError: a module with parameters to train takes part in the pass and is not added; or
            modules are added, and there is nothing by which the model would come to them.
    """
    how = see("tutorials/extending.md", "a-part")
    for module in (found for action in actions for found in _modules_in(action, set())):
        if any(each.requires_grad and each not in known for each in module.parameters()):
            raise ValueError(
                f"{name}: a {type(module).__name__} takes part in the pass and was not added to "
                "the adapter, so it would be neither trained nor saved; expected "
                f"to.add(PATH, module) in its attach; {how}"
            )
    if paths and not actions:
        raise ValueError(
            f"{name} adds {paths[0]!r}, and nothing that would call it; expected one of "
            f"add_residual, before, after and overlay in its attach; {how}"
        )


def _modules_in(value: Any, seen: set[int]) -> Iterator[nn.Module]:
    """The modules that an action, or what it calls, holds."""
    if id(value) in seen or isinstance(value, type | Tensor):
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
        return
    cells = [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
    for each in (
        getattr(value, "__self__", None),
        *cells,
        *getattr(value, "__dict__", {}).values(),
    ):
        yield from _modules_in(each, seen)
