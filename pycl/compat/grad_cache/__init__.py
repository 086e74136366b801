# SPDX-License-Identifier: Apache-2.0
"""GradCache's class and losses: ``from pycl.compat.grad_cache import GradCache`` instead of ``from grad_cache``.

``pycl.compat.grad_cache.loss`` and ``.functional`` stand for the modules of those names. The replay is that of
:func:`pycl.cached_step`, and the losses store no logits. GradCache is found as ``grad_cache``, which its repository
installs, or as the ``gradcache`` of PyPI; the class of the latter does not import, so that there is no base class.
"""

from __future__ import annotations

from pycl.compat.grad_cache.functional import cached, cat_input_tensor, gather_input_tensor
from pycl.compat.grad_cache.loss import (
    ContrastiveLossWithQueryClosure,
    DistributedContrastiveLoss,
    SimpleContrastiveLoss,
)
from pycl.compat.grad_cache.step import GradCache

__all__ = [
    "ContrastiveLossWithQueryClosure",
    "DistributedContrastiveLoss",
    "GradCache",
    "SimpleContrastiveLoss",
    "cached",
    "cat_input_tensor",
    "gather_input_tensor",
]
