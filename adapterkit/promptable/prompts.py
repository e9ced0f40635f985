"""What a promptable model is asked: points, boxes, masks and classes, in one object."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from wadler_lindig import pformat

_SHAPES = {
    "points": ("(B, K, N, 2)", 4),
    "labels": ("(B, K, N)", 3),
    "boxes": ("(B, K, 4)", 3),
    "masks": ("(B, K, h, w)", 4),
    "classes": ("(B, K)", 2),
}


@dataclass(frozen=True)
class Prompts:
    """K prompted structures of each of B images; none at all for a model that asks for no prompt.

    A structure can have prompts of several kinds. Where structures differ in their numbers of
    points, a point of label -1 stands for none, as a class of -1 stands for no class.

    Attributes:
        points: (x, y) in pixels of the images; (0, 0) is the centre of the upper left pixel.
        labels: for each point: 1 inside of the structure, 0 outside, -1 no point.
        boxes: (x0, y0, x1, y1) in pixels of the images, from edge to edge.
        masks: low-resolution logits of an earlier prediction.
        classes: the structures' positions among those that the model has learned by name.

    Raises:
        ValueError: one is no tensor, has another shape or type than stated, or a value that it
            cannot have; points lack labels, or the numbers of images or structures differ.
    """

    points: Float[Tensor, "b k n 2"] | None = None
    labels: Int[Tensor, "b k n"] | None = None
    boxes: Float[Tensor, "b k 4"] | None = None
    masks: Float[Tensor, "b k h w"] | None = None
    classes: Int[Tensor, "b k"] | None = None

    def __repr__(self) -> str:
        return pformat(self)

    def __post_init__(self) -> None:
        for name, value in self.given.items():
            _check_tensor(name, value)
        if (self.points is None) != (self.labels is None):
            raise ValueError("points and labels belong together; give both or neither")
        if self.points is not None and self.labels is not None:
            _expect(
                self.points.shape[:3] == self.labels.shape,
                f"labels have the shape {tuple(self.labels.shape)}: expected one for each point, "
                f"{tuple(self.points.shape[:3])}",
            )
        sizes = {name: tuple(value.shape[:2]) for name, value in self.given.items()}
        _expect(len(set(sizes.values())) < 2, f"(B, K) differ among the prompts: {sizes}")
        # Looking at values would stop a trace, and without data there are none.
        if not torch.compiler.is_compiling():
            self._check_values()

    def _check_values(self) -> None:
        for name, value in self.given.items():
            if value.is_meta:
                return
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} has values that are NaN or infinite")
        for name, least, most in (("labels", -1, 1), ("classes", -1, None)):
            value = getattr(self, name)
            if value is None or not value.numel():
                continue
            low, high = (int(each) for each in value.aminmax())
            if low < least or (most is not None and high > most):
                expected = "1 inside, 0 outside, -1 no point" if most else "from 0, or -1 for none"
                wrong = low if low < least else high
                raise ValueError(f"{name} has the value {wrong}: expected {expected}")

    @property
    def given(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        all_of_them = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in all_of_them.items() if value is not None}

    @property
    def shape(self) -> tuple[int, int] | None:
        """(B, K), or None where there is no prompt."""
        for value in self.given.values():
            return value.shape[0], value.shape[1]
        return None

    def check_within(self, side: int) -> None:
        """See that points and boxes are in square images of this side, in pixels.

        Raises:
            ValueError: one is outside, or a box has no area.
        """
        if torch.compiler.is_compiling() or any(each.is_meta for each in self.given.values()):
            return
        if self.points is not None and self.labels is not None:
            inside = ((self.points >= -0.5) & (self.points <= side - 0.5)).all(dim=-1)
            outside = ~inside & (self.labels >= 0)
            if outside.any():
                x, y = self.points[outside][0].tolist()
                raise ValueError(
                    f"points has ({x:g}, {y:g}), outside of the images: expected x and y from 0 to "
                    f"{side - 1}, in pixels of the model's input"
                )
        if self.boxes is not None:
            upper_left, lower_right = self.boxes[..., :2], self.boxes[..., 2:]
            inside = (upper_left >= 0) & (upper_left < lower_right) & (lower_right <= side)
            if not inside.all():
                box = self.boxes[~inside.all(dim=-1)][0].tolist()
                raise ValueError(
                    f"boxes has {box}: expected (x0, y0, x1, y1) with 0 <= x0 < x1 <= {side} and "
                    f"0 <= y0 < y1 <= {side}, in pixels of the model's input"
                )

    def map(self, change: Callable[[Tensor], Tensor]) -> "Prompts":
        """With `change` of each tensor: `prompts.map(lambda each: each[:, :1])`, say.

        Args:
            change: what is done to each of the tensors that are given.
        """
        return Prompts(**{name: change(value) for name, value in self.given.items()})

    def to(self, device: torch.device | str) -> "Prompts":
        """On a device."""
        return self.map(lambda each: each.to(device))

    def scaled(self, scale: float) -> "Prompts":
        """In pixels of the images at `scale` times their size.

        A point names a pixel, whose centre lies half a pixel further; a box goes from edge to edge.
        """
        if scale == 1:
            return self
        return replace(
            self,
            points=None if self.points is None else (self.points + 0.5) * scale - 0.5,
            boxes=None if self.boxes is None else self.boxes * scale,
        )


def every_class(images: int, structures: int, device: torch.device | None = None) -> Prompts:
    """Each structure of each image, by its class."""
    return Prompts(classes=torch.arange(structures, device=device).repeat(images, 1))


def _check_tensor(name: str, value: object) -> None:
    shape, axes = _SHAPES[name]
    _expect(
        isinstance(value, Tensor),
        f"{name} is a {type(value).__name__}: expected a tensor of shape {shape}",
    )
    assert isinstance(value, Tensor)
    last = {"points": 2, "boxes": 4}.get(name)
    _expect(
        value.ndim == axes and (last is None or value.shape[-1] == last),
        f"{name} has the shape {tuple(value.shape)}: expected {shape}, for K structures of each "
        "of B images",
    )
    integers = name in ("labels", "classes")
    right = (
        not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
        if integers
        else value.is_floating_point()
    )
    kind = "integers" if integers else "floating-point numbers"
    _expect(right, f"{name} is {value.dtype}: expected {kind}")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
