# SPDX-License-Identifier: Apache-2.0
"""The drop-ins for open_clip on the class signatures of its version 4: no Horovod, a ``chunk_size``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pycl

VERSION_4 = """
import torch
from torch.nn.functional import cross_entropy, softplus


class ClipLoss(torch.nn.Module):
    def __init__(self, local_loss=False, gather_with_grad=False, cache_labels=False, rank=0, world_size=1):
        super().__init__()
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.prev_num_logits, self.labels = rank, world_size, 0, {}

    def get_ground_truth(self, device, num_logits):
        return torch.arange(num_logits)

    def get_logits(self, image_features, text_features, logit_scale, logit_bias=None):
        logits = logit_scale * image_features @ text_features.T + (0 if logit_bias is None else logit_bias)
        return logits, logits.T

    def forward(self, image_features, text_features, logit_scale, logit_bias=None, output_dict=False):
        both = self.get_logits(image_features, text_features, logit_scale, logit_bias)
        labels = self.get_ground_truth(image_features.device, len(image_features))
        loss = sum(cross_entropy(logits, labels) for logits in both) / 2
        return {"contrastive_loss": loss} if output_dict else loss


class CoCaLoss(ClipLoss):
    def __init__(self, caption_loss_weight, clip_loss_weight, pad_id=0, **options):
        super().__init__(**options)
        self.caption_loss_weight, self.clip_loss_weight = caption_loss_weight, clip_loss_weight

    def forward(self, image_features, text_features, logits, labels, logit_scale, output_dict=False):
        return self.clip_loss_weight * super().forward(image_features, text_features, logit_scale)


class DistillClipLoss(ClipLoss):
    def dist_loss(self, teacher_logits, student_logits):
        return -(teacher_logits.softmax(1) * student_logits.log_softmax(1)).sum(1).mean()


class SigLipLoss(torch.nn.Module):
    def __init__(self, cache_labels=False, rank=0, world_size=1, dist_impl=None, chunk_size=0):
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl, self.chunk_size, self.taken = dist_impl or "bidir", chunk_size, chunk_size

    def _chunked_loss(self, image_features, text_features, logit_scale, logit_bias=None, negative_only=False):
        signs, n = 2 * torch.eye(len(image_features)) - 1, len(image_features)
        logits = logit_scale * image_features @ text_features.T + logit_bias
        return sum(softplus(-s * l).sum() for s, l in zip(signs.split(2), logits.split(2))) / n

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        return self._chunked_loss(image_features, text_features, logit_scale, logit_bias)
"""
PROGRAM = """
import torch, open_clip.loss as theirs
import pycl.compat.open_clip as ours

x, y = (torch.nn.functional.normalize(torch.randn(7, 4), dim=1) for _ in range(2))
calls = {
    "ClipLoss": lambda m: m.ClipLoss(rank=0)(x, y, 5.0, logit_bias=-1.0, output_dict=True)["contrastive_loss"],
    "CoCaLoss": lambda m: m.CoCaLoss(2.0, 0.5, gather_with_grad=True)(x, y, None, None, logit_scale=5.0),
    "SigLipLoss": lambda m: m.SigLipLoss(chunk_size=2)(x, y, 5.0, -5.0),
}
for name, call in calls.items():
    assert issubclass(getattr(ours, name), getattr(theirs, name))
    torch.testing.assert_close(call(ours), call(theirs))
assert vars(theirs.ClipLoss()).keys() <= vars(ours.ClipLoss()).keys()
assert ours.SigLipLoss(chunk_size=3).taken == 3
assert ours.ClipLoss(use_horovod=False)._pycl_why_not() == ""
try:
    ours.ClipLoss(use_horovod=True)
except TypeError as error:
    assert "no Horovod" in str(error)
else:
    raise AssertionError
own = type("Own", (ours.SigLipLoss,), {"_chunked_loss": lambda *_, **__: torch.tensor(42.0)})()
assert own._pycl_why_not() == "Own has a _chunked_loss of its own"
ours.patch()
assert theirs.SigLipLoss is ours.SigLipLoss
"""


def test_signatures_of_version_4(tmp_path: Path) -> None:
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("")
    (tmp_path / "open_clip" / "loss.py").write_text(VERSION_4)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{PROGRAM}"
    command = [sys.executable, "-W", "error::pycl.compat.FallbackWarning", "-c", program]
    subprocess.run(command, check=True, cwd=Path(pycl.__file__).parent.parent)
