"""A trained network that another one learns to imitate."""

from __future__ import annotations

import torch
from scipy.linalg import hadamard
from torch import Tensor

from kornia_hardnet8 import HardNet8, prepare_for_inference
from kornia_hardnet8.errors import UsageError
from kornia_hardnet8.projection import Projection


class Teacher:
    """Targets for the features of a smaller network, and the projection from those features to the teacher's axes.

    The last norm of a network gives all its features one variance, while the teacher's axes differ much. So the
    student learns the teacher's descriptors turned by a Hadamard matrix, which spreads every axis over all features
    alike; its projection turns them back. Descriptors of both can then be matched with each other.

    Args:
        weights: of the teacher: a file, or the name of a bundled model.
        arch_dim: D, features of the student; the teacher's first D axes are learnt.
        patch_size: of the student.
        device: where the patches are.

    Raises:
        UsageError: the teacher has fewer axes, takes other patches, or D is no power of two.
    """

    def __init__(self, weights: str, arch_dim: int, patch_size: int, device: torch.device) -> None:
        network = HardNet8.from_checkpoint(weights, arch_dim)
        if network.patch_size != patch_size:
            raise UsageError(
                f"--teacher {weights} takes patches of {network.patch_size} pixels, the network of {patch_size}"
            )
        if arch_dim & (arch_dim - 1):
            raise UsageError(
                f"--teacher: a network of {arch_dim} features cannot learn from another, only powers of two"
            )
        self.network = _fastest(network.to(device))
        self._turn = torch.from_numpy(hadamard(arch_dim)).float().to(device) / arch_dim**0.5

    def targets(self, patches: Tensor) -> Tensor:
        """Unit vectors (n, D) that the student should give for patches (n, 1, S, S)."""
        with torch.no_grad():
            turned: Tensor = self.network(patches).float() @ self._turn
        return turned

    @property
    def projection(self) -> Projection:
        """From the student's features to the teacher's axes."""
        turn = self._turn.T.cpu().contiguous()
        return Projection(torch.zeros(len(turn)), turn, torch.full((len(turn),), torch.nan))


def _fastest(network: HardNet8) -> HardNet8:
    """Of the precisions that keep a target's direction to a degree or so, the quickest that the machine has."""
    if next(network.parameters()).device.type == "cpu":
        try:
            return prepare_for_inference(network, "int8")
        except UsageError:
            pass
    return prepare_for_inference(network)
