from __future__ import annotations

import functools
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.core import nearest as module
from eval.core import rough
from eval.core.matching import mutual_nn
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
    monkeypatch.setattr(module, "_FEWEST_ROWS", 1)
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


@pytest.fixture(params=[0, 64, 127])
def products(request, monkeypatch):
    """Rough products in float32, in 7 and in 8 bits, whatever the CPU and the descriptors."""
    largest = request.param
    if largest > max(rough.largest_int8(), 64):
        pytest.skip("products of 8 bits overflow on this CPU")
    monkeypatch.setattr(rough, "largest_int8", lambda: largest)
    kind = functools.partial(rough.Int8Products, largest=largest) if largest else rough.Fp32Products
    monkeypatch.setattr(module, "products", kind)
    return kind


def by_differences(queries: torch.Tensor, database: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    dists = torch.stack([(query - database).square().sum(dim=1).sqrt() for query in queries])
    dists, order = dists.sort(dim=1, stable=True)
    return dists[:, :k], order[:, :k]


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


def near_duplicates(seed: int, num: int, num_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows; queries lie within the rounding of 8 bits of several of them, or halfway between two."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num, 128, generator=generator)
    centres = rows[torch.randint(num // 8, (num,), generator=generator)]
    spread = 10.0 ** torch.randint(-7, 0, (num, 1), generator=generator)
    rows = torch.nn.functional.normalize(centres + spread * rows, dim=1)
    rows[:: num // 5] = 0.0
    rows[1 :: num // 5] = rows[2]
    first, second = (rows[torch.randint(num, (num_queries,), generator=generator)] for _ in range(2))
    return (first + second) / 2, rows


@pytest.mark.parametrize("num_database", [1, 63, 64, 129, 511, 512, 513, 2000])
@pytest.mark.parametrize("k", [1, 2, 3, 11])
def test_same_as_differences_to_the_last_bit(products, num_database, k):
    hard = hard_descriptors(3, 120, 128), hard_descriptors(4, num_database, 128)
    for queries, database in (hard, (hard[0], hard[0][:num_database]), near_duplicates(5, 2000, 120)):
        dists, idx = by_differences(queries, database, k)
        got = nearest(queries, database, k)
        assert torch.equal(got.idx, idx)
        assert torch.equal(got.dists, dists)


@pytest.mark.parametrize("num_database", [1, 63, 300, 2000])
@pytest.mark.parametrize("k", [1, 2])
def test_candidates_hold_the_neighbours_in_double_precision_and_their_ties(products, num_database, k, monkeypatch):
    monkeypatch.setattr(module, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * 50 * num_database)
    queries, database = hard_descriptors(3, 120, 128), hard_descriptors(4, num_database, 128)
    queries[7, 3], queries[50] = torch.nan, torch.inf
    for q, d in ((queries, database), near_duplicates(5, 2000, 120)):
        found = module.candidates(q, d, k)
        listed = set(zip(found.row.tolist(), found.column.tolist(), strict=True))
        assert sorted(listed) == list(zip(found.row.tolist(), found.column.tolist(), strict=True))
        exact = torch.cdist(q.double(), d.double(), compute_mode="donot_use_mm_for_euclid_dist")
        for row in (~found.undecided).nonzero().flatten().tolist():
            last = exact[row].sort().values[min(k, len(d)) - 1]
            assert {(row, column) for column in (exact[row] <= last).nonzero().flatten().tolist()} <= listed
        assert not set(found.undecided.nonzero().flatten().tolist()) & {row for row, _ in listed}
    assert module.candidates(q[:0], d, k).undecided.tolist() == []


def test_candidates_of_unit_vectors_are_few_and_all_decided():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(1500, 128, generator=generator), dim=1)
    noisy = torch.nn.functional.normalize(rows + 0.05 * torch.randn(1500, 128, generator=generator), dim=1)
    found = module.candidates(rows, noisy, 1)
    assert not found.undecided.any()
    assert len(found.row) < 2 * 1500


@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(1, 300), st.integers(2, 40), st.integers(1, 12))
def test_rounded_values_tie_as_their_differences_do(seed, num_queries, num_database, width, k):
    generator = torch.Generator().manual_seed(seed)
    queries, database = (torch.randint(-3, 4, (n, width), generator=generator) / 7 for n in (num_queries, num_database))
    dists, idx = by_differences(queries, database, k)
    for kind in (rough.Fp32Products, functools.partial(rough.Int8Products, largest=64)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "products", kind)
            got = nearest(queries, database, k)
        assert torch.equal(got.idx, idx)
        assert torch.equal(got.dists, dists)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e15, 1e18, 1.5e18, 1e19, 1e30])  # squares vanish, or overflow
def test_lengths_beyond_float32(products, size):
    queries, database = hard_descriptors(6, 30, 16), hard_descriptors(7, 300, 16)
    for q, d in ((queries * size, database * size), (queries * size, database), (queries, database * size)):
        dists, idx = by_differences(q, d, 2)
        got = nearest(q, d, 2)
        assert torch.equal(got.idx, idx)
        assert torch.equal(got.dists, dists)
    one_long = database.clone()
    one_long[100] *= size
    assert torch.equal(nearest(queries, one_long, 2).idx, by_differences(queries, one_long, 2)[1])


@pytest.mark.parametrize("max_ratio", [None, 0.8, 1.0])
def test_matches_do_not_depend_on_the_products(products, max_ratio, monkeypatch):
    descs0, descs1 = near_duplicates(8, 900, 700)
    ordinary = torch.nn.functional.normalize(torch.randn(200, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    descs0, descs1 = torch.cat([descs0, ordinary]), torch.cat([ordinary + 1e-3 * ordinary.flip(0), descs1])
    descs0[5], descs1[7, 3], descs1[8] = torch.nan, torch.inf, torch.nan
    got = mutual_nn(descs0, descs1, max_ratio)
    monkeypatch.setattr(module, "products", rough.Fp32Products)
    monkeypatch.setattr(module, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 16)
    expected = mutual_nn(descs0, descs1, max_ratio)
    assert len(expected.matches) > 190
    assert torch.equal(got.matches, expected.matches)
    assert torch.equal(got.ratios, expected.ratios)


def test_rough_distances_lie_within_their_margins(products):
    generator = torch.Generator().manual_seed(0)
    queries = torch.cat([hard_descriptors(9, 100, 128), torch.randn(50, 128, generator=generator) ** 3])
    database = torch.cat([hard_descriptors(10, 500, 128), torch.randn(77, 128, generator=generator) ** 3])
    found = products(database, 150)(queries)
    exact = (queries.double()[:, None] - rough.pad(database).double()).square().sum(dim=2)
    pairs = torch.arange(150 * found.values.shape[1])
    shape = found.least.shape
    factor, base, slack = (
        part.double().expand(shape).reshape(-1, 1) for part in (found.factor, found.base, found.slack)
    )
    offset = found.offset.double().expand(shape[1], rough.GROUP).repeat(150, 1)
    least = found.windows(pairs).double() * factor + base + offset
    exact_windows = exact.view(len(pairs), -1)
    assert (least <= exact_windows).all()
    assert (exact_windows <= least + slack).all()
    for column in (0, 5, 63):  # each is within its own distance
        pair, columns = found.within(pairs, exact_windows[:, column].float())
        assert (columns == column).sum() == len(pairs)
        assert (pair.diff() >= 0).all()
    lower, upper = (bound.double() for bound in found.group_bounds())
    least = exact.view(150, -1, rough.GROUP).amin(dim=2)
    assert (lower <= least).all()
    assert (least <= upper).all()
    assert (exact <= found.upper_bounds().double()).all()
    assert found.sound.all()


@pytest.mark.parametrize("largest", [64, 127])
def test_8_bits_leave_few_candidates_to_be_searched_anew(largest, monkeypatch):
    if largest > max(rough.largest_int8(), 64):
        pytest.skip("products of 8 bits overflow on this CPU")
    monkeypatch.setattr(rough, "largest_int8", lambda: largest)
    generator = torch.Generator().manual_seed(0)
    database = torch.nn.functional.normalize(torch.randn(3000, 128, generator=generator), dim=1)
    database[[17, 1200]] = 0.0  # of flat patches
    queries = torch.nn.functional.normalize(database[:500] + 0.05 * torch.randn(500, 128, generator=generator), dim=1)
    assert isinstance(rough.products(database, 8), rough.Int8Products)
    monkeypatch.setattr(module, "Fp32Products", None)  # nobody needs it
    assert torch.equal(nearest(queries, database, 2).dists, by_differences(queries, database, 2)[0])


def test_lengths_that_differ_are_multiplied_in_float32(monkeypatch):
    monkeypatch.setattr(rough, "largest_int8", lambda: 64)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, 128, generator=generator)
    assert isinstance(rough.products(rows, 8), rough.Fp32Products)
    rows = torch.nn.functional.normalize(rows, dim=1)
    assert isinstance(rough.products(rows, 8), rough.Int8Products)
    for width in (15, 1025):  # not worth it, and sums too large for float32
        assert isinstance(rough.products(rows.repeat(1, 9)[:, :width], 8), rough.Fp32Products)
    rows[3] = torch.inf
    assert isinstance(rough.products(rows, 8), rough.Fp32Products)


@pytest.mark.parametrize("isa", ["SSE41", "AVX2", "DEFAULT"])
def test_products_of_8_bits_never_overflow(isa):
    """oneDNN told to do without instructions for 8 bits: the largest value that is still exact is found."""
    able = torch.cpu.get_capabilities()
    if not able.get("avx2"):
        pytest.skip("no AVX2")
    program = "from eval.core.rough import largest_int8; print(largest_int8())"
    env = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
    said = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
    if isa == "AVX2":
        assert said == "64\n"
    elif isa == "DEFAULT" and able.get("avx512_vnni"):
        assert said == "127\n"
    else:
        assert said in ("64\n", "127\n")


def test_descriptors_too_close_for_8_bits_go_on_in_float32(monkeypatch):
    monkeypatch.setattr(rough, "largest_int8", lambda: 64)
    monkeypatch.setattr(module, "_FEWEST_ROWS", 1)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64 * 4 * 1000)
    calls: list[str] = []
    for kind in (rough.Fp32Products, rough.Int8Products):
        monkeypatch.setattr(kind, "__call__", counted(kind, calls))
    generator = torch.Generator().manual_seed(0)
    centre = torch.nn.functional.normalize(torch.randn(1, 128, generator=generator), dim=1)
    queries, database = (centre + 1e-4 * torch.randn(n, 128, generator=generator) for n in (300, 1000))
    got = nearest(queries, database, 2)
    assert calls == ["Int8Products"] + ["Fp32Products"] * 5
    dists, idx = by_differences(queries, database, 2)
    assert torch.equal(got.idx, idx)
    assert torch.equal(got.dists, dists)


def counted(kind: type, calls: list[str]):
    original = kind.__call__

    def call(self, queries):
        calls.append(kind.__name__)
        return original(self, queries)

    return call
