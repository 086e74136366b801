# SPDX-License-Identifier: Apache-2.0
"""Everything of ``pytorch_metric_learning.losses``, with the losses over all pairs and all classes on pycl's engine.

``NTXentLoss``, ``SupConLoss``, ``CrossBatchMemory`` and ``SelfSupervisedLoss`` are pycl's, and stand alone where
pytorch-metric-learning is not installed. Where it is, ``ArcFaceLoss``, ``CosFaceLoss``, ``SphereFaceLoss``,
``LargeMarginSoftmaxLoss``, ``NormalizedSoftmaxLoss``, ``ProxyAnchorLoss``, ``ProxyNCALoss``, ``NCALoss``,
``InstanceLoss``, ``MultiSimilarityLoss``, ``GeneralizedLiftedStructureLoss`` and ``CircleLoss`` are pycl's, too. All
other names are the library's.
"""

from __future__ import annotations

from typing import Any

from pycl.compat._peer import find_peer

from ._pair_losses import NTXentLoss, SupConLoss
from ._wrappers import CrossBatchMemory, SelfSupervisedLoss

__all__ = ["CrossBatchMemory", "NTXentLoss", "SelfSupervisedLoss", "SupConLoss"]

_PML = find_peer("pytorch_metric_learning.losses")
if _PML is not None:
    from ._classes import ArcFaceLoss, CosFaceLoss, LargeMarginSoftmaxLoss, NormalizedSoftmaxLoss, SphereFaceLoss
    from ._neighbours import InstanceLoss, NCALoss, ProxyNCALoss
    from ._proxies import ProxyAnchorLoss
    from ._thresholds import CircleLoss, GeneralizedLiftedStructureLoss, MultiSimilarityLoss

    __all__ += ["ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "SphereFaceLoss"]
    __all__ += ["InstanceLoss", "NCALoss", "ProxyAnchorLoss", "ProxyNCALoss"]
    __all__ += ["CircleLoss", "GeneralizedLiftedStructureLoss", "MultiSimilarityLoss"]
    _theirs = {name: value for name, value in vars(_PML).items() if not (name.startswith("_") or name in __all__)}
    globals().update(_theirs)
    __all__ += [name for name, value in _theirs.items() if isinstance(value, type)]


def __getattr__(name: str) -> Any:
    if _PML is None and not name.startswith("_"):
        raise AttributeError(f"{name} needs pytorch-metric-learning: pip install pytorch-metric-learning")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
