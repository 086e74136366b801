# SPDX-License-Identifier: Apache-2.0
"""What a model's forward does with logits on the way to its loss, on formulas: products, scales, signs, losses.

A function that is not here, or not with these arguments, gets the plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ._lazy import RULES, Formula, Lazy, Rule, is_lazy
from ._losses import STEPS, Losses, Matched, Product, Signed, Targets

# what makes the first formulas of plain tensors
STARTERS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.eye, torch.arange}
# of a cross entropy
DEFAULTS = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean"}


class Eye(Formula):
    """A square matrix with one number on its diagonal and another beside it."""

    def __init__(self, n: int, own: float, other: float, dtype: torch.dtype, device: torch.device) -> None:
        self.n, self.own, self.other, self.shape, self.dtype, self.device = n, own, other, (n, n), dtype, device

    def entries(self) -> Tensor:
        off = torch.full(self.shape, self.other, dtype=self.dtype, device=self.device)
        return off + torch.eye(self.n, dtype=self.dtype, device=self.device) * (self.own - self.other)

    def stepped(self, step: str, number: float) -> Eye:
        own, other = (STEPS[step](x, number) for x in (self.own, self.other))
        return Eye(self.n, own, other, self.dtype, self.device)


def rule(names: str, *kinds: type[Formula]) -> Callable[[Rule], Rule]:
    """The functions of these names; where ``kinds`` are given, of a lazy tensor with one of these formulas."""

    def decorate(function: Rule) -> Rule:
        @wraps(function)
        def of_formula(x: Any, *args: Any, **options: Any) -> Any:
            if not isinstance(x, Lazy) or not isinstance(x.formula, kinds):
                return NotImplemented
            found = function(x.formula, *args, **options)
            return found.lazy() if isinstance(found, Formula) else found

        RULES.update(dict.fromkeys(names.split(), of_formula if kinds else function))
        return function

    return decorate


@rule("matmul mm __matmul__")
def product(x: Any, y: Any) -> Any:
    """Embeddings times embeddings: what may become logits."""
    for z in (x, y):
        if type(z) is not Tensor or z.dim() != 2 or not z.is_floating_point() or z.layout is not torch.strided:
            return NotImplemented
    autocast = torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, y.dtype)
    if x.shape[1] != y.shape[0] or x.device != y.device or not (autocast or x.dtype == y.dtype):
        return NotImplemented
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    return Product(x, y.t(), dtype).lazy()


@rule("eye")
def eye(n: Any, *, dtype: Any = None, device: Any = None) -> Any:
    if not isinstance(n, int):
        return NotImplemented
    return Eye(n, 1.0, 0.0, dtype or torch.get_default_dtype(), torch.empty(0, device=device).device).lazy()


@rule("arange")
def arange(n: Any, *, device: Any = None) -> Any:
    """Remembers that these are 0 to n - 1, so that nobody has to look at them, which a GPU would have to wait for."""
    if not isinstance(n, int):
        return NotImplemented
    found = torch.arange(n, device=device)
    found._pycl_count = n  # type: ignore[attr-defined]  # a note on the object
    return found


@rule("ones_like", Product)
def ones_like(logits: Product) -> Any:
    square = logits.shape[0] == logits.shape[1]
    return Eye(logits.shape[0], 1.0, 1.0, logits.dtype, logits.device) if square else NotImplemented


@rule("t T mT transpose", Product)
def transposed(logits: Product, *dims: int) -> Any:
    return logits.transposed() if sorted(d % 2 for d in dims) in ([], [0, 1]) else NotImplemented


@rule("view reshape", Product)
def reshaped(logits: Product, *shape: Any) -> Any:
    """To the shape that they have."""
    same = len(shape) == 2 and all(size in (-1, n) for size, n in zip(shape, logits.shape, strict=True))
    return logits if same else NotImplemented


@rule("to", Product)
def moved(logits: Product, *args: Any, **kwargs: Any) -> Any:
    """To a dtype, or to where the logits are."""
    dtype, device = logits.dtype, logits.device
    for option in (*args, *kwargs.values()):
        if isinstance(option, torch.dtype) and option.is_floating_point:
            dtype = option
        elif isinstance(option, torch.device | str):
            device = torch.device(option)
        elif option is not None and option is not False:  # a copy, a format of memory, another tensor
            return NotImplemented
    if device != logits.device:
        return NotImplemented
    return logits if dtype == logits.dtype else logits.stepped("to", dtype)


@rule("float", Product)
def as_float(logits: Product) -> Any:
    return moved(logits, torch.float32)


@rule("mul multiply __mul__ __rmul__")
def times(x: Any, y: Any) -> Any:
    if not is_lazy(x):
        x, y = y, x
    if not is_lazy(y):
        return _stepped("mul", x.formula, y)
    signs, logits = (x.formula, y.formula) if isinstance(x.formula, Eye) else (y.formula, x.formula)
    if not isinstance(signs, Eye) or not isinstance(logits, Product) or signs.shape != logits.shape:
        return NotImplemented
    if signs.own != 1.0 or signs.other not in (0.0, -1.0):
        return NotImplemented
    return Signed(logits, signs.other, torch.promote_types(signs.dtype, logits.dtype)).lazy()


@rule("neg negative __neg__", Eye, Product, Matched, Losses)
def negated(x: Any) -> Any:
    return x.stepped("mul", -1)


@rule("add __add__ __radd__")
def plus(x: Any, y: Any) -> Any:
    if not is_lazy(x):
        x, y = y, x
    if not is_lazy(y):
        return _stepped("add", x.formula, y)
    a, b = x.formula, y.formula
    if isinstance(a, Losses) and isinstance(b, Losses):
        return a.plus(b).lazy()
    if isinstance(a, Eye) and isinstance(b, Eye) and a.n == b.n:
        dtype = torch.promote_types(a.dtype, b.dtype)
        return Eye(a.n, a.own + b.own, a.other + b.other, dtype, a.device).lazy()
    return NotImplemented


@rule("sub subtract __sub__", Eye, Product)
def minus(x: Any, y: Any) -> Any:
    return _stepped("sub", x, y)


@rule("div divide true_divide __div__ __truediv__", Eye, Product, Matched, Losses)
def over(x: Any, y: Any) -> Any:
    return _stepped("div", x, y)


@rule("mul_ __imul__", Losses)  # a sum of losses is nobody else's
def times_in_place(x: Losses, y: Any) -> Any:
    return _stepped("mul", x, y)


@rule("__getitem__", Product)
def rows(logits: Product, index: Any) -> Any:
    """Logits of some of the rows."""
    if not isinstance(index, Tensor) or index.dim() != 1 or index.dtype not in (torch.bool, torch.int64):
        return NotImplemented
    return logits.rows(index)


@rule("log_sigmoid logsigmoid", Signed)
def log_sigmoid(signed: Signed) -> Any:
    return NotImplemented if signed.logarithm else signed.log_sigmoid()


@rule("sum", Signed, Matched)
def summed(x: Any, dim: Any = None) -> Any:
    return NotImplemented if (found := x.summed(dim)) is None else found


@rule("mean", Matched)
def mean(x: Matched) -> Any:
    return x.mean()


@rule("cross_entropy", Product)
def cross_entropy(logits: Product, target: Any, *, label_smoothing: float = 0.0, **options: Any) -> Any:
    if is_lazy(target) or any(isinstance(x, Tensor) or x != DEFAULTS[name] for name, x in options.items()):
        return NotImplemented
    targets = Targets.of(target, *logits.shape)
    return NotImplemented if targets is None else Losses.cross_entropy(logits, targets, float(label_smoothing))


def _stepped(step: str, formula: Any, y: Any) -> Any:
    """A formula and a number, or a tensor of one element."""
    number = isinstance(y, Real) and not isinstance(y, bool)
    one = isinstance(y, Tensor) and y.numel() == 1 and y.dim() <= 2 and y.is_floating_point()
    if isinstance(formula, Product):
        return formula.stepped(step, y).lazy() if number or one else NotImplemented
    if not number or (step == "div" and y == 0):
        return NotImplemented
    if isinstance(formula, Losses) and step == "add":  # where sum() begins
        return formula.lazy() if y == 0 else NotImplemented
    if isinstance(formula, Eye) or (isinstance(formula, Losses | Matched) and step in ("mul", "div")):
        return formula.stepped(step, y).lazy()
    return NotImplemented
