# SPDX-License-Identifier: Apache-2.0
"""A tower of a cached step: an encoder with its inputs, encoded a chunk at a time, twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from pycl.functional._common import no_autocast
from pycl.grad_cache.replay import modules_of, random_state, watch


class Tower:
    """An encoder with its inputs: its chunks, what they return, and what must be kept to run them twice."""

    def __init__(self, name: str, tower: Any, chunk_size: int) -> None:
        if not isinstance(tower, tuple) or len(tower) != 2 or not callable(tower[0]):
            parts = ", ".join(type(part).__name__ for part in tower) if isinstance(tower, tuple) else ""
            got = f"({parts})" if parts else type(tower).__name__
            way_out = ": it encodes the inputs itself, chunk by chunk" if isinstance(tower, Tensor) else ""
            raise TypeError(f"{name} must be a pair (encoder, inputs) with a callable encoder, got {got}{way_out}")
        encoder, inputs = tower
        self._watch(name, encoder)
        self.by_name = isinstance(inputs, Mapping)
        positional = inputs if isinstance(inputs, tuple) else (inputs,)
        self.arguments: dict[Any, Any] = dict(inputs if self.by_name else enumerate(positional))
        rows = self._count_rows()
        self.spans = [slice(start, min(start + chunk_size, rows)) for start in range(0, rows, chunk_size)]

    def _watch(self, name: str, encoder: Callable[..., Any]) -> None:
        self.name = name
        self.encoder = encoder
        self.modules = list(dict.fromkeys(modules_of(encoder)))
        self.ddp = [module for module in self.modules if isinstance(module, DistributedDataParallel)]
        self.ran: set[DistributedDataParallel] = set()  # those of self.ddp that the encoder does run
        self.random: list[list[Tensor]] = []
        self.returns_tuple = False

    def _count_rows(self) -> int:
        cut = {key: value for key, value in self.arguments.items() if isinstance(value, (Tensor, list))}
        if not cut:
            got = ", ".join(type(value).__name__ for value in self.arguments.values())
            raise TypeError(f"{self.name}: the inputs must contain a tensor or a list to cut into chunks, got {got}")
        for key, value in cut.items():
            if isinstance(value, Tensor) and value.dim() == 0:
                raise ValueError(
                    f"{self.name}: input {key!r} must have the rows of the batch, got a tensor of shape ()"
                )
        rows = {key: len(value) for key, value in cut.items()}
        if len(set(rows.values())) != 1 or 0 in rows.values():
            got = ", ".join(f"{key!r}: {n}" for key, n in rows.items())
            raise ValueError(f"{self.name}: all inputs must have one and the same number of rows, >= 1, got {got}")
        return next(iter(rows.values()))

    def sources(self) -> list[Tensor]:
        """The inputs that want a gradient."""
        return [value for value in self.arguments.values() if isinstance(value, Tensor) and value.requires_grad]

    def columns(self, embeddings: Any) -> tuple[Tensor, ...]:
        """The tensors of what the encoder returned."""
        return tuple(embeddings) if self.returns_tuple else (embeddings,)

    def encode(self) -> Any:
        """First pass: embeddings of all rows, leaves that take a gradient."""
        chunks = []
        with watch(self.ddp, self.ran):
            for span in self.spans:
                self.random.append(random_state())
                chunks.append(self.run(span)[0])
        joined = [torch.cat(column) for column in zip(*chunks, strict=True)]
        for z in joined:
            z.requires_grad_(z.is_floating_point() or z.is_complex())
        return tuple(joined) if self.returns_tuple else joined[0]

    def encode_with_graph(self) -> Any:
        """The plain forward, of a single chunk."""
        out = self._call(self.arguments)
        self._check_graph(self.columns(out))
        return out

    def run(self, span: slice) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Embeddings of one chunk, and its inputs that want a gradient, cut off from what they come from."""
        chunk, leaves = dict(self.arguments), []
        for key, value in chunk.items():
            if isinstance(value, (Tensor, list)):
                chunk[key] = value[span]
            if isinstance(value, Tensor) and value.requires_grad:
                leaves.append(chunk[key].detach().requires_grad_())
                chunk[key] = leaves[-1]
        return self.columns(self._call(chunk)), leaves

    def run_backward(self, span: slice, gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Second pass over one chunk, for the whole batch's gradients; returns those of the chunk's inputs."""
        columns, leaves = self.run(span)
        wanted = [(z, d_z[span]) for z, d_z in zip(columns, gradients, strict=True) if d_z is not None]
        self._check_graph([z for z, _ in wanted])
        outputs, d_outputs = zip(*((z, d_z) for z, d_z in wanted if z.requires_grad), strict=True)
        with no_autocast(outputs[0]):
            torch.autograd.backward(outputs, d_outputs)
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]

    def _call(self, arguments: Mapping[Any, Any]) -> Any:
        out = self.encoder(**arguments) if self.by_name else self.encoder(*arguments.values())
        self.returns_tuple = isinstance(out, tuple)
        columns = self.columns(out)
        if not columns or not all(isinstance(z, Tensor) for z in columns):
            got = f"({', '.join(type(z).__name__ for z in out)})" if self.returns_tuple else type(out).__name__
            raise TypeError(
                f"{self.name}: the encoder must return a tensor or a tuple of tensors, got {got}; "
                "wrap it, as in (lambda **tokens: encoder(**tokens).pooler_output, tokens)"
            )
        rows = next(len(value) for value in arguments.values() if isinstance(value, (Tensor, list)))
        for z in columns:
            if z.dim() == 0 or len(z) != rows:
                raise ValueError(
                    f"{self.name}: the encoder must return one row for each of the {rows} rows of a chunk, "
                    f"got shape {tuple(z.shape)}"
                )
        return out

    def _check_graph(self, columns: Sequence[Tensor]) -> None:
        if not any(z.requires_grad for z in columns):
            raise RuntimeError(
                f"{self.name}: the encoder's output has no gradient (torch.no_grad() inside, or frozen parameters?); "
                "embeddings without one belong into the loss, as in lambda z: loss(z, fixed)"
            )


class Chunks(Tower):
    """A tower whose inputs were cut already: the encoder takes a chunk as it is, of ``chunk_size`` rows or fewer."""

    def __init__(self, name: str, encoder: Callable[[Any], Tensor], chunks: Sequence[Any], chunk_size: int) -> None:
        self._watch(name, encoder)
        self.chunks = chunks
        self.chunk_size = chunk_size
        self.spans = [slice(k * chunk_size, (k + 1) * chunk_size) for k in range(len(chunks))]

    def sources(self) -> list[Tensor]:
        """None: a chunk that wants a gradient gets it, and passes it on, when it is encoded."""
        return []

    def encode_with_graph(self) -> Tensor:
        out = self._call(self.chunks[0])
        self._check_graph([out])
        return out

    def run(self, span: slice) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        return (self._call(self.chunks[span.start // self.chunk_size]),), []

    def _call(self, arguments: Any) -> Tensor:
        out = self.encoder(arguments)
        if not isinstance(out, Tensor):
            raise TypeError(f"{self.name}: the representation of a chunk must be a tensor, got {type(out).__name__}")
        return out
