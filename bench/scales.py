# SPDX-License-Identifier: Apache-2.0
"""Who scales gradients how: losses of libraries under DistributedDataParallel on two processes, against one process.

``python -m pycl.bench.scales [docs/benchmarks.md]`` prints the table, or writes it between the page's marks.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pycl import functional as F
from pycl.testing import compare_with_one_process

from .present.page import rewrite
from .workloads.baselines import declare_torchvision


class Library(nn.Module):
    """A loss of a library, built where it is used: its flags depend on the process."""

    def __init__(self, build: str, **options: Any) -> None:
        super().__init__()
        self.build, self.options = build, options

    def forward(self, *views: Tensor) -> Tensor:
        declare_torchvision()
        build: Callable[..., Tensor] = globals()[self.build]
        return build(*views, **self.options)


def unit(z: Tensor) -> Tensor:
    return nn.functional.normalize(z, dim=1)


def processes() -> dict[str, int]:
    return {"rank": dist.get_rank(), "world_size": dist.get_world_size()}


def open_clip(image: Tensor, text: Tensor, **options: bool) -> Tensor:
    from open_clip.loss import ClipLoss

    loss: Tensor = ClipLoss(**options, **processes())(unit(image), unit(text), torch.tensor(10.0))
    return loss


def siglip(image: Tensor, text: Tensor) -> Tensor:
    from open_clip.loss import SigLipLoss

    loss: Tensor = SigLipLoss(**processes())(unit(image), unit(text), torch.tensor(10.0), torch.tensor(-10.0))
    return loss


def lightly(a: Tensor, b: Tensor, name: str) -> Tensor:
    import lightly.loss

    loss: Tensor = getattr(lightly.loss, name)(gather_distributed=dist.get_world_size() > 1)(a, b)
    return loss


def pml(a: Tensor, b: Tensor, efficient: bool) -> Tensor:
    from pytorch_metric_learning import losses
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    n = len(a)
    labels = torch.arange(dist.get_rank() * n, (dist.get_rank() + 1) * n).repeat(2)
    alone = losses.NTXentLoss(0.2)
    function = alone if dist.get_world_size() == 1 else DistributedLossWrapper(alone, efficient)
    loss: Tensor = function(torch.cat([a, b]), labels)
    return loss


def sentences(a: Tensor, b: Tensor) -> Tensor:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    function = MultipleNegativesRankingLoss(nn.Identity(), gather_across_devices=dist.get_world_size() > 1)
    loss: Tensor = function.compute_loss_from_embeddings([a, b], None)
    return loss


def ours(a: Tensor, b: Tensor, name: str) -> Tensor:
    group = dist.group.WORLD
    if name == "clip":
        return F.clip(unit(a), unit(b), 10.0, group=group)
    return F.nt_xent((a, b), group=group)


class Line(NamedTuple):
    loss: str
    distribution: str
    call: Library


CLIP = "open_clip ``ClipLoss``"
LINES = (
    Line("``clip(group=)``, ``nt_xent(group=)``", "pycl-kernels", Library("ours", name="clip")),
    Line(f"{CLIP}, its defaults", "open_clip_torch", Library("open_clip")),
    Line(f"{CLIP}, gather_with_grad", "open_clip_torch", Library("open_clip", gather_with_grad=True)),
    Line(f"{CLIP}, local_loss", "open_clip_torch", Library("open_clip", local_loss=True)),
    Line(f"{CLIP}, both", "open_clip_torch", Library("open_clip", local_loss=True, gather_with_grad=True)),
    Line("open_clip ``SigLipLoss``", "open_clip_torch", Library("siglip")),
    Line("lightly ``NTXentLoss``, gather_distributed", "lightly", Library("lightly", name="NTXentLoss")),
    Line("lightly ``DCLLoss``, gather_distributed", "lightly", Library("lightly", name="DCLLoss")),
    Line("lightly ``BarlowTwinsLoss``, gather_distributed", "lightly", Library("lightly", name="BarlowTwinsLoss")),
    Line("PML ``DistributedLossWrapper(NTXentLoss)``", "pytorch-metric-learning", Library("pml", efficient=False)),
    Line("the same, efficient=True", "pytorch-metric-learning", Library("pml", efficient=True)),
    Line("sentence-transformers ``MultipleNegatives...``, gather", "sentence-transformers", Library("sentences")),
)


def table() -> str:
    """Markdown; libraries that are not installed are left out."""
    lines = ["| loss | version | loss, mean over ranks | gradient | cosine |", "| --- | ---: | ---: | ---: | ---: |"]
    torch.manual_seed(0)
    inputs = torch.randn(2, 24, 16, dtype=torch.float64).unbind()
    for line in LINES:
        try:
            version = importlib.metadata.version(line.distribution)
        except importlib.metadata.PackageNotFoundError:
            if line.distribution != "pycl-kernels":
                continue
            version = "this"
        found = compare_with_one_process(line.call, inputs)
        cells = [line.loss.replace("``", "`"), version]
        cells += [f"x {found.value:.2f}", f"x {found.scale:.2f}", f"{found.cosine:.3f}"]
        print(cells, file=sys.stderr)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    found = table()
    print(found)
    for page in map(Path, arguments):
        page.write_text(rewrite(page.read_text(), "scales", found))
    return 0


if __name__ == "__main__":
    # by its own name, which other processes can import
    from pycl.bench import scales

    sys.exit(scales.main())
