# SPDX-License-Identifier: Apache-2.0
"""Drop-in imports: the losses of other libraries under their own names, on pycl's engine.

Change the import and nothing else: the arguments, their order and defaults, the errors, the shape of the result and
the gradient's scale on many processes are those of the library. Where the library is installed its class is the base
class, so ``isinstance`` and lists of class names go on working. A legal option without a fused form runs the
library's own code, with one :class:`FallbackWarning`; ``PYCL_STRICT=1`` in the environment makes that an error.

=========================================  ==================================================
``from lightly.loss import ...``           ``from pycl.compat.lightly import ...``
``from pytorch_metric_learning import``    ``from pycl.compat.pml import losses``
``from open_clip.loss import ...``         ``from pycl.compat.open_clip import ...``
``from sentence_transformers.losses``      ``from pycl.compat.sentence_transformers import ...``
``from info_nce import ...``               ``from pycl.compat.info_nce import ...``
``from losses import SupConLoss``          ``from pycl.compat.supcontrast import SupConLoss``
``from solo.losses... import ...``         ``from pycl.compat.solo import ...``
=========================================  ==================================================
"""

from __future__ import annotations

from ._peer import FallbackWarning

__all__ = ["FallbackWarning"]
