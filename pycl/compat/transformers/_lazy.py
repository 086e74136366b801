# SPDX-License-Identifier: Apache-2.0
"""A tensor that knows its formula and has no entries until somebody looks at them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

# what a tensor without entries can say of itself
FACTS = {
    *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf", "grad_fn", "_version", "output_nr"),
    *("is_cuda", "is_cpu", "is_meta", "is_sparse", "is_quantized", "is_nested", "itemsize", "nbytes", "__hash__"),
    *("size", "dim", "numel", "nelement", "stride", "__len__", "is_floating_point", "is_complex", "get_device"),
    *("is_contiguous", "is_inference", "is_conj", "is_neg", "is_signed", "element_size"),
}


Rule = Callable[..., Any]  # takes what a function takes; another lazy tensor, or NotImplemented
RULES: dict[str, Rule] = {}  # by the name of the function


class Formula(ABC):
    """How the entries of a tensor come about: from ``leaves``, tensors that may have gradients."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    leaves: tuple[Tensor, ...] = ()
    _grad = False
    _dense: Tensor | None = None
    _values: Tensor | None = None
    _versions: tuple[int, ...] = ()

    @abstractmethod
    def entries(self) -> Tensor:
        """The tensor, differentiable in the leaves."""

    def lazy(self) -> Lazy:
        """A tensor with this formula, which is differentiable wherever it goes."""
        self._versions = tuple(map(_version, self.leaves))
        self._grad = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in self.leaves)
        return cast("Lazy", _Node.apply(self, *self.leaves) if self._grad else _shell(self))

    def dense(self) -> Tensor:
        """The tensor with its graph, made once."""
        if self._dense is None:
            self._dense = self._made(self._grad)
        return self._dense

    def values(self) -> Tensor:
        """The tensor without a graph, for what runs below autograd."""
        if self._dense is not None:
            return self._dense.detach()
        if self._values is None:
            self._values = self._made(grad=False)
        return self._values

    def holds(self) -> bool:
        """Whether the tensor still has this formula: it may have been written to."""
        return self._dense is None or _version(self._dense) == 0

    def _made(self, grad: bool) -> Tensor:
        with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
            self.check_leaves()
            found = self.entries()
            return found if _version(found) == 0 else found.clone()

    def check_leaves(self) -> None:
        """What is computed late must be of the tensors that it was asked of."""
        if tuple(map(_version, self.leaves)) != self._versions:
            raise RuntimeError(
                "logits were not computed yet when the embeddings they are of were changed in place: look at the "
                "logits first, or change a copy of the embeddings"
            )


class Lazy(Tensor):
    """A tensor of a :class:`Formula`. Its entries are computed by the first operation that needs them.

    Every function of torch that nothing is known of gets the plain tensor in its place, and so do operators below
    autograd, whose gradients come back through the node that this tensor has.
    """

    formula: Formula

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Sequence[Any], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it as if it were no class method
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for argument, given in zip(func._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and any(map(is_lazy, tree_leaves(given))):
                raise RuntimeError(f"{func} writes into logits that are not computed yet: call .contiguous() on them")
        return func(*tree_map(_values_of, args), **tree_map(_values_of, kwargs or {}))


class _Node(torch.autograd.Function):
    """Ties a tensor without entries to the graph of its leaves."""

    @staticmethod
    def forward(ctx: Any, formula: Formula, *leaves: Tensor) -> Tensor:
        ctx.formula = formula
        return _shell(formula)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        formula, again = ctx.formula, torch.is_grad_enabled()
        wanted = [leaf for leaf, n in zip(formula.leaves, ctx.needs_input_grad[1:], strict=True) if n]
        formula.check_leaves()
        with torch.enable_grad():
            options = {"create_graph": again, "allow_unused": True}
            found = iter(torch.autograd.grad(formula.entries(), wanted, gradient, **options))
        return None, *(next(found) if needed else None for needed in ctx.needs_input_grad[1:])


def run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A function of torch on lazy tensors: a fact, a lazy tensor by a rule, or the function on plain tensors."""
    name = name_of(func)
    if name in FACTS:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    rule = RULES.get(name)
    if rule is not None and all(x.formula.holds() for x in (*args, *kwargs.values()) if isinstance(x, Lazy)):
        try:
            found = rule(*args, **kwargs)
        except TypeError:  # arguments that the rule does not take
            found = NotImplemented
        if found is not NotImplemented:
            return found
    return func(*tree_map(dense_of, args), **tree_map(dense_of, kwargs))


def name_of(func: Any) -> str:
    """The name of a function, or of the attribute that a getter is of."""
    name = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else name


def is_lazy(x: Any) -> bool:
    return isinstance(x, Lazy)


def dense_of(x: Any) -> Any:
    """The plain tensor in place of a lazy one."""
    return x.formula.dense() if isinstance(x, Lazy) else x


def _values_of(x: Any) -> Any:
    return x.formula.values() if isinstance(x, Lazy) else x


def _shell(formula: Formula) -> Lazy:
    found = cast("Any", Tensor)._make_wrapper_subclass(
        Lazy, formula.shape, dtype=formula.dtype, device=formula.device, requires_grad=False
    )
    found.formula = formula
    return cast("Lazy", found)


def _version(x: Tensor) -> int:
    """How often a tensor was written to; nobody counts that in inference mode."""
    return 0 if x.is_inference() else x._version
