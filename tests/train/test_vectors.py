"""Cases of the vector file that no other test takes, and that every case is taken by some test."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from common.metrics import average_precision, average_precision_merged, fpr_at_recall, precision_recall
from kornia_hardnet8 import HardNet8
from train.augment import PRESETS, augment
from train.config import TrainConfig
from train.forward import raw_descriptors
from train.losses import Criterion, Described, LossOptions
from train.optim import Rate, build_optimizer, set_rate
from train.sampling import dataset_sequence, index_views, label_offsets, plan_view_batch

from .vector_cases import NOT_REPRODUCED, PROPERTIES, REPRODUCED, ROOT, case_names

Cases = dict[str, dict[str, Any]]


def _file_of(name: str) -> str | None:
    fitting = [prefix for prefix in REPRODUCED if name.startswith(prefix)]
    return REPRODUCED[max(fitting, key=len)] if fitting else None


@pytest.mark.parametrize("name", case_names())
def test_every_case_is_taken_or_has_a_reason(name: str) -> None:
    if name in NOT_REPRODUCED:
        assert NOT_REPRODUCED[name]
        return
    if name in PROPERTIES:
        path, function = PROPERTIES[name]
        assert function in (ROOT / path).read_text(encoding="utf-8")
        return
    file = _file_of(name)
    assert file is not None, f"{name} belongs to no test"
    text = (ROOT / file).read_text(encoding="utf-8")
    group, _, rest = name.partition(".")
    if name in text:
        return
    # a parametrised test: f"group.stem{…}" and the end of the name among the values
    stems = re.findall(rf'f"{re.escape(group)}\.([A-Za-z0-9_]*)\{{', text)
    ends = [rest.removeprefix(stem) for stem in stems if rest.startswith(stem)]
    assert any(f'"{end}"' in text for end in ends), f"{file} does not speak of {name}"


def test_the_ledger_names_cases_that_exist() -> None:
    names = case_names()
    assert len(names) == 116
    assert {*NOT_REPRODUCED, *PROPERTIES} <= set(names)
    assert not NOT_REPRODUCED.keys() & PROPERTIES.keys()
    assert all(any(name.startswith(prefix) for name in names) for prefix in REPRODUCED)


@pytest.mark.parametrize(
    ("name", "loss"), [("tripletMargin", "tripletMargin"), ("tripletMargin_pp", "tripletMargin++")]
)
def test_whole_training_steps(cases: Cases, name: str, loss: str) -> None:
    case = cases[f"train_step.{name}"]
    inputs = case["inputs"]
    model = HardNet8(arch="h7nodrop", output_dim=None).train()
    generator = np.random.RandomState(inputs["seed"])
    state = model.features.state_dict()
    for key, value in state.items():  # the rule fill_v1
        shape = tuple(value.shape)
        if key.endswith("running_var"):
            state[key] = torch.from_numpy(generator.uniform(0.5, 1.5, shape)).float()
        elif key.endswith("running_mean"):
            state[key] = torch.from_numpy(0.1 * generator.standard_normal(shape)).float()
        elif value.is_floating_point():
            state[key] = torch.from_numpy(generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).float()
    model.features.load_state_dict(state)
    model.to(memory_format=torch.channels_last)
    generator = np.random.RandomState(9)
    base = np.repeat(generator.randint(0, 256, (6, 1, 32, 32)), 2, axis=0)
    noisy = np.clip(base + generator.randint(-40, 41, (12, 1, 32, 32)), 0, 255)
    patches = torch.from_numpy((noisy / 255).astype(np.float32))
    criterion = Criterion(loss, LossOptions(inputs["margin"]))
    optimizer = build_optimizer("adamw", model, inputs["lr"], inputs["wd"])
    set_rate(optimizer, Rate(inputs["lr"], inputs["mom"]))
    for number, expected in enumerate(case["expected"]["steps"]):
        raw = raw_descriptors(model, patches)
        tuples = torch.arange(12) // 2
        value, _, _ = criterion(Described(F.normalize(raw, dim=1), raw.norm(dim=1), tuples, tuples))
        rel = 1e-4 if number == 0 else 0.02
        optimizer.zero_grad()
        value.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        head = model.features[0].weight.detach().flatten()[:4]
        assert value.item() == pytest.approx(expected["loss"], rel=rel)
        assert norm.item() == pytest.approx(expected["grad_norm"], rel=rel)
        optimizer.step()
        head = model.features[0].weight.detach().flatten()[:4]
        assert head.tolist() == pytest.approx(expected["first_weight_head"], rel=0.02)


def test_symmetries_are_those_published(cases: Cases) -> None:
    """sampling.fliprot: both patches of a tuple are transposed, then mirrored, or not."""
    patch = torch.arange(9, dtype=torch.uint8).view(3, 3)
    pairs = torch.stack([patch, patch + 100]).repeat(100, 1, 1)
    out = augment(pairs, 2, 1.0, 3, PRESETS["published"], torch.Generator().manual_seed(0)).round().long()
    found = {tuple(pair.flatten().tolist()) for pair in out.view(100, 2, 3, 3)}
    items = cases["sampling.fliprot"]["expected"]["items"]
    assert {tuple(torch.tensor(item).flatten().tolist()) for item in items} <= found
    assert len(found) == 4


@pytest.mark.parametrize("name", ["dataset_sequence", "dataset_sequence_weighted"])
def test_the_sequence_of_sets_with_the_generator_of_2020(cases: Cases, name: str) -> None:
    case = cases[f"sampling.{name}"]
    inputs = case["inputs"]
    drawn = dataset_sequence(inputs["frequencies"], inputs["n_iters"], np.random.RandomState(inputs["numpy_seed"]))
    assert drawn.tolist() == case["expected"]["sequence"]


def test_batches_of_an_epoch(cases: Cases) -> None:
    case = cases["sampling.batches_per_epoch"]
    found = [TrainConfig("x", tuples=n, bs=bs).steps_per_epoch for n, bs in case["inputs"]["pairs"]]
    assert found == case["expected"]["n"]


def test_offsets_of_labels(cases: Cases) -> None:
    case = cases["sampling.label_offsets"]
    largest = [n if kind == "brown" else n - 1 for kind, n in case["inputs"]["sets"]]
    found = [[offset, offset + last] for offset, last in zip(label_offsets(largest), largest, strict=True)]
    assert found == case["expected"]["offset_and_max_label"]


def test_colliding_places_are_not_drawn_together(cases: Cases) -> None:
    """On the table of the case; its draws are those of another generator, its batch obeys the same rule."""
    case = cases["sampling.amos_new_collisions"]
    cams, lists = np.array(case["inputs"]["cam_idxs"]), case["inputs"]["collisions"]
    labels = np.repeat(np.arange(12), 6)
    starts = np.cumsum([0, *map(len, lists)])
    images = np.tile(np.arange(6), 12) + 6 * np.repeat(cams, 6)
    index = index_views(labels, images, np.repeat(cams, 6), (starts, np.concatenate(lists)))
    batches = [labels[plan_view_batch(index, 7, 2, np.random.default_rng(s))[:, 0]].tolist() for s in range(40)]
    for batch in [*batches, [place for place, _ in case["expected"]["tuples"]]]:
        assert not any(a in lists[b] for k, a in enumerate(batch) for b in batch[k + 1 :])
    assert {place for batch in batches for place in batch} == set(range(12))


def test_false_positive_rates(cases: Cases) -> None:
    inputs = cases["fpr95.as_implemented"]["inputs"]
    for name, recall in (("as_implemented", 0.99), ("correct", 0.95)):
        found = fpr_at_recall(inputs["distances"], inputs["labels"], recall)
        assert found == pytest.approx(cases[f"fpr95.{name}"]["expected"]["value"], abs=1e-9)
    tiny = cases["fpr95.tiny"]
    for key, value in tiny["expected"].items():
        found = fpr_at_recall(tiny["inputs"]["distances"], tiny["inputs"]["labels"], float(key[-4:].strip("_")))
        assert found == pytest.approx(value, abs=1e-9)
    expected = cases["fpr95.average_precision"]["expected"]
    for case, value in ((inputs, expected["value"]), (tiny["inputs"], expected["tiny"])):
        assert average_precision_merged(-np.array(case["distances"]), case["labels"]) == pytest.approx(value, abs=1e-9)


def test_average_precision_of_matches(cases: Cases) -> None:
    case = cases["fpr95.hpatches_pr"]
    inputs, expected = case["inputs"], case["expected"]
    precision, recall = precision_recall(inputs["scores"], inputs["labels"], inputs["numpos"])
    assert precision.tolist() == pytest.approx(expected["precision"], abs=1e-9)
    assert recall.tolist() == pytest.approx(expected["recall"], abs=1e-9)
    found = average_precision(inputs["scores"], inputs["labels"], inputs["numpos"])
    assert found == pytest.approx(expected["ap"], abs=1e-9)
    case = cases["fpr95.amos_match_pair"]
    query, target = (np.array(case["inputs"][key]) for key in ("query", "target"))
    distances = np.linalg.norm(query[:, None] - target[None], axis=2)
    right = distances.argmin(1) == np.arange(len(query))
    assert right.tolist() == case["expected"]["right"]
    assert average_precision(-distances.min(1), right, len(query)) == pytest.approx(case["expected"]["ap"], abs=1e-6)
