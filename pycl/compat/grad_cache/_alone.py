# SPDX-License-Identifier: Apache-2.0
"""What GradCache's classes are where it is not installed: arguments, attributes, and the methods that losses share."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

INSTALL = "pip install git+https://github.com/luyug/GradCache"


def needs_library(name: str) -> ImportError:
    return ImportError(f"{name} needs GradCache's own code for this: {INSTALL}")


class GradCache:
    def __init__(
        self,
        models: list[nn.Module],
        chunk_sizes: int | list[int],
        loss_fn: Callable[..., Tensor],
        split_input_fn: Callable[[Any, int], Any] | None = None,
        get_rep_fn: Callable[..., Tensor] | None = None,
        fp16: bool = False,
        scaler: Any = None,
    ) -> None:
        if fp16 and scaler is None:
            raise AssertionError("fp16=True needs a scaler, a torch.amp.GradScaler")
        self.models = models
        self.chunk_sizes = [chunk_sizes] * len(models) if isinstance(chunk_sizes, int) else chunk_sizes
        self.split_input_fn = split_input_fn
        self.get_rep_fn = get_rep_fn
        self.loss_fn = loss_fn
        self.fp16 = fp16
        self.scaler = scaler
        self._get_input_tensors_strict = False

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.cache_step(*args, **kwargs)

    def split_inputs(self, model_input: Any, chunk_size: int) -> list[Any]:
        """The chunks of an input: a tensor, tensors in a list or a mapping, or a list and a dict in a tuple."""
        if self.split_input_fn is not None:
            return list(self.split_input_fn(model_input, chunk_size))
        if isinstance(model_input, Tensor):
            return list(model_input.split(chunk_size))
        if isinstance(model_input, (dict, UserDict)) and _all_tensors(model_input.values()):
            rows = zip(*(value.split(chunk_size) for value in model_input.values()), strict=False)
            return [dict(zip(model_input, row, strict=True)) for row in rows]
        if isinstance(model_input, list) and _all_tensors(model_input):
            return [list(row) for row in zip(*(value.split(chunk_size) for value in model_input), strict=False)]
        if isinstance(model_input, tuple) and [type(part) for part in model_input] == [list, dict]:
            return list(zip(*(self.split_inputs(part, chunk_size) for part in model_input), strict=False))
        raise NotImplementedError(f"an input of type {type(model_input).__name__} needs a split_input_fn")

    def get_input_tensors(self, model_input: Any) -> list[Tensor]:
        if isinstance(model_input, Tensor):
            return [model_input]
        values = model_input.values() if isinstance(model_input, Mapping) else model_input
        nested = isinstance(model_input, (list, tuple, Mapping))
        return [tensor for value in values for tensor in self.get_input_tensors(value)] if nested else []

    def model_call(self, model: nn.Module, model_input: Any) -> Any:
        with half_precision(self.fp16):
            if isinstance(model_input, Tensor):
                return model(model_input)
            if isinstance(model_input, list):
                return model(*model_input)
            if isinstance(model_input, (dict, UserDict)):
                return model(**model_input)
            if isinstance(model_input, tuple) and [type(part) for part in model_input] == [list, dict]:
                return model(*model_input[0], **model_input[1])
        raise NotImplementedError(f"a model is not called with an input of type {type(model_input).__name__}")

    def get_reps(self, model_out: Any) -> Any:
        return model_out if self.get_rep_fn is None else self.get_rep_fn(model_out)

    def compute_loss(self, *reps: Tensor, **loss_kwargs: Any) -> Tensor:
        return self.loss_fn(*reps, **loss_kwargs)

    def forward_no_grad(self, model: nn.Module, model_inputs: Any) -> Any:
        raise needs_library("forward_no_grad")

    def build_cache(self, *reps: Tensor, **loss_kwargs: Any) -> Any:
        raise needs_library("build_cache")

    def forward_backward(
        self,
        model: nn.Module,
        model_inputs: Any,
        cached_gradients: list[Tensor],
        random_states: Any,
        no_sync_except_last: bool = False,
    ) -> None:
        raise needs_library("forward_backward")

    def cache_step(self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any) -> Tensor:
        raise needs_library("cache_step")


def _all_tensors(values: Any) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def half_precision(fp16: bool) -> Any:
    """GradCache's autocast, which is CUDA's and so nothing without it."""
    return torch.autocast("cuda") if fp16 and torch.cuda.is_available() else nullcontext()


class SimpleContrastiveLoss:
    def __init__(self, n_hard_negatives: int = 0) -> None:
        self.target_per_qry = n_hard_negatives + 1

    def __call__(self, x: Tensor, y: Tensor, target: Tensor | None = None, reduction: str = "mean") -> Tensor:
        raise needs_library(type(self).__name__)


class DistributedContrastiveLoss(SimpleContrastiveLoss):
    def __init__(self, n_hard_negatives: int = 0) -> None:
        if not dist.is_initialized():
            raise AssertionError("DistributedContrastiveLoss needs torch.distributed to be initialised first")
        super().__init__(n_hard_negatives=n_hard_negatives)
        self.word_size = dist.get_world_size()
        self.rank = dist.get_rank()

    def __call__(self, x: Tensor, y: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]  # as GradCache's own
        return super().__call__(self.gather_tensor(x), self.gather_tensor(y), **kwargs)

    def gather_tensor(self, t: Tensor) -> Tensor:
        return gathered(t, 0)


def gathered(t: Tensor, axis: int) -> Tensor:
    """All ranks' tensors in a row, those of other ranks as constants."""
    parts = [torch.empty_like(t) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, t.detach().contiguous())
    parts[dist.get_rank()] = t
    return torch.cat(parts, dim=axis)


class ContrastiveLossWithQueryClosure(SimpleContrastiveLoss):
    def __call__(  # type: ignore[override]  # as GradCache's own
        self,
        *reps: Tensor,
        query_closure: Callable[[], Tensor] | None = None,
        target: Tensor | None = None,
        reduction: str = "mean",
    ) -> Tensor:
        if len(reps) not in (1, 2):
            raise ValueError(f"one or two tensors are needed, got {len(reps)}")
        if (len(reps) == 2) != (query_closure is None):
            raise AssertionError("either two tensors, or one and a query_closure for the queries, are needed")
        x, y = reps if query_closure is None else (query_closure(), *reps)
        return super().__call__(x, y, target=target, reduction=reduction)
