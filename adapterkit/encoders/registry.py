r"""The registry of families of encoders, and the view of any model that is of one or is around one.

@register_family
def mine(model):
    if isinstance(model, MyEncoder):
        return Description("mine", "stem", (BlockNames(r"blocks\.\d+"),)).view(model, 224)
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from adapterkit.encoders.described import Description
from adapterkit.encoders.views import ViT
from adapterkit.encoders.wrappers import check_not_flattened, plain_names, unwrapped
from adapterkit.system.pages import see

Family = Callable[[nn.Module], ViT | None]
"""The view of a model of its kind, or None of another."""

_FAMILIES: list[Family] = []
_CLASSES: dict[type[nn.Module], Callable[[nn.Module], ViT]] = {}


def register_family(view_of: Family) -> Family:
    """Decorates a function that gives the view of a model of one family, and None of others.

    From then on models of the family are taken wherever adapterkit takes a model.

    Args:
        view_of: of a model; it asks the model's class and no more where that is another's.

    Returns:
        The function, as it is.
    """
    _FAMILIES.append(view_of)
    return view_of


def register_class(cls: type[nn.Module], view_of: Callable[[nn.Module], ViT]) -> None:
    """Let this function give the view of every model of exactly this class, in this process."""
    _CLASSES[cls] = view_of


def view_by_class(
    model: nn.Module,
    families: Mapping[str, Description],
    library: str,
    image_size: Callable[[Any], int],
) -> ViT | None:
    """The view of a model of a class, or of a subclass of one, that is described.

    Args:
        model: any.
        families: by the module in the library and the class in it, "hiera.Hiera" say.
        library: the package that those modules are in.
        image_size: of such a model, the side of its images in pixels.

    Returns:
        None for a model of another class.
    """
    for cls in type(model).__mro__:
        name = f"{cls.__module__}.{cls.__qualname__}"
        found = families.get(name.removeprefix(f"{library}."))
        if found is not None and name.startswith(f"{library}."):
            return found.view(model, image_size(model))
    return None


def view(model: nn.Module) -> ViT:
    """The view of `model`, or of what it wraps, or of the one encoder within it.

    Args:
        model: a Sam of `segment_anything` or transformers or its image encoder, an encoder of timm
            or transformers (`adapterkit methods --families` lists them), one of your own that is
            registered, or a module with one of them in it, a head beside it. In
            `DistributedDataParallel`, compiled or checkpointed, as a whole or its encoder, or not.

    Returns:
        Where the blocks and sites are, and the sizes of input, patches and tokens.

    Raises:
        TypeError: `model` is of no family that adapterkit knows, or has several encoders.
        ValueError: it is, but its input is not square, or its patch embedding is none that
            adapterkit knows; or it is in `FullyShardedDataParallel`.
    """
    check_not_flattened(model)
    model = unwrapped(model)
    found = _view_of(model)
    if found is not None:
        return found
    within = dict(_encoders_within(model))
    if len(within) == 1:
        ((path, encoder),) = within.items()
        return _around(model, path, encoder)
    name = f"{type(model).__module__}.{type(model).__qualname__}"
    if within:
        raise TypeError(
            f"a {name} has several encoders: {', '.join(within)}; give adapterkit one of them"
        )
    raise TypeError(
        f"adapterkit does not know where the blocks of a {name} are; expected a Sam of "
        "segment_anything or transformers, an encoder of timm or transformers (adapterkit methods "
        "--families lists them), or a module with one in it. Of one of your own, give inject a "
        f"view; {see('encoders.md', 'an-encoder-of-your-own')}"
    )


def _view_of(model: nn.Module) -> ViT | None:
    if type(model) in _CLASSES:
        return _CLASSES[type(model)](model)
    return next((found for each in _FAMILIES if (found := each(model)) is not None), None)


def _encoders_within(model: nn.Module, path: str = "") -> Iterator[tuple[str, ViT]]:
    """The encoders in a model that is none, but not those of models that can be prompted."""
    for name, child in model.named_children():
        child_path = f"{path}.{name}" if path else name
        found = _view_of(unwrapped(child))
        if found is None:
            yield from _encoders_within(child, child_path)
        elif found.decoder is None:
            yield child_path, found


def _around(model: nn.Module, path: str, encoder: ViT) -> ViT:
    """The view of a model around an encoder: whatever is beside it can be trained, a head say."""
    plain, beside, way = plain_names(model), dict(encoder.components), path.split(".")
    for depth in range(len(way)):
        parent = ".".join(way[:depth])
        for name, child in model.get_submodule(parent).named_children():
            if name != way[depth] and next(child.parameters(), None) is not None:
                beside[plain(f"{parent}.{name}" if parent else name)] = unwrapped(child)
    return replace(encoder, model=model, components=beside)
