"""Attention within windows with decomposed relative positions, which keeps little for its gradient.

Of what fills up the windows at the right and the bottom, there are keys and values, but no queries.

On a CPU it goes from piece to piece, each as many attention weights as a cache holds. The gradient
comes from the projection alone: the weights, of all queries by all keys, are computed again, since
to keep them takes more memory than all else that an encoder keeps. On other devices it is PyTorch's
fused attention. The relative positions are a product of queries and keys too: q is followed by its
products with the tables of its own row and column, k by the indicators of its row and column.

Source: Li et al. 2021, MViTv2, arXiv 2112.01526, equation 4, as in `segment_anything`.
"""

from collections.abc import Callable, Iterator, Sequence
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


def attention(
    q: Float[Tensor, "*heads n d"], k: Float[Tensor, "*heads m d"], v: Float[Tensor, "*heads m d"]
) -> Float[Tensor, "*heads n d"]:
    """softmax(q k^T / sqrt(d)) v.

    It is PyTorch's fused attention, but for bf16 on a CPU, where products of whole matrices are
    faster.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    return _PlainAttention.apply(q, k, v)


class _PlainAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        result = q.new_empty(q.shape)
        for queries, keys, values, into in _heads(q, k, v, result):
            torch.bmm(_plain_weights(queries, keys), values, out=into)
        return result

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors
        to_q, to_k, to_v = (each.new_empty(each.shape) for each in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            heads = _heads(q, k, v, *grad_outputs, to_q, to_k, to_v)
            for queries, keys, values, outs, *into in heads:
                weights = _plain_weights(queries, keys)
                _write_gradients_of_products(into, (queries, keys, values, outs), weights)
        return to_q, to_k, to_v


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

    @property
    def there(self) -> slice:
        """In the grid."""
        return slice(self.start, self.start + self.windows * self.tokens)


def _spans(length: int, size: int) -> list[_Span]:
    whole, rest = divmod(length, size)
    spans = [_Span(0, whole, size), _Span(whole * size, 1, rest)]
    return [each for each in spans if each.windows and each.tokens]


def _regions(grid: Tensor, size: tuple[int, int]) -> Iterator[tuple[_Span, _Span]]:
    """Where windows of `size` are alike: all over, or inside, on two edges and in their corner."""
    for rows in _spans(grid.shape[1], size[0]):
        for columns in _spans(grid.shape[2], size[1]):
            yield rows, columns


def _windows(
    grid: Float[Tensor, "b h w c"], rows: _Span, columns: _Span, num_heads: int
) -> Float[Tensor, "b down right heads q p d"]:
    """The tokens of a region, by window and head: a view."""
    pattern = "b (down q) (right p) (heads d) -> b down right heads q p d"
    sizes = {"down": rows.windows, "right": columns.windows, "heads": num_heads}
    return rearrange(grid[:, rows.there, columns.there], pattern, **sizes)


def _filled_up(
    tokens: Float[Tensor, "n q p d"], value: Float[Tensor, "heads d"], size: tuple[int, int]
) -> Float[Tensor, "n s t d"]:
    """Followed by the `value` of each head, at the right and the bottom, to whole windows."""
    height, width = tokens.shape[1:3]
    if (height, width) == size:
        return tokens
    whole = tokens.new_empty(len(tokens), *size, tokens.shape[-1])
    whole[:, :height, :width] = tokens
    for filling in _filling(whole, height, width, len(value)):
        filling.copy_(value[:, None, None])
    return whole


def _filling(
    whole: Float[Tensor, "n s t d"], height: int, width: int, num_heads: int
) -> tuple[Float[Tensor, "windows heads below t d"], Float[Tensor, "windows heads p right d"]]:
    """What fills up windows of `height` x `width` tokens: views."""
    by_head = whole.unflatten(0, (-1, num_heads))
    return by_head[:, :, height:], by_head[:, :, :height, width:]


def _attended(
    qkv: Tensor,
    filling: Tensor,
    of_rows: Tensor,
    of_columns: Tensor,
    num_heads: int,
    attend: Callable[..., Tensor],
) -> Tensor:
    size = (len(of_rows), len(of_columns))
    result = qkv.new_empty(*qkv.shape[:3], qkv.shape[-1] // 3)
    _, fill_k, fill_v = filling.view(3, num_heads, -1)
    for rows, columns in _regions(qkv, size):
        q, k, v = (
            _windows(each, rows, columns, num_heads).flatten(0, 3) for each in qkv.chunk(3, dim=-1)
        )
        k, v = _filled_up(k, fill_k, size), _filled_up(v, fill_v, size)
        attended = attend(q, k, v, of_rows[: rows.tokens], of_columns[: columns.tokens])
        place = _windows(result, rows, columns, num_heads)
        place.copy_(attended.view(place.shape))
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
    return _split(queries.shape[1:3].numel() * keys.shape[1:3].numel(), *windows)


def _heads(*tensors: Float[Tensor, "*heads _ d"]) -> Iterator[tuple[Tensor, ...]]:
    """Queries, keys and what else has heads, a piece at once."""
    weights = tensors[0].shape[-2] * tensors[1].shape[-2]
    return _split(weights, *(each.flatten(0, -3) for each in tensors))


def _split(weights: int, *heads: Float[Tensor, "n ..."]) -> Iterator[tuple[Tensor, ...]]:
    """Heads that have so many `weights` each, as many at once as make a piece."""
    return zip(*(each.split(max(1, _PIECE // weights)) for each in heads), strict=True)


def _weights(
    q: Float[Tensor, "n q p d"],
    k: Float[Tensor, "n s t d"],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> Float[Tensor, "n q*p s*t"]:
    """How much each query attends to each key."""
    by_row = torch.einsum("nqpd,qsd->nqps", q, of_rows)
    by_column = torch.einsum("nqpd,ptd->nqpt", q, of_columns)
    scores = _spread(by_row, by_column)
    scores.baddbmm_(q.flatten(1, 2), k.flatten(1, 2).mT, alpha=q.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1, out=scores)


def _plain_weights(
    q: Float[Tensor, "heads n d"], k: Float[Tensor, "heads m d"]
) -> Float[Tensor, "heads n m"]:
    """Without relative positions."""
    scores = torch.bmm(q * q.shape[-1] ** -0.5, k.mT)
    return torch.softmax(scores, dim=-1, out=scores)


def _as_products(by_column: Tensor) -> bool:
    """Whether products with ones and zeros are faster than sums along so short an axis."""
    return by_column.dtype == torch.bfloat16 and by_column.shape[-1] < 32


def _spread(
    by_row: Float[Tensor, "n q p s"], by_column: Float[Tensor, "n q p t"]
) -> Float[Tensor, "n q*p s*t"]:
    """What goes to each key: its row's and its column's."""
    if _as_products(by_column):
        by_place = torch.cat((by_row, by_column), dim=-1).flatten(1, 2)
        return by_place @ _places(by_row.shape[-1], by_column.shape[-1], by_row)
    # Contiguous: what is added is strided as the products are that it comes from.
    result = by_row.new_empty(*by_row.shape, by_column.shape[-1])
    torch.add(by_row[..., :, None], by_column[..., None, :], out=result)
    return result.flatten(3, 4).flatten(1, 2)


def _gathered(
    scores: Float[Tensor, "n qp st"], height: int, width: int
) -> tuple[Float[Tensor, "n qp s"], Float[Tensor, "n qp t"]]:
    """What the keys of each row, and of each column, have together."""
    by_place = scores.unflatten(2, (height, width))
    if _as_products(by_place):
        by_row, by_column = (scores @ _places(height, width, scores).mT).split((height, width), -1)
        return by_row, by_column
    return by_place.sum(-1), by_place.sum(-2)


def _places(height: int, width: int, like: Tensor) -> Float[Tensor, "rows_and_columns keys"]:
    """Which keys are in each row, then which are in each column: ones, the rest zeros."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)
    return torch.cat((rows.repeat_interleave(width, dim=1), columns.repeat(1, height)))


def _in_pieces(
    q: Float[Tensor, "n q p d"],
    k: Float[Tensor, "n s t d"],
    v: Float[Tensor, "n s t d"],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> Float[Tensor, "n q p d"]:
    # Contiguous, whatever the windows' strides are: tokens of a window are written as one axis.
    result = q.new_empty(q.shape)
    for queries, keys, values, into in _pieces(q, k, v, result):
        weights = _weights(queries, keys, of_rows, of_columns)
        torch.bmm(weights, values.flatten(1, 2), out=into.flatten(1, 2))
    return result


def _gradients(
    gradient: Float[Tensor, "b h w c"],
    qkv: Float[Tensor, "b h w three_c"],
    filling: Float[Tensor, "three_c"],
    of_rows: Float[Tensor, "s s d"],
    of_columns: Float[Tensor, "t t d"],
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of `qkv`, `filling`, `of_rows` and `of_columns`."""
    size = (len(of_rows), len(of_columns))
    to_qkv, to_filling = torch.empty_like(qkv), torch.zeros_like(filling)
    to_rows, to_columns = torch.zeros_like(of_rows), torch.zeros_like(of_columns)
    _, fill_k, fill_v = filling.view(3, num_heads, -1)
    for rows, columns in _regions(qkv, size):
        q, k, v, out = (
            _windows(each, rows, columns, num_heads).flatten(0, 3)
            for each in (*qkv.chunk(3, dim=-1), gradient)
        )
        k, v = _filled_up(k, fill_k, size), _filled_up(v, fill_v, size)
        tables = of_rows[: rows.tokens], of_columns[: columns.tokens]
        # Contiguous, whatever the windows' strides are: tokens of a window are written as one axis.
        results = [each.new_empty(each.shape) for each in (q, k, v)]
        for piece, into in zip(_pieces(q, k, v, out), _pieces(*results), strict=True):
            to_tables = _write_gradients(into, piece, *tables)
            to_rows[: rows.tokens] += to_tables[0]
            to_columns[: columns.tokens] += to_tables[1]
        for found, grid, fill in zip(
            results, to_qkv.chunk(3, dim=-1), to_filling.view(3, num_heads, -1), strict=True
        ):
            tokens = found[:, : rows.tokens, : columns.tokens]
            place = _windows(grid, rows, columns, num_heads)
            place.copy_(tokens.unflatten(0, place.shape[:4]))
            for each in _filling(found, rows.tokens, columns.tokens, num_heads):
                fill += each.sum((0, 2, 3))
    return to_qkv, to_filling, to_rows, to_columns


def _write_gradients(
    results: tuple[Tensor, ...],
    piece: tuple[Tensor, ...],
    of_rows: Float[Tensor, "q s d"],
    of_columns: Float[Tensor, "p t d"],
) -> tuple[Float[Tensor, "q s d"], Float[Tensor, "p t d"]]:
    """Into `results`, those of a piece's queries, keys and values; back come the tables'."""
    q, k, *_ = piece
    to_scores = _write_gradients_of_products(
        [each.flatten(1, 2) for each in results],
        [each.flatten(1, 2) for each in piece],
        _weights(q, k, of_rows, of_columns),
    )
    to_rows, to_columns = (
        each.unflatten(1, q.shape[1:3]) for each in _gathered(to_scores, *k.shape[1:3])
    )
    by_query = results[0]
    by_query += torch.einsum("nqps,qsd->nqpd", to_rows, of_rows)
    by_query += torch.einsum("nqpt,ptd->nqpd", to_columns, of_columns)
    return (
        torch.einsum("nqps,nqpd->qsd", to_rows, q),
        torch.einsum("nqpt,nqpd->ptd", to_columns, q),
    )


def _write_gradients_of_products(
    results: Sequence[Float[Tensor, "heads _ d"]],
    piece: Sequence[Float[Tensor, "heads _ d"]],
    weights: Float[Tensor, "heads n m"],
) -> Float[Tensor, "heads n m"]:
    """Into `results`, those of queries, keys and values, by way of the attention weights; back
    come the scores'."""
    to_q, to_k, to_v = results
    queries, keys, values, outs = piece
    scale = queries.shape[-1] ** -0.5
    torch.bmm(weights.mT, outs, out=to_v)
    to_weights = outs @ values.mT
    to_scores = torch.ops.aten._softmax_backward_data(
        to_weights, weights, -1, weights.dtype, grad_input=to_weights
    )
    torch.bmm(to_scores.mT, queries, out=to_k).mul_(scale)
    torch.bmm(to_scores, keys, out=to_q).mul_(scale)
    return to_scores
