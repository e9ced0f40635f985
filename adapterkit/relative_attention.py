"""Attention within windows with decomposed relative positions, which keeps little for its gradient.

Of what fills up the windows at the right and the bottom, there are keys and values, but no queries.

On a CPU it goes from piece to piece, each as many attention weights as a cache holds. The gradient
comes from the projection alone: the weights, of all queries by all keys, are computed again, since
to keep them takes more memory than all else that an encoder keeps. On other devices it is PyTorch's
fused attention. The relative positions are a product of queries and keys too: q is followed by its
products with the tables of its own row and column, k by the indicators of its row and column.

Source: Li et al. 2021, MViTv2, arXiv 2112.01526, equation 4, as in `segment_anything`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

_PIECE = 2**22
"""Attention weights of a piece, or those of one head where they are more: 16 MiB in float32."""


def relative_attention(
    qkv: Float[Tensor, "b h w three_c"],
    filling: Float[Tensor, "three_c"],
    of_rows: Float[Tensor, "s s d"],
    of_columns: Float[Tensor, "t t d"],
    num_heads: int,
) -> Float[Tensor, "b h w c"]:
    """softmax(q k^T / sqrt(d) + q R_h + q R_w) v, within windows of `s` x `t` tokens.

    Args:
        qkv: queries, keys and values of all heads, one after the other.
        filling: the projection of what fills up windows that reach over the edge.
        of_rows, of_columns: R_h and R_w, for a query's and a key's row, and column, in the window.
            A window as large as the grid is attention over all of it.
        num_heads: heads of `d` channels each.
    """
    of_rows, of_columns = of_rows.to(qkv.dtype), of_columns.to(qkv.dtype)
    if qkv.device.type != "cpu":
        return _attended(qkv, filling, of_rows, of_columns, num_heads, _fused)
    tensors = (qkv, filling, of_rows, of_columns)
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return _InPieces.apply(qkv, filling, of_rows, of_columns, num_heads)
    return _attended(qkv, filling, of_rows, of_columns, num_heads, _in_pieces)


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, filling: Tensor, of_rows: Tensor, of_columns: Tensor, num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(qkv, filling, of_rows, of_columns)
        ctx.num_heads = num_heads
        return _attended(qkv, filling, of_rows, of_columns, num_heads, _in_pieces)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        (gradient,) = grad_outputs
        qkv, filling, of_rows, of_columns = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            found = _gradients(gradient, qkv, filling, of_rows, of_columns, ctx.num_heads)
        wanted = zip(found, ctx.needs_input_grad[:4], strict=True)
        return *(each if needed else None for each, needed in wanted), None


@dataclass(frozen=True)
class _Span:
    """Neighbouring windows along one side of the grid, alike in how many tokens are there."""

    start: int
    windows: int
    tokens: int
    """Of each window; what else it holds fills it up."""
    size: int
    """Of a whole window."""

    @property
    def there(self) -> slice:
        """In the grid."""
        return slice(self.start, self.start + self.windows * self.tokens)

    @property
    def filled(self) -> slice:
        """In the grid that is filled up to whole windows."""
        return slice(self.start, self.start + self.windows * self.size)


def _spans(length: int, size: int) -> list[_Span]:
    whole, rest = divmod(length, size)
    spans = [_Span(0, whole, size, size), _Span(whole * size, 1, rest, size)]
    return [each for each in spans if each.windows and each.tokens]


def _regions(grid: Tensor, size: tuple[int, int]) -> Iterator[tuple[_Span, _Span]]:
    """Where windows of `size` are alike: all over, or inside, on two edges and in their corner."""
    for rows in _spans(grid.shape[1], size[0]):
        for columns in _spans(grid.shape[2], size[1]):
            yield rows, columns


def _apart(
    region: Float[Tensor, "b h w c"], rows: _Span, columns: _Span, num_heads: int
) -> Float[Tensor, "n q p d"]:
    """Heads of windows, of all images."""
    pattern = "b (down q) (right p) (heads d) -> (b down right heads) q p d"
    sizes = {"down": rows.windows, "right": columns.windows, "heads": num_heads}
    return rearrange(region, pattern, **sizes)


def _together(
    windows: Float[Tensor, "n q p d"], rows: _Span, columns: _Span, num_heads: int
) -> Float[Tensor, "b h w c"]:
    pattern = "(b down right heads) q p d -> b (down q) (right p) (heads d)"
    sizes = {"down": rows.windows, "right": columns.windows, "heads": num_heads}
    return rearrange(windows, pattern, **sizes)


def _fill_up(
    tokens: Float[Tensor, "b h w c"], value: Float[Tensor, "c"], size: tuple[int, int]
) -> Float[Tensor, "b H W c"]:
    """Followed by `value`, at the right and the bottom, to whole windows."""
    batch, height, width, _ = tokens.shape
    below, right = -height % size[0], -width % size[1]
    if right:
        tokens = torch.cat((tokens, value.expand(batch, height, right, -1)), dim=2)
    if below:
        tokens = torch.cat((tokens, value.expand(batch, below, width + right, -1)), dim=1)
    return tokens


def _attended(
    qkv: Tensor,
    filling: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    num_heads: int,
    attend: Callable[..., Tensor],
) -> Tensor:
    channels, size = qkv.shape[-1] // 3, (len(of_rows), len(of_columns))
    filled = _fill_up(qkv[..., channels:], filling[channels:], size)
    result = qkv.new_empty(*qkv.shape[:3], channels)
    for rows, columns in _regions(qkv, size):
        here = (slice(None), rows.there, columns.there)
        q = _apart(qkv[..., :channels][here], rows, columns, num_heads)
        region = filled[:, rows.filled, columns.filled]
        k, v = (_apart(each, rows, columns, num_heads) for each in region.chunk(2, dim=-1))
        attended = attend(q, k, v, of_rows[: rows.tokens], of_columns[: columns.tokens])
        result[here] = _together(attended, rows, columns, num_heads)
    return result


def _fused(
    q: Float[Tensor, "n q p d"],
    k: Float[Tensor, "n s t d"],
    v: Float[Tensor, "n s t d"],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> Float[Tensor, "n q p d"]:
    channels, (height, width) = q.shape[-1], k.shape[1:3]
    scale = channels**-0.5
    # The tables count unscaled, the products of queries and keys are scaled.
    by_row = q @ (of_rows.mT / scale)
    by_column = (q.transpose(1, 2) @ (of_columns.mT / scale)).transpose(1, 2)
    row = torch.eye(height, dtype=k.dtype, device=k.device)[:, None].expand(len(k), -1, width, -1)
    column = torch.eye(width, dtype=k.dtype, device=k.device).expand(len(k), height, -1, -1)
    queries = torch.cat((q, by_row, by_column), dim=-1).flatten(1, 2)
    keys = torch.cat((k, row, column), dim=-1).flatten(1, 2)
    # Fused attention takes values as wide as keys.
    values = F.pad(v, (0, height + width)).flatten(1, 2)
    attended = F.scaled_dot_product_attention(queries[None], keys[None], values[None], scale=scale)
    return attended[0, ..., :channels].reshape(q.shape)


def _pieces(*windows: Float[Tensor, "n _ _ d"]) -> Iterator[tuple[Tensor, ...]]:
    queries, keys = windows[:2]
    weights = queries.shape[1:3].numel() * keys.shape[1:3].numel()
    return zip(*(each.split(max(1, _PIECE // weights)) for each in windows), strict=True)


def _relative(
    q: Float[Tensor, "n q p d"],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> Float[Tensor, "n q*p s*t"]:
    by_row = torch.einsum("nqpd,qsd->nqps", q, of_rows)
    by_column = torch.einsum("nqpd,ptd->nqpt", q, of_columns)
    return (by_row[..., :, None] + by_column[..., None, :]).flatten(3, 4).flatten(1, 2)


def _in_pieces(
    q: Float[Tensor, "n q p d"],
    k: Float[Tensor, "n s t d"],
    v: Float[Tensor, "n s t d"],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> Float[Tensor, "n q p d"]:
    found = []
    for piece in _pieces(q, k, v):
        # A first dimension, because the fused form takes batches of heads.
        queries, keys, values = (each.flatten(1, 2)[None] for each in piece)
        relative = _relative(piece[0], of_rows, of_columns)[None]
        found.append(F.scaled_dot_product_attention(queries, keys, values, relative)[0])
    return torch.cat(found).view_as(q)


def _gradients(
    gradient: Float[Tensor, "b h w c"],
    qkv: Float[Tensor, "b h w three_c"],
    filling: Float[Tensor, "three_c"],
    of_rows: Float[Tensor, "s s d"],
    of_columns: Float[Tensor, "t t d"],
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `qkv`, `filling`, `of_rows` and `of_columns`."""
    channels, size = qkv.shape[-1] // 3, (len(of_rows), len(of_columns))
    filled = _fill_up(qkv[..., channels:], filling[channels:], size)
    to_qkv, to_filling = torch.empty_like(qkv), torch.zeros_like(filling)
    to_filled = torch.empty_like(filled)
    to_rows, to_columns = torch.zeros_like(of_rows), torch.zeros_like(of_columns)
    for rows, columns in _regions(qkv, size):
        here = (slice(None), rows.there, columns.there)
        there = (slice(None), rows.filled, columns.filled)
        q = _apart(qkv[..., :channels][here], rows, columns, num_heads)
        k, v = (_apart(each, rows, columns, num_heads) for each in filled[there].chunk(2, dim=-1))
        out = _apart(gradient[here], rows, columns, num_heads)
        tables = of_rows[: rows.tokens], of_columns[: columns.tokens]
        # Contiguous, whatever the windows' strides are: tokens of a window are written as one axis.
        to_q, to_k, to_v = (q.new_empty(each.shape) for each in (q, k, v))
        for piece, results in zip(_pieces(q, k, v, out), _pieces(to_q, to_k, to_v), strict=True):
            to_tables = _write_gradients(results, piece, *tables)
            to_rows[: rows.tokens] += to_tables[0]
            to_columns[: columns.tokens] += to_tables[1]
        to_qkv[..., :channels][here] = _together(to_q, rows, columns, num_heads)
        to_filled[there] = torch.cat(
            [_together(each, rows, columns, num_heads) for each in (to_k, to_v)], dim=-1
        )
    height, width = qkv.shape[1:3]
    to_qkv[..., channels:] = to_filled[:, :height, :width]
    to_filling[channels:] = to_filled[:, :height, width:].sum((0, 1, 2))
    to_filling[channels:] += to_filled[:, height:].sum((0, 1, 2))
    return to_qkv, to_filling, to_rows, to_columns


def _write_gradients(
    results: tuple[Tensor, ...],
    piece: tuple[Tensor, ...],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> tuple[Float[Tensor, "q s d"], Float[Tensor, "p t d"]]:
    """Into `results`, those of a piece's queries, keys and values; back come the tables'."""
    to_q, to_k, to_v = results
    q, k, v, gradient = piece
    scale = q.shape[-1] ** -0.5
    queries, keys, values, outs = (each.flatten(1, 2) for each in (q, k, v, gradient))
    scores = torch.baddbmm(_relative(q, of_rows, of_columns), queries, keys.mT, alpha=scale)
    weights = scores.softmax(-1)
    torch.bmm(weights.mT, outs, out=to_v.view_as(values))
    to_weights = outs @ values.mT
    to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, q.dtype)
    torch.bmm(to_scores.mT, queries, out=to_k.view_as(keys)).mul_(scale)
    to_q.copy_((to_scores @ keys).mul_(scale).view_as(q))
    by_place = to_scores.unflatten(2, k.shape[1:3]).unflatten(1, q.shape[1:3])
    by_row, by_column = by_place.sum(-1), by_place.sum(-2)
    to_q += torch.einsum("nqps,qsd->nqpd", by_row, of_rows)
    to_q += torch.einsum("nqpt,ptd->nqpd", by_column, of_columns)
    return (
        torch.einsum("nqps,nqpd->qsd", by_row, q),
        torch.einsum("nqpt,nqpd->ptd", by_column, q),
    )
