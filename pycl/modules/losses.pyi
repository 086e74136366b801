# SPDX-License-Identifier: Apache-2.0
# Written by `make stubs` from the signatures of pycl.functional; tests/losses/test_modules.py compares.
from collections.abc import Sequence

from torch import Tensor

from pycl.distributed.ranks import Group
from pycl.functional._common import Scalar
from pycl.modules.base import Loss

__all__ = [
    "CLIPLoss",
    "DCLLoss",
    "DCLWLoss",
    "DHELLoss",
    "InfoNCELoss",
    "MVDHELLoss",
    "MVInfoNCELoss",
    "NTXentLoss",
    "PolyViewLoss",
    "SigLIPLoss",
    "SupConLoss",
]

class ViewsLoss(Loss):
    def forward(
        self,
        *views: Tensor | Sequence[Tensor],
    ) -> Tensor: ...

class NTXentLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class InfoNCELoss(Loss):
    def __init__(
        self,
        temperature: Scalar = 0.1,
        *,
        symmetric: bool = False,
        in_batch: bool = False,
        reduction: str = "mean",
        label_smoothing: float = 0,
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...
    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
    ) -> Tensor: ...

class CLIPLoss(Loss):
    def __init__(
        self,
        *,
        reduction: str = "mean",
        label_smoothing: float = 0,
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
    ) -> Tensor: ...

class SigLIPLoss(CLIPLoss):
    def __init__(
        self,
        *,
        per_anchor: bool = False,
        reduction: str = "mean",
        normalize: bool = False,
        group: Group | None = None,
        backend: str | None = None,
    ) -> None: ...
    def forward(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        ids: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor: ...

class DCLLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.1,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class DCLWLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.1,
        sigma: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class DHELLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.3,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class MVDHELLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class MVInfoNCELoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.5,
        *,
        denominator: str = "all",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class PolyViewLoss(ViewsLoss):
    def __init__(
        self,
        temperature: Scalar = 0.2,
        *,
        mean: str = "geometric",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...

class SupConLoss(Loss):
    def __init__(
        self,
        temperature: Scalar = 0.07,
        *,
        form: str = "out",
        reduction: str = "mean",
        normalize: bool = True,
        group: Group | None = None,
        backend: str | None = None,
        learnable_temperature: bool = False,
    ) -> None: ...
    def forward(
        self,
        *views: Tensor | Sequence[Tensor],
        labels: Tensor | None = None,
    ) -> Tensor: ...
