# SPDX-License-Identifier: Apache-2.0
"""MIL-NCE: a video clip and a bag of sentences, some of which describe it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pycl.core.pairs import Pairs, Points
from pycl.distributed.ranks import agree, instances
from pycl.engine.reduction import check_reduction, share_of
from pycl.engine.reductions import pair_stats
from pycl.engine.validation import check_count
from pycl.functional._common import check_features
from pycl.functional._options import Options, loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@loss(normalize=False)
def mil_nce(
    video: Tensor, text: Tensor, bag_size: int, *, reduction: str = "mean", **options: Unpack[Options]
) -> Tensor:
    r"""Multiple-instance learning: a clip's positives are the K texts of its bag, inside the logarithm.

    With ``x_ijk = <video_i, text_jk>``, text jk being row ``j * bag_size + k``::

        term_i = log( sum_jk exp x_ijk + sum_jk exp x_jik ) - log sum_k exp x_iik

    The own bag is in both sums, so the positives count twice in the denominator, as in the authors' code, who meant it.

    Args:
        video: ``[N, d]``; float64, float32, bfloat16 or float16. Taken as it is given: no normalisation, no
            temperature.
        text: ``[N * bag_size, d]``.
        bag_size: K, at least 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        options: ``normalize``, ``group`` and ``backend``: :class:`pycl.functional.Options`.

    Returns:
        A scalar, or ``[N]`` with ``"none"``; float32 (float64 for float64 input).

    Raises:
        TypeError: inputs that are not floating point, a bag_size that is no integer.
        ValueError: texts that are not bag_size times as many as videos, differing numbers of features or devices, an
            empty batch, an unknown reduction or backend.
        RuntimeError: the backend asked for is not built; another rank of the group failed.

    Miech et al., "End-to-End Learning of Visual Representations from Uncurated Instructional Videos", arXiv 1912.06430,
    equation 1. With several ranks the authors' gradients stay on the rank of the clip; here all reach their texts.
    """
    check_reduction(reduction)
    bag_size = check_count("bag_size", bag_size)
    check_features(video=video, text=text)
    n = video.shape[0]
    if text.shape[0] != n * bag_size:
        raise ValueError(f"text must have {n * bag_size} rows, bag_size={bag_size} for each video, got {text.shape[0]}")
    everyone = agree(options["group"], video.device, [n], operator="mil_nce", bag_size=bag_size, reduction=reduction)
    ids = instances(n, video.device, options["group"])
    of_videos, of_texts = pair_stats(
        Points(video, ids),
        Points(text, ids.repeat_interleave(bag_size)),
        denominator=Pairs.OTHERS,
        positives=Pairs.POSITIVE,
        offset=None,
        sides="both",
        **options,
    )
    denominator = torch.logaddexp(of_videos.lse, of_texts.lse.view(n, bag_size).logsumexp(1))
    return share_of(denominator - of_videos.pos_lse, reduction, everyone)
