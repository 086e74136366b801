# SPDX-License-Identifier: Apache-2.0
"""Drop-in imports: the losses of other libraries under their own names, on pycl's engine.

Change the import and nothing else: the arguments, their order and defaults, the errors, the shape of the result and
the gradient's scale on many processes are those of the library. Where the library is installed its class is the base
class, so ``isinstance`` and lists of class names go on working, and every other name of the library's module is the
library's own.

A legal option without a fused form, an attribute that was set to one and a method that a subclass overrides run the
library's own code, with one :class:`FallbackWarning` for each kind of reason; ``PYCL_STRICT=1`` in the environment
makes that an error. :func:`explain` lists what is fused, and which losses of the process are not and why.

The dtype of a result is the library's. Sums are in float32 for half inputs and in float64 for float64; what comes out
is rounded to the dtype of the embeddings, or to the one that the library's last operation has under ``torch.autocast``:
float32 on a GPU and for a cross entropy anywhere, autocast's own dtype on a CPU for a loss that ends in ``logsumexp``
or ``exp``, which autocast leaves alone there.

=========================================  ====================================================
``from lightly.loss import ...``           ``from pycl.compat.lightly import ...``
``from pytorch_metric_learning import``    ``from pycl.compat.pml import losses``
``from open_clip.loss import ...``         ``from pycl.compat.open_clip import ...``
``from sentence_transformers.losses``      ``from pycl.compat.sentence_transformers import ...``
``sentence_transformers.sparse_encoder``   ``pycl.compat.sentence_transformers.sparse_encoder``
``from info_nce import ...``               ``from pycl.compat.info_nce import ...``
``from losses import SupConLoss``          ``from pycl.compat.supcontrast import SupConLoss``
``from solo.losses... import ...``         ``from pycl.compat.solo import ...``
``from grad_cache import GradCache``       ``from pycl.compat.grad_cache import GradCache``
``transformers.CLIPModel`` and others      ``pycl.compat.transformers.patch()``
=========================================  ====================================================
"""

from __future__ import annotations

from ._explain import explain
from ._peer import FallbackWarning

__all__ = ["FallbackWarning", "explain"]
