# SPDX-License-Identifier: Apache-2.0
"""Losses on the ranks of a ``torch.distributed`` group: what ``group=`` takes, and helpers for losses of one's own."""

from __future__ import annotations

from pycl.distributed.ranks import Agreement, Group, Ring, agree, all_reduce_logsumexp, instances, together

__all__ = ["Agreement", "Group", "Ring", "agree", "all_reduce_logsumexp", "instances", "together"]
