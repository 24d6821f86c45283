"""Rules that turn nearest neighbours into putative matches."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from eval.core.nearest import Distance, Neighbours, nearest, nearest_below_ratio
from kornia_hardnet8.errors import UsageError, closest

Filter = Literal["none", "snn_ratio_pairwise", "snn_ratio_vs_last", "fginn_ratio_pairwise"]
FILTERS = ("none", "snn_ratio_pairwise", "snn_ratio_vs_last", "fginn_ratio_pairwise")
DISTANCES = ("l2", "l1", "hamming")


class Matches(NamedTuple):
    """Putative matches with their ratios, so that a threshold can be chosen afterwards."""

    ratios: Tensor
    """(M,) float32, first over second distance, the larger of both directions; lower is better."""
    matches: Tensor
    """(M, 2) int64, indices into image 0 and image 1, by ascending index in image 0."""

    def below(self, max_ratio: float) -> Matches:
        """The matches with ``ratio <= max_ratio``."""
        keep = self.ratios <= max_ratio
        return Matches(self.ratios[keep], self.matches[keep])


@torch.no_grad()
def mutual_nn(descs0: Tensor, descs1: Tensor, max_ratio: float | None = None) -> Matches:
    """Mutual nearest neighbours (L2) with the ratio test both ways.

    Convention: ``ratio <= max_ratio`` passes. The ratio is 1 where it says nothing: the second distance is zero, or
    there is no second neighbour. A descriptor with NaN or infinity never matches.

    Args:
        descs0: descriptors of image 0, (N0, D).
        descs1: descriptors of image 1, (N1, D), on the same device.
        max_ratio: upper bound; None keeps every mutual match. Matches of one call without bound, cut by
            :meth:`Matches.below`, are those of a call with the bound.

    Returns:
        ratios (M,), matches (M, 2). M = 0 when N0 or N1 is 0.

    Raises:
        ValueError: not two matrices of one width.

    Source: Lowe 2004 sec. 7.1; same result as ``kornia.feature.match_smnn`` (which needs two rows in both).
    """
    descs0, rows0 = finite_rows(descs0)
    descs1, rows1 = finite_rows(descs1)
    i0, i1, ratios = _nearest_and_ratio(descs0, descs1, max_ratio)
    # only the descriptors that someone chose can choose back
    chosen, position = torch.unique(i1, return_inverse=True)
    back, back_i0, back_ratios = _nearest_and_ratio(descs1[chosen], descs0, max_ratio)
    answer, answer_ratio = i0.new_full((len(chosen),), -1), ratios.new_zeros(len(chosen))
    answer[back], answer_ratio[back] = back_i0, back_ratios
    mutual = answer[position] == i0
    ratios = torch.maximum(ratios, answer_ratio[position])[mutual]
    return Matches(ratios, torch.stack([rows0[i0[mutual]], rows1[i1[mutual]]], dim=1))


def _nearest_and_ratio(queries: Tensor, database: Tensor, max_ratio: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that pass the ratio test (R,), their nearest neighbours (R,), and the ratios (R,) float32."""
    rows = torch.arange(len(queries), device=queries.device)
    if len(database) == 0:
        return rows[:0], rows[:0], queries.new_zeros(0, dtype=torch.float32)
    if max_ratio is None:
        neighbours = nearest(queries, database, 2)
    else:
        rows, neighbours = nearest_below_ratio(queries, database, max_ratio)
    ratios = _first_over_second(neighbours.dists)
    keep = torch.ones_like(ratios, dtype=torch.bool) if max_ratio is None else ratios <= max_ratio
    return rows[keep], neighbours.idx[keep, 0], ratios[keep]


@torch.no_grad()
def match_ratios(descs0: Tensor, descs1: Tensor, matches: Tensor, symmetric: bool = True) -> Tensor:
    """Ratio of the first to the second distance (L2) of each match: what a ratio test compares with its threshold.

    Args:
        descs0: descriptors of image 0, (N0, D).
        descs1: descriptors of image 1, (N1, D), on the same device.
        matches: (M, 2) int64, of finite descriptors.
        symmetric: the larger ratio of both directions; else only from image 0 to image 1.

    Returns:
        (M,) float32 in [0, 1]; 1 where the partner is not the nearest neighbour, or there is no second one.
    """
    ratios = _ratios_one_way(descs0[matches[:, 0]], descs1, matches[:, 1])
    if not symmetric:
        return ratios
    return torch.maximum(ratios, _ratios_one_way(descs1[matches[:, 1]], descs0, matches[:, 0]))


def deduplicate_matches(matches: Tensor, kpts0: Tensor, kpts1: Tensor) -> Tensor:
    """Drop matches whose four coordinates repeat, the first stays; sorted by (x0, y0, x1, y1).

    Detectors that give a place several orientations give several keypoints at one position.

    Args:
        matches: (M, 2) int64.
        kpts0: keypoints of image 0, (N0, >= 2), x y in the first two columns; compared exactly.
        kpts1: keypoints of image 1, (N1, >= 2).

    Returns:
        (M', 2), M' <= M.

    Source: IMW benchmark.
    """
    if len(matches) == 0:
        return matches.reshape(-1, 2)
    kpts0, kpts1 = kpts0.to(matches.device), kpts1.to(matches.device)
    rows = torch.cat([kpts0[matches[:, 0], :2].double(), kpts1[matches[:, 1], :2].double()], dim=1)
    order = torch.arange(len(rows), device=rows.device)
    for column in (3, 2, 1, 0):
        order = order[rows[order, column].argsort(stable=True)]
    rows = rows[order]
    first = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    first[1:] = (rows[1:] != rows[:-1]).any(dim=1)
    return matches[order[first]]


@dataclass(frozen=True)
class MatcherSettings:
    """The matcher of the IMW benchmark: nearest neighbours, a filter, a distance cap, a symmetric step.

    Raises :class:`UsageError` for a value that the benchmark does not know.
    """

    distance: Distance = "l2"
    num_nn: int = 1
    """Neighbours kept of each descriptor, at least 1."""
    filter: Filter = "snn_ratio_pairwise"
    threshold: float | None = 0.9
    """Upper bound of the ratio, in [0.1, 1.01]; unused by the filter ``none``."""
    fginn_radius: float | None = None
    """Pixels, in [0, 500]; only for ``fginn_ratio_pairwise``."""
    symmetric: Literal["none", "both", "any"] = "both"
    max_distance: float | None = None
    """Keep matches at a descriptor distance <= this."""
    compat: bool = False
    """Reproduce the original to the letter: duplicates leave the reverse direction before the mutual check, a single
    reverse match is dropped, ``any`` gives nothing when the forward direction is empty."""

    def __post_init__(self) -> None:
        """Check every value."""
        _check_name("distance", self.distance, DISTANCES)
        _check_name("filter", self.filter, FILTERS)
        _check_name("symmetric step", self.symmetric, ("none", "both", "any"))
        if self.num_nn < 1:
            raise UsageError(f"num_nn must be at least 1, got {self.num_nn}")
        if self.filter != "none" and (self.threshold is None or not 0.1 <= self.threshold <= 1.01):
            raise UsageError(f"the filter {self.filter} needs a threshold in [0.1, 1.01], got {self.threshold}")
        if self.filter == "fginn_ratio_pairwise" and (self.fginn_radius is None or not 0 <= self.fginn_radius <= 500):
            raise UsageError(f"the filter {self.filter} needs a fginn_radius in [0, 500] px, got {self.fginn_radius}")
        if self.max_distance is not None and not self.max_distance > 0:
            raise UsageError(f"the distance cap must be positive, got {self.max_distance}")

    def to_dict(self) -> dict[str, Any]:
        """What is hashed, stored and shown."""
        return asdict(self)

    @classmethod
    def from_official(cls, matcher: dict[str, Any], compat: bool = False) -> MatcherSettings:
        """From the ``matcher`` dictionary of a submission's config.json; names in any case.

        ``flann`` is answered by exact search. With ``compat`` l1 and flann together mean l2, as in the original.

        Raises:
            UsageError: a key is missing or wrong, or flann is asked for binary descriptors.

        Source: IMW benchmark.
        """
        try:
            filtering, symmetric = matcher["filtering"], matcher["symmetric"]
            distance, kind = str(matcher["distance"]).lower(), str(filtering["type"]).lower()
            method, flann, num_nn = matcher["method"], bool(matcher["flann"]), int(matcher["num_nn"])
            step = str(symmetric["reduce"]).lower() if symmetric["enabled"] else "none"
        except KeyError as error:
            raise UsageError(f"the matcher settings lack the key {error.args[0]!r}") from None
        _check_name("matcher method", method, ("nn",))
        if step == "none" and symmetric["enabled"]:
            raise UsageError("unknown symmetric step 'none': both or any")
        if flann and distance == "hamming":
            raise UsageError("flann cannot search binary descriptors: set flann to false for hamming")
        if flann and distance == "l1" and compat:
            distance = "l2"
        cap = matcher.get("descriptor_distance_filter")
        return cls(
            distance=distance,  # type: ignore[arg-type]  # checked in __post_init__
            num_nn=num_nn,
            filter=kind,  # type: ignore[arg-type]
            threshold=filtering.get("threshold"),
            fginn_radius=filtering.get("fginn_radius"),
            symmetric=step,  # type: ignore[arg-type]
            max_distance=cap["threshold"] if cap else None,
            compat=compat,
        )


@torch.no_grad()
def official_match(
    descs0: Tensor, descs1: Tensor, kpts0: Tensor, kpts1: Tensor, settings: MatcherSettings | None = None
) -> Tensor:
    """Matches of two images by the rules of the IMW benchmark.

    Args:
        descs0: descriptors of image 0, (N0, D); uint8 for hamming. Rows with NaN or infinity never match.
        descs1: descriptors of image 1, (N1, D).
        kpts0: keypoints of image 0, (N0, >= 2); all columns enter the radius of fginn.
        kpts1: keypoints of image 1, (N1, >= 2).
        settings: see :class:`MatcherSettings`.

    Returns:
        (M, 2) int64, sorted by the coordinates (x0, y0, x1, y1), no two with the same four coordinates.

    Raises:
        ValueError: descriptors of unequal width, or not one keypoint a descriptor.

    Source: IMW benchmark.
    """
    settings = settings or MatcherSettings()
    for which, descs, kpts in ((0, descs0, kpts0), (1, descs1, kpts1)):
        if len(descs) != len(kpts) or (len(kpts) and (kpts.ndim != 2 or kpts.shape[1] < 2)):
            raise ValueError(f"image {which}: {tuple(descs.shape)} descriptors but keypoints {tuple(kpts.shape)}")
    if len(descs0) == 0 or len(descs1) == 0:
        return torch.zeros(0, 2, dtype=torch.long, device=descs0.device)
    descs0, rows0 = finite_rows(descs0)
    descs1, rows1 = finite_rows(descs1)
    kpts0, kpts1 = kpts0.to(descs0.device)[rows0], kpts1.to(descs0.device)[rows1]
    matches = _one_way(descs0, descs1, kpts1, settings)
    if settings.symmetric != "none":
        if settings.symmetric == "both" and not settings.compat:
            # only the descriptors that someone chose can choose back
            chosen = matches[:, 1].unique()
            reverse = _one_way(descs1[chosen], descs0, kpts0, settings)
            reverse[:, 0] = chosen[reverse[:, 0]]
        else:
            reverse = _one_way(descs1, descs0, kpts0, settings)
        if settings.compat:
            reverse = deduplicate_matches(reverse, kpts1, kpts0)
        combine = _both if settings.symmetric == "both" else _any
        matches = combine(matches, reverse, settings.compat)
    matches = deduplicate_matches(matches, kpts0, kpts1)
    return torch.stack([rows0[matches[:, 0]], rows1[matches[:, 1]]], dim=1)


def _one_way(queries: Tensor, database: Tensor, database_kpts: Tensor, settings: MatcherSettings) -> Tensor:
    """Filtered neighbours (query, neighbour), (M, 2), by query, then by rank."""
    fginn = settings.filter == "fginn_ratio_pairwise"
    rows = torch.arange(len(queries), device=queries.device)
    if settings.num_nn == 1 and settings.filter in ("snn_ratio_pairwise", "snn_ratio_vs_last"):
        assert settings.threshold is not None
        rows, neighbours = nearest_below_ratio(queries, database, settings.threshold, settings.distance)
    else:
        neighbours = nearest(queries, database, settings.num_nn + (10 if fginn else 1), settings.distance)
    if neighbours.idx.shape[1] < 2:  # the last neighbour is only compared with, never kept
        return neighbours.idx.new_zeros(0, 2)
    keep = _fginn(neighbours, database_kpts, settings) if fginn else _plain_filter(neighbours.dists, settings)
    if settings.max_distance is not None:
        keep = keep & (neighbours.dists[:, : keep.shape[1]].double() <= settings.max_distance)
    query, rank = keep.nonzero(as_tuple=True)
    return torch.stack([rows[query], neighbours.idx[query, rank]], dim=1)


def _plain_filter(dists: Tensor, settings: MatcherSettings) -> Tensor:
    """(N, k - 1) bool; compared in double precision, as thresholds such as 0.6 are not exact in float32."""
    dists = dists.double()
    first = dists[:, :-1]
    if settings.filter == "none":
        return torch.ones_like(first, dtype=torch.bool)
    assert settings.threshold is not None
    return first <= settings.threshold * (dists[:, 1:] if settings.filter == "snn_ratio_pairwise" else dists[:, -1:])


def _fginn(neighbours: Neighbours, kpts: Tensor, settings: MatcherSettings) -> Tensor:
    """(N, num_nn) bool: the ratio to the first neighbour that passes, or to the first one that is far away."""
    assert settings.threshold is not None
    assert settings.fginn_radius is not None
    dists, places = neighbours.dists.double(), kpts.double()[neighbours.idx]
    num_kept = min(settings.num_nn, dists.shape[1])
    keep = torch.zeros(len(dists), num_kept, dtype=torch.bool, device=dists.device)
    for rank in range(num_kept):
        undecided = torch.ones(len(dists), dtype=torch.bool, device=dists.device)
        for other in range(rank + 1, dists.shape[1]):
            passes = dists[:, rank] <= settings.threshold * dists[:, other]
            near = torch.linalg.vector_norm(places[:, other] - places[:, rank], dim=1) <= settings.fginn_radius
            keep[:, rank] |= undecided & passes
            undecided = undecided & ~passes & near
    return keep


def _both(forward: Tensor, reverse: Tensor, compat: bool) -> Tensor:
    """Forward matches that the reverse direction confirms; ``compat`` looks only at the first answer of a query."""
    if not compat:
        width = 1 + int(max(forward[:, 1].max(), reverse[:, 0].max())) if len(forward) and len(reverse) else 1
        return forward[torch.isin(forward[:, 0] * width + forward[:, 1], reverse[:, 1] * width + reverse[:, 0])]
    if len(reverse) < 2:
        return forward[:0]
    size = 1 + int(torch.cat([forward[:, 1], reverse[:, 0]]).max())
    order = torch.arange(len(reverse) - 1, -1, -1, device=reverse.device)
    position = torch.full((size,), len(reverse), device=reverse.device)
    position.scatter_reduce_(0, reverse[order, 0], order, "amin")
    answer = torch.full((len(reverse) + 1,), -1, device=reverse.device)
    answer[:-1] = reverse[:, 1]
    return forward[answer[position[forward[:, 1]]] == forward[:, 0]]


def _any(forward: Tensor, reverse: Tensor, compat: bool) -> Tensor:
    """Matches of either direction."""
    if compat and len(forward) == 0:
        return forward
    return torch.cat([forward, reverse.flip(1)])


def _first_over_second(dists: Tensor) -> Tensor:
    """(N, k) ascending distances -> (N,) ratios, 1 where the second is missing or zero."""
    if dists.shape[1] < 2:
        return dists.new_ones(len(dists))
    return torch.where(dists[:, 1] > 0, dists[:, 0] / dists[:, 1], 1.0)


def _ratios_one_way(queries: Tensor, database: Tensor, partners: Tensor) -> Tensor:
    """(M,) ratios of queries (M, D) to their nearest rows, 1 where that is not the partner."""
    database, rows = finite_rows(database)
    neighbours = nearest(queries, database, 2)
    if neighbours.idx.shape[1] == 0:
        return queries.new_ones(len(queries), dtype=torch.float32)
    is_nearest = rows[neighbours.idx[:, 0]] == partners
    return torch.where(is_nearest, _first_over_second(neighbours.dists), 1.0)


def finite_rows(descs: Tensor) -> tuple[Tensor, Tensor]:
    """The finite rows and their indices."""
    if descs.ndim != 2:
        raise ValueError(f"descriptors must be (N, D), got {tuple(descs.shape)}")
    rows = torch.arange(len(descs), device=descs.device)
    # one pass: a sum is finite only where all that is added is
    if descs.is_floating_point() and not descs.sum().isfinite():
        finite = descs.isfinite().all(dim=1)
        return descs[finite], rows[finite]
    return descs, rows


def _check_name(what: str, name: object, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(f"unknown {what} {name!r}: {', '.join(known)}{closest(str(name), known)}")
