# SPDX-License-Identifier: Apache-2.0
"""Papers of the list that pycl began with whose objectives compare no samples: nothing here would make them faster."""

from __future__ import annotations

OUTSIDE = {
    "universal medical segmentation with a dual-branch SAM": "losses of masks, pixel by pixel: no pairs of samples",
    "tests of foundation models on low-level vision": "an evaluation: no objective is trained",
    "segmentation of the zones of the prostate": "losses of masks, pixel by pixel: no pairs of samples",
    "tests of dark energy": "a likelihood of cosmological data: no embeddings",
}
