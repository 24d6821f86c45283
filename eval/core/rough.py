"""Squared distances of descriptors by matrix products: rough, with a bound of the error of each group of columns."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

GROUP = 64  # columns that share their bounds
_LARGEST = 127  # of a query in int8
_NARROWEST = 16  # less is not worth it, and torch multiplies matrices of one column wrongly
_WIDEST = 1024  # (127 * 127) * 1024 < 2^24: sums of products are exact in float32


class Rough(NamedTuple):
    """Rough squared distances of a block of N queries to all columns, in G groups of :data:`GROUP`.

    The distance of a query and column c of group g is ``shift + factor * value + offset[g, c]``, and direct differences
    in float32 give the same within ``margin``, for queries that are ``sound``: nothing overflows.
    """

    values: Tensor
    """(N, G, GROUP) float32 or int32; columns beyond the database repeat its last row."""
    factor: Tensor
    """(N, G) or (1, 1), positive."""
    shift: Tensor
    """(N, 1)."""
    offset: Tensor
    """(G, GROUP) or (1, 1)."""
    margin: Tensor
    """(N, G) or (N, 1)."""
    sound: Tensor
    """(N,) bool."""

    def group_bounds(self) -> tuple[Tensor, Tensor]:
        """Bounds (N, G): no distance of a group lies below the first, its smallest one not above the second."""
        least = self.values.amin(dim=2) * self.factor + self.shift
        low, high = self.offset.amin(dim=1), self.offset.amax(dim=1)
        return least + low - self.margin, least + high + self.margin

    def upper_bounds(self) -> Tensor:
        """No distance to a column lies above, (N, G * GROUP)."""
        distances = self.values * self.factor[..., None] + self.shift[..., None] + self.offset
        return (distances + self.margin[..., None]).flatten(1)

    def windows(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Rough distances to the columns of P groups, (P, GROUP), and their margins (P,).

        ``pairs``: query * G + group of each.
        """
        num_groups = self.values.shape[1]
        query = torch.div(pairs, num_groups, rounding_mode="floor")
        shape = (len(self.values), num_groups)
        factor = self.factor.expand(shape).reshape(-1).index_select(0, pairs)
        margin = self.margin.expand(shape).reshape(-1).index_select(0, pairs)
        values = self.values.view(-1, GROUP).index_select(0, pairs).float()
        offset = self.offset.expand(num_groups, GROUP).index_select(0, pairs - query * num_groups)
        shift = self.shift.index_select(0, query)
        return values.mul_(factor[:, None]).add_(offset).add_(shift), margin


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
        exact_products = torch.get_float32_matmul_precision() == "highest"
        self.rounding = rounding(database.shape[1]) if exact_products else 2.0**-6
        self.one, self.zero = database.new_ones(1, 1), database.new_zeros(1, 1)

    def __call__(self, queries: Tensor) -> Rough:
        """Distances of a block of queries, valid until the next call."""
        squares = queries.square().sum(dim=1, keepdim=True)
        values = self.memory[: len(queries)]
        torch.mm(torch.cat([-2.0 * queries, queries.new_ones(len(queries), 1)], dim=1), self.factors, out=values)
        limit = (squares.sqrt() + self.largest).square()
        values = values.view(len(queries), -1, GROUP)
        return Rough(values, self.one, squares, self.zero, self.rounding * limit, limit[:, 0].isfinite())


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
        self.codes = whole.to(torch.int8).view_as(padded).T
        errors = (groups - whole * scale[:, None]).view(len(groups), GROUP, -1)
        errors = torch.linalg.vector_norm(errors, dim=2).amax(dim=1)
        self.scale = scale
        self.squares = padded.square().sum(dim=1).view(-1, GROUP)
        norms = self.squares.amax(dim=1).sqrt()
        self.largest = norms.max()
        # margin = 2 (|dq| |d| + |q'| |dd|) + rounding (|q| + |d|)^2, a product of terms of the query and of the group
        self.rounding = 2.0 * rounding(database.shape[1])  # of the sums of squares, and of the steps to the bounds
        self.terms = torch.stack([norms, errors, norms.square(), torch.ones_like(norms)])
        self.memory = torch.empty(rows, len(padded), dtype=torch.int32)

    def __call__(self, queries: Tensor) -> Rough:
        """Distances of a block of queries, valid until the next call."""
        squares = queries.square().sum(dim=1, keepdim=True)
        norms = squares.sqrt()
        scale = queries.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / _LARGEST
        whole = (queries / -scale).round_()
        values = self.memory[: len(queries)]
        torch._int_mm(whole.to(torch.int8), self.codes, out=values)
        errors = torch.linalg.vector_norm(queries + whole * scale, dim=1, keepdim=True)
        rounding = torch.full_like(norms, self.rounding)
        terms = [2.0 * (errors + rounding * norms), 2.0 * (norms + errors), rounding, rounding * squares]
        sound = (norms + self.largest).square()[:, 0].isfinite()
        values = values.view(len(queries), -1, GROUP)
        return Rough(values, 2.0 * scale * self.scale, squares, self.squares, torch.cat(terms, 1) @ self.terms, sound)


def products(database: Tensor, rows: int) -> Fp32Products | Int8Products:
    """The fastest products for this device and these descriptors."""
    fits = database.device.type == "cpu" and _NARROWEST <= database.shape[1] <= _WIDEST
    if fits and (largest := largest_int8()):
        squares = pad(database).square().sum(dim=1).view(-1, GROUP)
        # lengths that differ within a group blur its bounds; False for what is not finite
        if bool((squares.amax(dim=1) - squares.amin(dim=1)).mean() < 0.1 * squares.mean()):
            return Int8Products(database, rows, largest)
    return Fp32Products(database, rows)


@functools.cache
def largest_int8() -> int:
    """The largest value of a database in int8 whose products with any query this CPU computes exactly; 0 if not fast.

    Without instructions for 8 bits (VNNI) two products are added in 16 bits: with 8 bits both they overflow. What a CPU
    can do does not say it, as oneDNN can be told to do without: the extremes are tried.
    """
    able = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available() or not able.get("avx2"):
        return 0
    queries = torch.full((GROUP, 128), _LARGEST, dtype=torch.int8)
    queries[::2] *= -1
    for largest in (127, 64):
        database = torch.full((GROUP, 128), largest, dtype=torch.int8)
        database[1::3] *= -1
        if bool((torch._int_mm(queries, database.T).abs() == 128 * _LARGEST * largest).all()):
            return largest
    return 0


def rounding(width: int) -> float:
    """Bound of the relative rounding error of a sum of ``width`` products in float32."""
    return float((width + 8) * 2.0**-23)


def pad(database: Tensor) -> Tensor:
    """Its last row repeated until the rows are whole groups."""
    missing = -len(database) % GROUP
    return torch.cat([database, database[-1:].expand(missing, -1)]) if missing else database
