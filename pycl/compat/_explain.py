# SPDX-License-Identifier: Apache-2.0
"""Which losses of a process run on pycl's engine: what drop-ins stand for, and what becomes of the losses alive."""

from __future__ import annotations

import gc
import importlib.metadata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from pycl.compat import transformers
from pycl.compat.transformers._models import FAMILIES


class DropIn(NamedTuple):
    """A drop-in, the module it stands for and the distribution which that is from, and what is fused."""

    module: str
    library: str
    distribution: str
    fused: tuple[str, ...]


DROP_INS = (
    DropIn(
        "pycl.compat.lightly",
        "lightly.loss",
        "lightly",
        (
            "NTXentLoss",
            "DirectCLRLoss",
            "DCLLoss",
            "DCLWLoss",
            "MACLLoss",
            "HypersphereLoss",
            "KoLeoLoss",
            "MSNLoss",
            "PMSNLoss",
            "PMSNCustomLoss",
            "SwaVLoss",
            "sinkhorn",
        ),
    ),
    DropIn(
        "pycl.compat.pml.losses",
        "pytorch_metric_learning.losses",
        "pytorch-metric-learning",
        (
            "NTXentLoss",
            "SupConLoss",
            "MultiSimilarityLoss",
            "GeneralizedLiftedStructureLoss",
            "CircleLoss",
            "NCALoss",
            "InstanceLoss",
            "ArcFaceLoss",
            "CosFaceLoss",
            "SphereFaceLoss",
            "LargeMarginSoftmaxLoss",
            "NormalizedSoftmaxLoss",
            "ProxyAnchorLoss",
            "ProxyNCALoss",
            "CrossBatchMemory",
            "SelfSupervisedLoss",
        ),
    ),
    DropIn(
        "pycl.compat.open_clip",
        "open_clip.loss",
        "open_clip_torch",
        ("ClipLoss", "SigLipLoss", "CoCaLoss", "DistillClipLoss"),
    ),
    DropIn(
        "pycl.compat.sentence_transformers",
        "sentence_transformers.losses",
        "sentence-transformers",
        (
            "MultipleNegativesRankingLoss",
            "CachedMultipleNegativesRankingLoss",
            "GISTEmbedLoss",
            "CachedGISTEmbedLoss",
            "MultipleNegativesSymmetricRankingLoss",
            "CachedMultipleNegativesSymmetricRankingLoss",
            "MegaBatchMarginLoss",
            "BatchHardTripletLoss",
            "BatchHardSoftMarginTripletLoss",
        ),
    ),
    DropIn(
        "pycl.compat.grad_cache",
        "grad_cache",
        "gradcache",
        (
            "GradCache",
            "SimpleContrastiveLoss",
            "DistributedContrastiveLoss",
            "ContrastiveLossWithQueryClosure",
        ),
    ),
    DropIn(
        "pycl.compat.sentence_transformers.sparse_encoder.losses",
        "sentence_transformers.sparse_encoder.losses",
        "sentence-transformers",
        ("SparseMultipleNegativesRankingLoss", "CSRLoss"),
    ),
    DropIn("pycl.compat.info_nce", "info_nce", "info-nce-pytorch", ("InfoNCE", "info_nce")),
    DropIn("pycl.compat.supcontrast", "losses", "SupContrast", ("SupConLoss",)),
    DropIn(
        "pycl.compat.solo",
        "solo.losses",
        "solo-learn",
        (
            "simclr_loss_func",
            "nnclr_loss_func",
            "swav_loss_func",
            "mocov2plus_loss_func",
            "mocov3_loss_func",
            "ressl_loss_func",
            "SinkhornKnopp",
        ),
    ),
)
NAMES = {name for drop_in in DROP_INS for name in drop_in.fused}


def explain(*losses: nn.Module) -> str:
    """A text that says which losses are fused and why another is not.

    First the drop-ins: the library of each, its version, and the names that run on pycl's engine. Then the losses that
    drop-ins are for, each with what its options decide; what a loss is given may still take it to the library's code,
    with one :class:`FallbackWarning`.

    Args:
        losses: modules to look at, and into: a model that holds its loss will do. Without any, all modules that are
            alive in this process.
    """
    rows = [("drop-in", "library", "version", "fused")]
    rows += [(d.module, d.library, _version(d.distribution), ", ".join(d.fused)) for d in DROP_INS]
    rows.append(
        ("pycl.compat.transformers", "transformers", _version("transformers"), f"patch(): {', '.join(FAMILIES)}")
    )
    found = {id(part): part for loss in losses for part in loss.modules()}.values() if losses else _alive()
    verdicts = Counter(said for part in found if (said := _verdict(part)) is not None)
    seen = [("loss", "objects", "runs")]
    seen += [(name, str(count), runs) for (name, runs), count in sorted(verdicts.items())]
    if not verdicts:
        seen.append(("none", "", "no loss of pycl's, and none of a library's that a drop-in is for"))
    return f"{_table(rows)}\n\n{_table(seen)}"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _alive() -> Iterable[nn.Module]:
    # isinstance would ask proxies for their class, which may import or compute
    return [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module)]


def _verdict(loss: nn.Module) -> tuple[str, str] | None:
    """The class of a loss and what runs it; None for any other module."""
    kind = type(loss)
    name = f"{kind.__module__}.{kind.__qualname__}"
    ours = [c.__name__ for c in kind.__mro__ if c.__module__.partition(".")[0] == "pycl"]
    if any(c.endswith("Loss") or c in NAMES for c in ours):
        why: Any = getattr(loss, "_pycl_why_not", str)()
        return name, f"the library's own code: {why}" if why else "fused"
    for drop_in in DROP_INS:
        package = drop_in.library.partition(".")[0]
        for c in kind.__mro__:
            if c.__name__ in drop_in.fused and c.__module__.partition(".")[0] == package:
                return name, f"the library's own code: {drop_in.module} has a fused {c.__name__}"
    runs = transformers.verdict(kind)
    return None if runs is None else (name, runs)


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)
