# SPDX-License-Identifier: Apache-2.0
"""``GradCache``: a step on batches larger than memory, replayed as :func:`pycl.cached_step` does."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pycl.compat._peer import Hooks, fall_back, find_peer
from pycl.compat.grad_cache import _alone
from pycl.grad_cache.step import replayed
from pycl.grad_cache.tower import Chunks

peer: Any = find_peer("grad_cache.grad_cache") or _alone
HOOKS = Hooks(peer.GradCache, "forward_no_grad", "build_cache", "forward_backward")


class GradCache(peer.GradCache):
    """GradCache's ``GradCache``: value and gradients of a loss on whole batches, the models on a chunk at a time.

    ``cache_step`` encodes all chunks without a graph, computes the loss and its gradient at the representations, and
    encodes each chunk again for the backward, with the random numbers of the first time. Gradients are added to
    ``.grad``; with ``fp16=True`` they are those of ``scaler.scale(loss)``, and models and loss run under CUDA's
    autocast. The value is the loss, detached and unscaled.

    ``split_input_fn``, ``get_rep_fn`` and the methods ``split_inputs``, ``model_call``, ``get_reps`` and
    ``compute_loss`` are asked, overridden or not; one of the other methods overridden runs GradCache's code. Three
    things differ from GradCache: running statistics and other buffers update once, not twice; models in
    DistributedDataParallel communicate once a step, also without ``no_sync_except_last``, which leaves the gradients as
    they are; and where every model has one chunk, that is encoded once.

    Raises:
        AssertionError: ``fp16`` without a scaler, ``no_sync_except_last`` with a model outside DistributedDataParallel.
        NotImplementedError: an input that is no tensor, list or mapping of tensors, or tuple of such a list and a dict,
            without a ``split_input_fn``.
        RuntimeError: gradients are off around the call, or in a model.
        TypeError: representations or a loss that are no tensors.
        ValueError: a loss that is not one number.
    """

    def cache_step(self, *model_inputs: Any, no_sync_except_last: bool = False, **loss_kwargs: Any) -> Tensor:
        if why := HOOKS.replaced_in(self):
            fall_back(type(self).__name__, why)
            options = {"no_sync_except_last": no_sync_except_last, **loss_kwargs}
            return cast("Tensor", super().cache_step(*model_inputs, **options))
        if no_sync_except_last and not all(isinstance(model, DistributedDataParallel) for model in self.models):
            raise AssertionError("no_sync_except_last=True needs every model in DistributedDataParallel")
        towers = [
            Chunks(f"models[{k}]", partial(self._represent, model), list(self.split_inputs(given, size)), size)
            for k, (model, given, size) in enumerate(zip(self.models, model_inputs, self.chunk_sizes, strict=False))
        ]
        return replayed(partial(self._loss, loss_kwargs), towers, self.scaler if self.fp16 else None)

    def _represent(self, model: Any, chunk: Any) -> Any:
        return self.get_reps(self.model_call(model, chunk))

    def _loss(self, options: dict[str, Any], *representations: Tensor) -> Any:
        with _alone.half_precision(self.fp16):
            return self.compute_loss(*representations, **options)
