# SPDX-License-Identifier: Apache-2.0
"""The gradient cache: batches of any size for a contrastive loss, with the activations of one chunk in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from pycl.core.notices import warn_once
from pycl.engine.validation import check_integer
from pycl.functional._common import no_autocast
from pycl.grad_cache.replay import Buffers, random_state, set_random_state
from pycl.grad_cache.tower import Tower

__all__ = ["cached_step"]

Pair: TypeAlias = tuple[Callable[..., Any], Any]


class Scaler(Protocol):
    """What :class:`torch.amp.GradScaler` is used for here."""

    def scale(self, outputs: Tensor) -> Tensor: ...


def cached_step(
    loss: Callable[..., Tensor], *towers: Pair, chunk_size: int | Sequence[int], scaler: Scaler | None = None
) -> Tensor:
    r"""Value of a loss on whole batches and, as ``loss.backward()`` would, its gradients, chunk by chunk (GradCache).

    A contrastive loss couples the embeddings of all rows, but each embedding depends on its own row alone. With
    ``z = f(x)`` and ``L = loss(z)`` the chain rule splits at the embeddings, ``dL/dw = sum_chunks (dL/dz)_c dz_c/dw``::

        1. z_c = f(x_c) for each chunk, without a graph; the state of the random numbers before each is kept
        2. L = loss(z) on all embeddings; its backward gives dL/dz, and the gradients of the loss's own parameters
        3. for each chunk: the random numbers are put back, z_c = f(x_c) with a graph, backward with (dL/dz)_c

    The price is a second forward of the encoders. With one chunk for each tower this is the plain step::

        value = pycl.cached_step(loss, (encoder, x1), (encoder, x2), chunk_size=64)
        optimizer.step()

    Gradients are added to ``.grad``, so steps accumulate. Dropout repeats (default generators of the CPU and of all
    CUDA devices), and the generators end up as after 2. Autocast that is on around the call is on in 1, 2 and the
    forward of 3, and off in backwards. Buffers of encoders, such as running statistics, replay too and end up as
    after 1: updated once. Inputs that require a gradient get theirs, once, at the end.

    A :class:`~torch.nn.parallel.DistributedDataParallel` module communicates in the last of its chunks only, so once a
    step, whatever the number of chunks on other ranks; towers may share it. Where towers, or the loss, use different
    parameters of one such module, it needs ``find_unused_parameters=True``, as always. Such modules and buffers are
    found in an encoder that is a module or a method of one, and in a function, a partial or an object that refers to
    one; where they are hidden deeper, gradients are still exact, but each chunk communicates and buffers update twice.

    Limits: BatchNorm in training mode normalises over a chunk, not over the batch, which a warning says once;
    SyncBatchNorm communicates in every chunk, so that ranks need equally many of them. An encoder must compute
    the same with gradients on and off, and take random numbers from nowhere but the default generators.

    Args:
        loss: called once, ``loss(z1, z2, ...)`` with the embeddings of each tower; returns one number. Any function or
            module will do, those with a process group too.
        towers: pairs ``(encoder, inputs)``. Tensors and lists in the inputs have one and the same length N and are cut
            into chunks: a tensor or a list is one argument, a tuple holds positional and a mapping keyword arguments,
            and anything else in these goes to every chunk as it is. The encoder is any callable; it returns a tensor
            ``[n, ...]`` for n rows or a tuple of such tensors, which the loss then gets as one tuple. Encoders may be
            one and the same, and N may differ between towers.
        chunk_size: rows encoded at a time: one number, or one for each tower. The last chunk may be smaller.
        scaler: a :class:`torch.amp.GradScaler`; gradients are then those of ``scaler.scale(loss)``.

    Returns:
        The loss on the whole batch, unscaled and detached.

    Raises:
        TypeError: a tower that is not a pair with a callable, inputs without a tensor or list, an encoder that returns
            something else than tensors, a loss that does, a chunk size or scaler of another type.
        ValueError: no tower, an empty batch, lengths that differ, an encoder that returns another number of rows than
            it was given, a loss that is not one number, a chunk size below 1.
        RuntimeError: gradients are off around the call, in an encoder or in the loss.

    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983.
    """
    if not torch.is_grad_enabled():
        raise RuntimeError("cached_step computes gradients: call it outside torch.no_grad() and torch.inference_mode()")
    if not callable(loss):
        raise TypeError(f"loss must be callable, got {type(loss).__name__}")
    if scaler is not None and not hasattr(scaler, "scale"):
        raise TypeError(f"scaler must be None or a torch.amp.GradScaler, got {type(scaler).__name__}")
    sizes = _sizes(chunk_size, len(towers))
    parts = [Tower(f"towers[{i}]", tower, size) for i, (tower, size) in enumerate(zip(towers, sizes, strict=True))]
    return replayed(loss, parts, scaler)


def replayed(loss: Callable[..., Tensor], parts: Sequence[Tower], scaler: Scaler | None) -> Tensor:
    """The three passes of :func:`cached_step`; one where every tower has one chunk."""
    if all(len(part.spans) == 1 for part in parts) and not _share_ddp(parts):
        return _backward(loss, [part.encode_with_graph() for part in parts], scaler)

    modules = [module for part in parts for module in part.modules]
    _warn_of_batch_norm(modules)
    before = Buffers(modules)
    with torch.no_grad():
        embeddings = [part.encode() for part in parts]
    torch.clear_autocast_cache()  # older PyTorch reuses casts made without a graph: pytorch/pytorch#112583
    value = _backward(loss, embeddings, scaler)
    random, after = random_state(), Buffers(modules)
    gradients = [[z.grad for z in part.columns(out)] for part, out in zip(parts, embeddings, strict=True)]
    del embeddings
    try:
        before.put_back()
        _second_pass(parts, gradients)
    finally:
        after.put_back()
        set_random_state(random)
    return value


def _warn_of_batch_norm(modules: Sequence[nn.Module]) -> None:
    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            warn_once(
                "cached_step and BatchNorm",
                f"cached_step: {type(module).__name__} in training mode normalises over a chunk, not the batch, "
                "so gradients are not those of the plain step: use GroupNorm or LayerNorm, or its eval()",
            )
            return


def _sizes(chunk_size: int | Sequence[int], n_towers: int) -> list[int]:
    if n_towers == 0:
        raise ValueError("towers: at least one pair (encoder, inputs) is needed, got none")
    given: Sequence[Any] = chunk_size if isinstance(chunk_size, (tuple, list)) else [chunk_size] * n_towers
    try:
        sizes = [check_integer("chunk_size", size) for size in given]
    except TypeError:
        raise TypeError(f"chunk_size must be an integer, or one for each tower, got {chunk_size!r}") from None
    if len(sizes) != n_towers or min(sizes) < 1:
        raise ValueError(f"chunk_size must be at least 1, or {n_towers} such numbers for the towers, got {chunk_size}")
    return sizes


def _backward(loss: Callable[..., Tensor], embeddings: Sequence[Any], scaler: Scaler | None) -> Tensor:
    """Loss and its backward, which stops at the embeddings where these are leaves."""
    value = loss(*embeddings)
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"loss must return one number, got shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise RuntimeError("loss must depend on the embeddings: it returned a tensor without gradient")
    with no_autocast(value):
        (value if scaler is None else scaler.scale(value)).backward()
    return value.detach()


def _second_pass(parts: Sequence[Tower], gradients: Sequence[Sequence[Tensor | None]]) -> None:
    """Encodes all chunks again, in the same order, and sends the gradients of the embeddings through."""
    run = [i for i, of_tower in enumerate(gradients) if any(d_z is not None for d_z in of_tower)]
    last = {module: i for i in run for module in parts[i].ran}  # the tower that lets it communicate
    sources: list[Tensor] = []
    d_sources: list[Tensor] = []
    for i in run:
        part, pieces = parts[i], []
        for span, random in zip(part.spans, part.random, strict=True):
            set_random_state(random)
            with ExitStack() as quiet:
                for module in part.ran:
                    if last[module] != i or span is not part.spans[-1]:
                        quiet.enter_context(module.no_sync())
                pieces.append(part.run_backward(span, gradients[i]))
        sources += part.sources()
        d_sources += [torch.cat(column) for column in zip(*pieces, strict=True)]
    if sources:
        with no_autocast(sources[0]):
            torch.autograd.backward(sources, d_sources)


def _share_ddp(parts: Sequence[Tower]) -> bool:
    """Two forwards of a DistributedDataParallel module before one backward are not what it is made for."""
    found = [module for part in parts for module in part.ddp]
    return len(found) != len(set(found))
