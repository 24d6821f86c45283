"""Squared distances of descriptors by matrix products: rough, with a bound of the error of each group of columns."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64  # columns that share their bounds
_LARGEST = 127  # of a query in 8 bits
_SHIFT = 128  # what is added to the numbers of a query: oneDNN multiplies unsigned by signed ones
_NARROWEST = 16  # less is not worth it, and torch multiplies matrices of one column wrongly
TINY = 1e-34  # more than what is lost where squares and products of float32 vanish
_WIDEST = 1024  # (127 * 127) * 1024 < 2^24: sums of products are exact in float32


class Rough(NamedTuple):
    """Rough squared distances of a block of N queries to all columns, in G groups of :data:`GROUP`.

    The distance of a query and column c of group g lies from ``factor * value + base + offset[g, c]`` to ``slack``
    above it, also where direct differences in float32 give it, for queries that are ``sound``: nothing overflows.
    """

    values: Tensor
    """(N, G, GROUP) float32; columns beyond the database repeat its last row."""
    least: Tensor
    """(N, G), the smallest value of each group."""
    factor: Tensor
    """(N, G) or (1, 1), positive."""
    base: Tensor
    """(N, G) or (N, 1)."""
    slack: Tensor
    """(N, G) or (N, 1)."""
    offset: Tensor
    """(G, GROUP) or (1, 1), not negative."""
    sound: Tensor
    """(N,) bool."""

    def group_bounds(self) -> tuple[Tensor, Tensor]:
        """Bounds (N, G): no distance of a group lies below the first, its smallest one not above the second."""
        lower = (self.least * self.factor).add_(self.base)
        return lower, (lower + self.slack).add_(self.offset.amax(dim=1))

    def upper_bounds(self) -> Tensor:
        """No distance to a column lies above, (N, G * GROUP)."""
        return (self.values * self.factor[..., None] + (self.base + self.slack)[..., None] + self.offset).flatten(1)

    def windows(self, pairs: Tensor) -> Tensor:
        """Values of P groups, (P, GROUP); ``pairs``: query * G + group of each."""
        return self.values.view(-1, GROUP).index_select(0, pairs)

    def within(self, pairs: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        """The columns of P groups that may be as near as ``bound`` (P,).

        Args:
            pairs: query * G + group of each.
            bound: of the query of each.

        Returns:
            ascending indices into ``pairs``, and the columns, counted from the start of the group.
        """
        shape = self.least.shape
        base, factor = (part.expand(shape).reshape(-1).index_select(0, pairs) for part in (self.base, self.factor))
        room = bound - base
        inside = (self.windows(pairs) <= (room / factor)[:, None]).flatten().nonzero().squeeze(1)
        pair, column = torch.div(inside, GROUP, rounding_mode="floor"), inside % GROUP
        if self.offset.numel() == 1:
            return pair, column
        pairs = pairs.index_select(0, pair)
        offset = self.offset.view(-1).index_select(0, pairs % shape[1] * GROUP + column)
        values = self.values.view(-1).index_select(0, pairs * GROUP + column)
        near = values * factor.index_select(0, pair) + offset <= room.index_select(0, pair)
        return pair[near], column[near]


class Fp32Products:
    """``|q|^2 + |d|^2 - 2 q d`` as one product in float32."""

    def __init__(self, database: Tensor, rows: int) -> None:
        """``database``: (M, D) float32, M at least 1; ``rows``: the most queries of a block."""
        padded = pad(database)
        squares = padded.square().sum(dim=1)
        self.largest = squares.max().sqrt()
        self.factors = torch.cat([padded, squares[:, None]], dim=1).T
        # memory that is written again and again: fresh pages cost a third of the product
        self.memory = database.new_empty(rows, len(padded))
        self.rounding = product_rounding(database.shape[1])
        self.one, self.zero = database.new_ones(1, 1), database.new_zeros(1, 1)

    def __call__(self, queries: Tensor) -> Rough:
        """Distances of a block of queries, valid until the next call."""
        squares = queries.square().sum(dim=1, keepdim=True)
        left = torch.cat([-2.0 * queries, queries.new_ones(len(queries), 1)], dim=1)
        values = torch.mm(left, self.factors, out=self.memory[: len(queries)]).view(len(queries), -1, GROUP)
        limit = (squares.sqrt() + self.largest).square()
        margin = self.rounding * limit + TINY
        sound = limit[:, 0].isfinite()
        return Rough(values, values.amin(dim=2), self.one, squares - margin, 2.0 * margin, self.zero, sound)


class Int8Products:
    """``q d`` of descriptors rounded to 8 bits: several times as fast as float32, with far wider bounds.

    Each query and each group of columns has its own scale. With ``q = q' + dq`` and ``d = d' + dd``, the product is
    ``q'd'``, and ``|qd - q'd'| <= |dq| |d| + |q'| |dd|``: the norms of the rounding errors are known.
    """

    def __init__(self, database: Tensor, rows: int, largest: int) -> None:
        """``largest``: of the database in int8, see :func:`largest_int8`; D from 16 to 1024."""
        padded = pad(database)
        groups = padded.view(-1, GROUP * padded.shape[1])
        scale = groups.abs().amax(dim=1).clamp(min=1e-30) / largest
        whole = (groups / scale[:, None]).round_()
        self.codes = _Codes(whole.to(torch.int8).view_as(padded), rows)
        errors = (groups - whole * scale[:, None]).view(len(groups), GROUP, -1)
        errors = errors.square_().sum(dim=2).amax(dim=1).sqrt_()
        self.scale = scale
        squares = padded.square().sum(dim=1).view(-1, GROUP)
        self.low = squares.amin(dim=1)
        self.offset = squares - self.low[:, None]
        norms = squares.amax(dim=1).sqrt()
        self.largest = norms.max()
        # margin = 2 (|dq| |d| + |q'| |dd|) + rounding (|q| + |d|)^2, a product of terms of the query and of the group
        self.rounding = 2.0 * rounding(database.shape[1])  # of the sums of squares, and of the steps to the bounds
        self.terms = torch.stack([norms, errors, norms.square(), torch.ones_like(norms)])
        self.rows = rows

    def __call__(self, queries: Tensor) -> Rough:
        """Distances of a block of queries."""
        squares = queries.square().sum(dim=1, keepdim=True)
        norms = squares.sqrt()
        scale = queries.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30).div_(_LARGEST)
        whole = (queries / -scale).round_()
        values = self.codes.products(whole).view(len(queries), -1, GROUP)
        errors = whole.mul_(scale).add_(queries).square_().sum(dim=1, keepdim=True).sqrt_()
        rounding = torch.full_like(norms, self.rounding)
        terms = [2.0 * (errors + rounding * norms), 2.0 * (norms + errors), rounding, rounding * squares + TINY]
        margin = torch.cat(terms, 1) @ self.terms
        base = (squares + self.low).sub_(margin)
        sound = (norms + self.largest).square()[:, 0].isfinite()
        factor = 2.0 * scale * self.scale
        return Rough(values, values.amin(dim=2), factor, base, margin.mul_(2.0), self.offset, sound)


class _Codes:
    """The database as whole numbers of 8 bits, packed for oneDNN.

    ``torch._int_mm`` would be the plain way, but without AVX-512 VNNI it is a loop, tens of times as slow as float32.
    """

    def __init__(self, codes: Tensor, rows: int) -> None:
        """``codes``: (M, D) int8; ``rows``: the most queries at once."""
        self.packed = torch.ops.onednn.qlinear_prepack(codes, [rows, codes.shape[1]])
        self.one, self.zero = torch.ones(1), torch.zeros(1, dtype=torch.long)

    def products(self, queries: Tensor) -> Tensor:
        """Of whole numbers (N, D) from -127 to 127, float32 that hold nothing else, with all codes: (N, M) float32."""
        shifted = (queries + _SHIFT).to(torch.uint8)
        values: Tensor = torch.ops.onednn.qlinear_pointwise.default(
            shifted, 1.0, _SHIFT, self.packed, self.one, self.zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return values


def products(database: Tensor, rows: int) -> Fp32Products | Int8Products:
    """The fastest products for this device and these descriptors."""
    fits = database.device.type == "cpu" and _NARROWEST <= database.shape[1] <= _WIDEST
    if fits and (largest := largest_int8()):
        padded = pad(database)
        squares = padded.square().sum(dim=1).view(-1, GROUP)
        # lengths that differ within a group blur its bounds; False for what is not finite
        if bool((squares.amax(dim=1) - squares.amin(dim=1)).mean() < 0.1 * squares.mean()):
            return Int8Products(padded, rows, largest)
    return Fp32Products(database, rows)


@functools.cache
def largest_int8() -> int:
    """The largest value of a database in int8 whose products with any query this CPU computes exactly; 0 if not fast.

    Without instructions for 8 bits (VNNI) two products are added in 16 bits: with 8 bits both they overflow. What a CPU
    can do does not say it, as oneDNN can be told to do without: the extremes are tried.
    """
    able = torch.cpu.get_capabilities()
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")
    if not has_operator or not able.get("avx2"):
        return 0
    queries = torch.full((GROUP, _WIDEST), float(_LARGEST))
    queries[::2] *= -1
    for largest in (127, 64):
        database = torch.full((GROUP, _WIDEST), largest, dtype=torch.int8)
        database[1::3] *= -1
        if bool((_Codes(database, GROUP).products(queries).abs() == _WIDEST * _LARGEST * largest).all()):
            return largest
    return 0


def rounding(width: int) -> float:
    """Bound of the relative rounding error of a sum of ``width`` products in float32."""
    return float((width + 8) * 2.0**-23)


def product_rounding(width: int) -> float:
    """The same where the products are a matrix product, which torch may have been told to do less precisely."""
    return rounding(width) if torch.get_float32_matmul_precision() == "highest" else 2.0**-6


def pad(database: Tensor) -> Tensor:
    """Its last row repeated until the rows are whole groups."""
    missing = -len(database) % GROUP
    return torch.cat([database, database[-1:].expand(missing, -1)]) if missing else database
