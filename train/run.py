"""The state of a training run, and one step of it: from a batch to the optimiser, in the order of this file."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.devices import autocast, resolve_precision
from kornia_hardnet8 import HardNet8
from kornia_hardnet8.checkpoints import load_weights
from kornia_hardnet8.errors import DataError, UsageError
from kornia_hardnet8.lafs import DEFAULT_MR_SIZE
from train.augment import augment
from train.batches import Batch, BatchSource
from train.checkpoint import check_like, check_optimizer, save_checkpoint
from train.config import TrainConfig
from train.datasets import open_mix
from train.distributed import World, agree_on, join_rows, sum_gradients
from train.forward import frozen_statistics, raw_descriptors
from train.losses import NESTED_SHARE, Described, NestedLoss
from train.mining import hardest_pairs, row_distances
from train.optim import SCHEDULES, build_optimizer, set_rate
from train.teacher import Teacher

log = logging.getLogger(__name__)


class NotFiniteError(DataError):
    """A step's loss or gradient is no number; ``sound``: the state before it is worth keeping."""

    def __init__(self, message: str, sound: bool) -> None:
        super().__init__(message)
        self.sound = sound


class Run:
    """Network, optimiser, loss, and how far the run is.

    Args:
        config: the settings.
        out: folder of the run.
        device: where it is computed.
        world: this process among others.
        folder: from which relative paths of the settings count.
        resumed: the state comes from a checkpoint: the weights of ``config.init`` are not read.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        device: torch.device,
        world: World | None = None,
        folder: Path = Path(),
        resumed: bool = False,
    ) -> None:
        self.config, self.out, self.device, self.world = config, out, device, world or World()
        if config.bs % self.world.size:
            raise UsageError(f"--bs {config.bs} is no multiple of the {self.world.size} processes")
        stores = open_mix(config.ds, config.data_root, folder)
        val_stores = [] if config.val is None else open_mix(config.val, config.data_root, folder)
        shard = (self.world.rank, self.world.size)
        self.source = BatchSource(stores, config, shard, [store for store, _ in val_stores])
        self.mr_size = _common_mr_size([s.meta for s, _ in stores])
        self.data = [
            {"path": str(s.path), "weight": w, "fingerprint": s.fingerprint(), "meta": s.meta}
            for s, w in [*stores, *((s, 0.0) for s, _ in val_stores)]  # weight 0: to validate on
        ]
        torch.manual_seed(config.seed)
        self.model = HardNet8(arch=config.arch, output_dim=None)
        self.model.untrained = False  # it is about to be trained: a validation before the first step is meant
        for layer in self.model.modules():
            if isinstance(layer, nn.Dropout):
                layer.p = config.dropout_rate
        projection = None
        if config.init is not None and not resumed:
            weights = load_weights(folder / config.init if (folder / config.init).is_file() else config.init)
            if weights.arch != self.model.arch:
                raise UsageError(f"--init {config.init} is {weights.arch}, the run trains {self.model.arch}")
            self.model.features.load_state_dict(weights.features)
            projection = weights.projection
        self.model = self.model.to(device).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = copy.deepcopy(self.model) if config.ema else None
        self.optimizer = build_optimizer(config.optimizer, self.model, config.lr, config.wd, config.eps)
        self.criterion = config.build_criterion().to(device)
        self.nested = None
        if config.nested is not None:
            criterion = config.build_criterion()
            self.nested = NestedLoss(projection, self.model.output_dim, config.nested, criterion).to(device)
        self.teacher = None
        if config.teacher is not None:
            name = str(folder / config.teacher) if (folder / config.teacher).is_file() else config.teacher
            self.teacher = Teacher(name, self.model.output_dim, self.model.patch_size, device)
        self.precision = resolve_precision(config.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self.step = 0
        self.best = math.inf
        self.reserve_s = 0.0  # how long the last save and validation took
        self._before_s, self._since = 0.0, time.monotonic()

    # --- one step ----------------------------------------------------------------------------------------------------

    def advance(
        self,
        batch: Batch,
        elapsed_s: float | None = None,
        on_commit: Callable[[], None] = lambda: None,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> dict[str, float]:
        """One optimiser step; returns its figures.

        Args:
            batch: what to learn from.
            elapsed_s: time that the schedule goes by; the run's own if None.
            on_commit: called when everything is computed and the state is about to change.
            on_stage: called with the name of each stage when it is done.

        Raises:
            NotFiniteError: the loss or a gradient is not finite; the state is that before the step.
        """
        start = time.monotonic()
        rate = SCHEDULES[self.config.schedule](self.position(elapsed_s), self.config.lr, 1.0 / self.config.num_steps)
        set_rate(self.optimizer, rate)
        before = self._snapshot()
        try:
            patches = self.augmented(batch)
            on_stage("augmentation")
            targets = None if self.teacher is None else self.teacher.targets(patches)
            chunks = self._chunks(patches)
            with torch.set_grad_enabled(len(chunks) == 1):
                raw = torch.cat([self._describe(chunk, number) for number, chunk in enumerate(chunks)])
            if len(chunks) > 1:
                raw.requires_grad_()
            on_stage("forward")
            loss, figures = self._loss(raw, batch, targets)
            on_stage("mining and loss")
            self.scaler.scale(loss).backward()
            if len(chunks) > 1:  # the network a second time, chunk by chunk, for what the loss says of its output
                assert raw.grad is not None
                with frozen_statistics(self.model):
                    gradients = raw.grad.split([len(chunk) for chunk in chunks])
                    for number, (chunk, gradient) in enumerate(zip(chunks, gradients, strict=True)):
                        self._describe(chunk, number).backward(gradient)
            sum_gradients(self.model.parameters(), self.world)
            on_stage("backward")
            norm = self._gradient_norm()
            is_finite = math.isfinite(figures["loss"]) and (math.isfinite(norm) or self.scaler.is_enabled())
            if is_finite:
                on_commit()
        except BaseException:  # a signal may come anywhere in between
            self._back_to(before)
            raise
        if not is_finite:
            self._back_to(before)
            raise self._diagnosis(figures["loss"], norm, rate.lr)
        self._apply_gradient()
        on_stage("optimiser")
        self.step += 1
        seconds = time.monotonic() - start
        gradient = norm if math.isfinite(norm) else 0.0  # fp16: the scaler left the step out
        return {**figures, "grad_norm": gradient, "lr": rate.lr, "patches_s": len(batch.labels) / seconds}

    def augmented(self, batch: Batch) -> Tensor:
        """The network's input for this process' patches of a batch, (n, 1, S, S)."""
        generator = torch.Generator(self.device).manual_seed(_mix_seed(self.config.seed + 1, self.step))
        parts = [
            augment(
                part.patches.to(self.device, non_blocking=True), self.config.npos, part.crop, self.model.patch_size,
                self.config.augmentation(part.kind), generator, part.rows,
            )
            for part in batch.parts
        ]  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _chunks(self, patches: Tensor) -> list[Tensor]:
        """What the network sees at once: all patches, or whole tuples of at most ``micro_batch`` patches."""
        micro = self.config.micro_batch or len(patches)
        if len(patches) <= micro:
            return [patches]
        tuples = patches.unflatten(0, (-1, self.config.npos))
        return [part.flatten(0, 1) for part in tuples.tensor_split(-(-len(patches) // micro))]

    def _describe(self, patches: Tensor, chunk: int) -> Tensor:
        # Dropout draws from the global generator: seeded by the step, a resumed run draws the same.
        torch.manual_seed(_mix_seed(self.config.seed, self.step) + chunk * self.world.size + self.world.rank)
        with autocast(self.precision, self.device):
            return raw_descriptors(self.model, patches, self.world).float()

    def _loss(self, raw: Tensor, batch: Batch, targets: Tensor | None) -> tuple[Tensor, dict[str, float]]:
        """The loss of the whole batch from this process' raw descriptors, and its figures."""
        raw = join_rows(raw, self.world)
        unit = F.normalize(raw, dim=1, eps=1e-12)
        tuples = torch.arange(len(raw), device=raw.device) // self.config.npos
        exclude = None if batch.exclude is None else batch.exclude.to(self.device)
        targets = None if targets is None else join_rows(targets, self.world)
        described = Described(unit, raw.norm(dim=1), batch.labels.to(self.device), tuples, exclude, targets)
        torch.manual_seed(_mix_seed(self.config.seed + 2, self.step))  # some losses draw, all processes the same
        loss, items, terms = self.criterion(described)
        if self.nested is not None:
            short_loss, short_terms = self.nested(described)
            loss = torch.lerp(loss, short_loss, NESTED_SHARE)
            terms |= {f"nested_{name}": value for name, value in short_terms.items()}
        figures = {"loss": loss.item(), "active": (items > 0).float().mean().item()}
        figures |= _mean_distances(unit.detach(), self.config.npos, exclude)
        if len(terms) > 1:
            figures |= {f"loss_{name}": value.item() for name, value in terms.items()}
        return loss, figures

    def _gradient_norm(self) -> float:
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float()))

    def _apply_gradient(self) -> None:
        """Change the weights, and their running mean, by the gradient that is there."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.mean is not None:
            self._update_mean(self.mean)

    @torch.no_grad()
    def _update_mean(self, mean: HardNet8) -> None:
        decay = min(self.config.ema, (1.0 + self.step) / (10.0 + self.step))  # the first weights are soon forgotten
        for average, value in zip(mean.state_dict().values(), self.model.state_dict().values(), strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1.0 - decay)
            else:
                average.copy_(value)

    # --- a step that cannot be taken ---------------------------------------------------------------------------------

    def _snapshot(self) -> list[tuple[Tensor, Tensor]]:
        """What a step changes before the weights: running statistics of network and loss."""
        tensors = [*self.model.buffers(), *self.criterion.buffers()]
        if self.nested is not None:
            tensors += self.nested.criterion.buffers()
        return [(tensor, tensor.clone()) for tensor in tensors]

    def _back_to(self, snapshot: list[tuple[Tensor, Tensor]]) -> None:
        for tensor, value in snapshot:
            tensor.copy_(value)
        self.optimizer.zero_grad(set_to_none=True)

    def _diagnosis(self, loss: float, norm: float, lr: float) -> NotFiniteError:
        """Of a step taken back; weights that give no finite loss are no better than broken ones."""
        broken = self.broken_weights()
        sound = broken is None and math.isfinite(loss)
        weights = "the weights before it are finite" if broken is None else f"{broken} before it is not finite"
        return NotFiniteError(
            f"the loss is {loss:g} and its gradient {norm:g} at step {self.step} (lr {lr:.3g}, {self.precision}; "
            f"{weights}): {self.advice(sound)}",
            sound,
        )

    def broken_weights(self) -> str | None:
        """The first of the weights, running statistics included, that are no numbers; None where all are."""
        named = [*self.model.features.state_dict().items(), *self.useful_model.features.state_dict().items()]
        return next((name for name, value in named if not torch.isfinite(value).all()), None)

    def advice(self, saved: bool) -> str:
        """What to do about a loss that is no number; ``saved``: the state before the step is kept."""
        path = self.out / "last.ckpt"
        where = "the state before this step" if saved else "the last good state"
        return "lower --lr or use --precision fp32" + (f"; {where} is {path}" if saved or path.exists() else "")

    # --- how far it is -----------------------------------------------------------------------------------------------

    @property
    def elapsed_s(self) -> float:
        """Wall time of the run over all its sittings, with validation and saving."""
        return self._before_s + time.monotonic() - self._since

    def position(self, elapsed_s: float | None = None) -> float:
        """How far the run is, 0 … 1: by steps, or by time where that is further."""
        by_step = self.step / self.config.num_steps
        if not self.config.max_minutes:
            return by_step
        budget = max(1e-3, 60.0 * self.config.max_minutes - self.reserve_s)
        return max(by_step, (self.elapsed_s if elapsed_s is None else elapsed_s) / budget)

    def steps_left(self) -> Iterator[float]:
        """Times at which the steps begin, until the last step or the end of the time budget."""
        while True:
            elapsed, _ = self.agreed(False)
            if self.position(elapsed) >= 1.0:
                return
            yield elapsed

    def agreed(self, stopping: bool) -> tuple[float, bool]:
        """Time and wish to stop, the same in all processes."""
        elapsed, stop = agree_on([self.elapsed_s, float(stopping)], self.world, self.device)
        return elapsed, stop > 0

    # --- what is kept ------------------------------------------------------------------------------------------------

    @property
    def useful_model(self) -> HardNet8:
        """The network to validate and to use: the running mean of the weights where there is one."""
        return self.model if self.mean is None else self.mean

    def save(self, name: str) -> None:
        """Write the state to ``out/name``."""
        save_checkpoint(self.out / name, {**self._state(), "config": self.config.to_dict()})

    def restore(self, content: dict[str, Any]) -> None:
        """Take up the state that :meth:`save` wrote.

        Raises:
            DataError: it is that of another network, or none of a run, or one of its parts is not what it should be.
        """
        where = f"the checkpoint of {self.out}"
        missing = {"features", "optimizer", "scaler", "step", "best", "elapsed_s"} - content.keys()
        if missing:
            raise DataError(
                f"{where} holds no {min(missing)}, so that nothing can go on from it: to start from its weights use "
                "--init"
            )
        if content.get("arch") != self.model.arch:
            raise DataError(f"{where} is {content.get('arch')}, the run trains {self.model.arch}")
        expected = self._state()
        optimizer = expected.pop("optimizer")
        for name in ("arch", "metadata", "projection"):
            del expected[name]
        content = {"live": None, "criterion": {}, "nested": None, **content}
        for name, value in expected.items():
            check_like(content[name], value, f"{where}: {name}")
        if not (content["step"] >= 0 and 0 <= content["elapsed_s"] < math.inf):
            raise DataError(f"{where} is of step {content['step']} after {content['elapsed_s']} s")
        check_optimizer(content["optimizer"], optimizer, list(self.model.parameters()), f"{where}: optimizer")
        self.useful_model.features.load_state_dict(content["features"])
        if self.mean is not None:
            self.model.features.load_state_dict(content["live"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.criterion.load_state_dict(content["criterion"])
        if self.nested is not None:
            self.nested.load_state_dict(content["nested"])
        self.step, self.best = content["step"], content["best"]
        self._before_s, self._since = content["elapsed_s"], time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "arch": self.model.arch,
            "features": self.useful_model.features.state_dict(),
            "projection": None if self.teacher is None else vars(self.teacher.projection),
            "metadata": {
                "mr_size": self.mr_size,
                "step": self.step,
                "ds": self.config.ds,
                **({} if self.config.teacher is None else {"teacher": self.config.teacher}),
            },
            "live": None if self.mean is None else self.model.features.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "criterion": self.criterion.state_dict(),
            "nested": None if self.nested is None else self.nested.state_dict(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "best": self.best,
        }


def _common_mr_size(metas: list[dict[str, Any]]) -> float:
    sizes = {float(meta["mr_size"]) for meta in metas if meta["mr_size"] is not None}  # None: fixed windows
    if len(sizes) > 1:
        log.warning("the stores differ in mr_size (%s): the weights take the largest", sorted(sizes))
    return max(sizes, default=DEFAULT_MR_SIZE)


def _mean_distances(unit: Tensor, npos: int, exclude: Tensor | None) -> dict[str, float]:
    """Mean distances within tuples, of their first two patches, and to the hardest negative of each."""
    anchors, positives = unit[0::npos], unit[1::npos]
    hardest = hardest_pairs(anchors, positives, exclude)
    real = hardest.penalty == 0.0
    negative = row_distances(anchors[hardest.anchors[real]], positives[hardest.positives[real]])
    figures = {"d_pos": (anchors - positives).norm(dim=1).mean().item()}
    return figures | ({"d_neg": negative.mean().item()} if len(negative) else {})


def _mix_seed(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step * 7919 + 17) % 2**62
