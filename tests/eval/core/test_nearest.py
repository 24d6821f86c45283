from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.core import nearest as module
from eval.core.nearest import nearest


def brute_force(queries: np.ndarray, database: np.ndarray, k: int, distance: str) -> tuple[np.ndarray, np.ndarray]:
    gaps = queries[:, None].astype(np.float64) - database[None]
    if distance == "l2":
        dists = np.sqrt((gaps**2).sum(2))
    elif distance == "l1":
        dists = np.abs(gaps).sum(2)
    else:
        dists = np.unpackbits(queries[:, None] ^ database[None], axis=2).sum(2).astype(float)
    order = np.argsort(dists, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(dists, order, 1), order


# small integers: many exact ties, and every distance is exact in float32
@given(st.data(), st.sampled_from(["l2", "l1", "hamming"]), st.integers(1, 12))
def test_same_as_brute_force_with_ties(data, distance, k):
    shapes = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 30))
    values = st.integers(0, 3)
    dtype = np.uint8 if distance == "hamming" else np.float32
    queries, database = (
        np.array(data.draw(st.lists(st.lists(values, min_size=3, max_size=3), min_size=n, max_size=n)), dtype).reshape(
            n, 3
        )
        for n in shapes
    )
    dists, idx = brute_force(queries, database, k, distance)
    got = nearest(torch.tensor(queries), torch.tensor(database), k, distance)
    assert got.idx.tolist() == idx.tolist()
    np.testing.assert_allclose(got.dists.numpy(), dists, rtol=1e-6)


# with an offset the matrix product loses digits of the distance: at 10 it swaps neighbours, at 100 it knows nothing
@pytest.mark.parametrize("offset", [0.0, 10.0, 100.0])
@pytest.mark.parametrize("block_bytes", [1 << 14, 1 << 25])
def test_rounding_and_blocks_change_nothing(offset, block_bytes, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", block_bytes)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(300, 16, generator=generator) * 0.01 + offset
    database = torch.randn(1000, 16, generator=generator) * 0.01 + offset
    dists, idx = brute_force(queries.numpy(), database.numpy(), 3, "l2")
    got = nearest(queries, database, 3)
    assert got.idx.tolist() == idx.tolist()
    np.testing.assert_allclose(got.dists.numpy(), dists, rtol=1e-5)


@pytest.mark.parametrize("distance", ["l2", "l1", "hamming"])
def test_more_ties_than_candidates(distance):
    database = torch.full((100, 4), 7, dtype=torch.uint8)
    database[50:] = 9
    got = nearest(torch.full((2, 4), 9, dtype=torch.uint8), database, 3, distance)
    assert got.idx.tolist() == [[50, 51, 52]] * 2
    assert got.dists.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("columns", [64 * 9, 64 * 9 + 1, 64 * 10 - 1, 8000])
@pytest.mark.parametrize("levels", [5, 10_000])  # with and without ties
def test_smallest_of_groups_of_columns(columns, levels):
    generator = torch.Generator().manual_seed(columns)
    values = torch.randint(levels, (50, columns), generator=generator).float()
    values[0] = torch.arange(columns).flip(0)  # the smallest in the last columns
    values[1] = torch.arange(columns)  # in one group
    found, at = module._smallest(values[10:], 3)  # a view with an offset
    assert torch.equal(found, values[10:].topk(3, dim=1, largest=False).values)
    found, at = module._smallest(values, 3)
    assert torch.equal(found, values.sort(dim=1).values[:, :3])
    assert torch.equal(values.gather(1, at), found)
    assert all(len(set(row)) == 3 for row in at.tolist())
    assert at[:2].tolist() == [[columns - 1, columns - 2, columns - 3], [0, 1, 2]]


@pytest.mark.parametrize("distance", ["l2", "l1", "hamming"])
def test_large_databases_with_ties(distance):
    rng = np.random.default_rng(0)
    dtype = np.uint8 if distance == "hamming" else np.float32
    queries, database = rng.integers(0, 4, (20, 4)).astype(dtype), rng.integers(0, 4, (2000, 4)).astype(dtype)
    dists, idx = brute_force(queries, database, 2, distance)
    got = nearest(torch.tensor(queries), torch.tensor(database), 2, distance)
    assert got.idx.tolist() == idx.tolist()
    np.testing.assert_allclose(got.dists.numpy(), dists, rtol=1e-6)


def test_same_as_opencv():
    rng = np.random.default_rng(0)
    queries, database = rng.random((50, 32), np.float32), rng.random((400, 32), np.float32)
    found = cv2.BFMatcher(cv2.NORM_L2).knnMatch(queries, database, k=4)
    got = nearest(torch.tensor(queries), torch.tensor(database), 4)
    assert got.idx.tolist() == [[m.trainIdx for m in row] for row in found]
    np.testing.assert_allclose(got.dists.numpy(), [[m.distance for m in row] for row in found], rtol=1e-6)


def test_empty_and_small():
    assert nearest(torch.zeros(0, 8), torch.zeros(5, 8), 2).idx.shape == (0, 2)
    assert nearest(torch.zeros(5, 8), torch.zeros(0, 8), 2).idx.shape == (5, 0)
    assert nearest(torch.zeros(5, 8), torch.zeros(1, 8), 2).idx.tolist() == [[0]] * 5


def test_other_dtypes_and_strides():
    generator = torch.Generator().manual_seed(0)
    queries, database = torch.rand(20, 8, generator=generator), torch.rand(60, 8, generator=generator)
    expected = nearest(queries, database, 2)
    strided = nearest(queries.double().T.contiguous().T, database.double().repeat(1, 2)[:, :8], 2)
    assert strided.idx.tolist() == expected.idx.tolist()
    assert strided.dists.dtype == torch.float32
    half = nearest(queries.half(), database.half(), 2)
    assert torch.equal(half.dists, nearest(queries.half().float(), database.half().float(), 2).dists)


def test_wrong_input():
    with pytest.raises(ValueError, match=r"\(2, 8\) and \(2, 4\)"):
        nearest(torch.zeros(2, 8), torch.zeros(2, 4), 1)
    with pytest.raises(ValueError, match="l2, l1 or hamming"):
        nearest(torch.zeros(2, 8), torch.zeros(2, 8), 1, "cosine")  # type: ignore[arg-type]


def hard_descriptors(seed: int, num: int, width: int) -> torch.Tensor:
    """Duplicates, near-ties of one last digit, zero rows, rows of other lengths, and ordinary ones."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(num, width, generator=generator), dim=1)
    kinds = torch.randint(6, (num,), generator=generator)
    other = rows[torch.randint(num, (num,), generator=generator)]
    rows[kinds == 0] = other[kinds == 0]
    nudged = torch.nextafter(other, torch.full_like(other, torch.inf))
    rows[kinds == 1] = nudged[kinds == 1]
    rows[kinds == 2] = 0.0
    rows[kinds == 3] *= 10.0 ** torch.randint(-3, 4, (int((kinds == 3).sum()), 1), generator=generator)
    return rows


@pytest.mark.parametrize("width", [4, 128])
@pytest.mark.parametrize(("num_queries", "num_database"), [(300, 1), (300, 63), (300, 700), (40, 2000)])
@pytest.mark.parametrize("max_ratio", [0.1, 0.8, 0.9, 0.999999, 1.0, 1.01])
def test_below_a_ratio_no_row_that_passes_is_left_out(width, num_queries, num_database, max_ratio):
    queries = hard_descriptors(1, num_queries, width)
    database = torch.cat([hard_descriptors(2, num_database, width), queries[:50] + 1e-7])[:num_database]
    whole = nearest(queries, database, 2)
    rows, neighbours = module.nearest_below_ratio(queries, database, max_ratio)
    assert torch.equal(neighbours.idx, whole.idx[rows])
    assert torch.equal(neighbours.dists, whole.dists[rows])
    first, last = whole.dists[:, 0].double(), whole.dists[:, -1].double()
    assert set((first <= max_ratio * last).nonzero().flatten().tolist()) <= set(rows.tolist())


def test_below_a_ratio_most_rows_without_a_counterpart_are_left_out():
    generator = torch.Generator().manual_seed(0)
    queries, database = (
        torch.nn.functional.normalize(torch.randn(n, 128, generator=generator), dim=1) for n in (500, 2000)
    )
    database[:20] = queries[480:]
    rows, neighbours = module.nearest_below_ratio(queries, database, 0.8)
    assert rows.tolist() == list(range(480, 500))
    assert neighbours.idx[:, 0].tolist() == list(range(20))
