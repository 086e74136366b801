# SPDX-License-Identifier: Apache-2.0
"""The logits of a patched model: there for whoever looks at them, and not computed before."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from parity import Largest
from torch import Tensor
from transformers_models import NAMED, assert_same_gradients, installed, patched, step

from pycl.compat.transformers._lazy import Lazy

CLIP, SIGLIP, CLAP = NAMED["CLIPModel"], NAMED["SiglipModel"], NAMED["ClapModel"]
N = 5


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    installed()
    monkeypatch.setenv("PYCL_STRICT", "1")
    with patched():
        yield


def outputs(model: Any = None) -> tuple[Any, Any]:
    """The output of a patched CLIP, and that of the library's."""
    from pycl.compat import transformers

    ours = (model or CLIP.make())(**CLIP.batch(N), return_loss=True)
    transformers.unpatch()
    theirs = (model or CLIP.make())(**CLIP.batch(N), return_loss=True)
    transformers.patch()
    assert isinstance(ours.logits_per_text, Lazy)
    return ours, theirs


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "softmax": lambda x: x.softmax(1),
    "transposed": lambda x: x.t(),
    "property T": lambda x: x.T,
    "scaled": lambda x: 2 * x / 3 - 1,
    "entry": lambda x: x[0, 1],
    "row": lambda x: x[2],
    "rows by mask": lambda x: x[torch.tensor([True, False, True, True, False])],
    "rows by number": lambda x: x[torch.tensor([4, 0])],
    "slice": lambda x: x[:2, 1:],
    "argmax": lambda x: x.argmax(1),
    "to float32": lambda x: x.to(torch.float32),
    "to float64": lambda x: x.double(),
    "to where it is": lambda x: x.to("cpu"),
    "detach": lambda x: x.detach(),
    "clone": lambda x: x.clone(),
    "data": lambda x: x.data,
    "numpy": lambda x: torch.from_numpy(x.detach().numpy()),
    "cpu numpy": lambda x: torch.from_numpy(x.detach().cpu().numpy()),
    "list": lambda x: torch.tensor(x.tolist()),
    "repr": repr,
    "cat": lambda x: torch.cat([x, x]),
    "stack": lambda x: torch.stack((x, x.t())),
    "out": lambda x: torch.add(x.detach(), 1, out=torch.empty(0, dtype=x.dtype)),
    "product": lambda x: x @ x,
    "linear": lambda x: torch.nn.functional.linear(x, x),
    "sum of itself": lambda x: x + x,
    "mean": lambda x: x.mean(),
    "sum": lambda x: x.sum(0),
    "bool": lambda x: (x > 0).any(),
    "iteration": lambda x: torch.stack(list(x)),
    "contiguous": lambda x: x.contiguous(),
    "pickle": lambda x: pickle.loads(pickle.dumps(x.detach())),
    "pickle with a graph": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": lambda x: copy.deepcopy(x.detach()),
    "cross entropy": lambda x: torch.nn.functional.cross_entropy(x, torch.arange(N)),
    "weighted cross entropy": lambda x: torch.nn.functional.cross_entropy(
        x, torch.arange(N), weight=torch.ones(N, dtype=x.dtype)
    ),
    "other targets": lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([1, 0, 3, 2, 2])),
    "ignored targets": lambda x: torch.nn.functional.cross_entropy(x, torch.tensor([1, -100, 3, 2, 2])),
    "by operator": lambda x: torch.ops.aten.exp(x),
    "foreach": lambda x: torch._foreach_mul([x, x], 2.0)[1],
    "index put": lambda x: x.clone().index_put_((torch.tensor([1]),), torch.zeros(1, N, dtype=x.dtype)),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_every_look_sees_the_entries(look: Callable[[Tensor], Any]) -> None:
    ours, theirs = outputs()
    for name in ("logits_per_text", "logits_per_image"):
        found, wanted = look(ours[name]), look(theirs[name])
        if isinstance(wanted, Tensor):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
            assert found.requires_grad == wanted.requires_grad
        else:
            assert found == wanted


def test_facts_need_no_entries() -> None:
    ours, theirs = outputs()
    found, wanted = ours.logits_per_image, theirs.logits_per_image
    for fact in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "is_cuda"):
        assert getattr(found, fact) == getattr(wanted, fact), fact
    assert (len(found), found.size(), found.dim(), found.numel()) == (N, (N, N), 2, N * N)
    assert isinstance(found, Tensor)
    assert torch.is_tensor(found)
    assert hash(found) == id(found)
    assert found.formula.upright._dense is None


def test_both_logits_are_one_matrix() -> None:
    ours, _ = outputs()
    text, image = ours.logits_per_text.contiguous(), ours.logits_per_image.contiguous()
    torch.testing.assert_close(text, image.t(), rtol=0, atol=0)
    assert ours.logits_per_text.formula.dense() is ours.logits_per_text.formula.dense()


class Double(torch.autograd.Function):
    """Gets the logits below whatever a tensor class can see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.detach() ** 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2 * ctx.saved_tensors[0]


USES: dict[str, Callable[[Any], Tensor]] = {
    "softmax": lambda o: o.logits_per_image.softmax(1)[:, 0].sum(),
    "loss and logits": lambda o: o.loss + o.logits_per_text.square().mean(),
    "both logits": lambda o: (o.logits_per_text.exp() * o.logits_per_image).mean(),
    "scaled": lambda o: (o.logits_per_text * 0.1 + 1).square().sum(),
    "own function": lambda o: Double.apply(o.logits_per_text).mean() + Double.apply(o.logits_per_image).sum(),
    "embeddings and logits": lambda o: (o.logits_per_text @ o.image_embeds).square().sum(),
    "cross entropy": lambda o: torch.nn.functional.cross_entropy(
        o.logits_per_image, torch.tensor([1, 0, 3, 2, 2]), label_smoothing=0.1
    ),
    "looked at before": lambda o: (torch.no_grad()(lambda x: x.max())(o.logits_per_text), o.logits_per_text.mean())[1],
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_gradients_through_the_logits(use: Callable[[Any], Tensor]) -> None:
    gradients = []
    for ours in (True, False):
        model = CLIP.make()
        use(outputs(model)[not ours]).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert_same_gradients(*gradients, 1e-10)


def test_second_derivatives_of_logits() -> None:
    found = []
    for output in outputs():
        x, logits = output.text_embeds, output.logits_per_text
        squares = Double.apply(logits) if isinstance(logits, Lazy) else logits**2
        first = torch.autograd.grad(squares.sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_writing_into_logits() -> None:
    ours, theirs = outputs()
    for output in (ours, theirs):
        with torch.no_grad():
            output.logits_per_text[0] = -7.0
            output.logits_per_image.mul_(2)
    torch.testing.assert_close(ours.logits_per_text, theirs.logits_per_text)
    torch.testing.assert_close(ours.logits_per_image, theirs.logits_per_image)
    own = torch.arange(N)
    losses = [torch.nn.functional.cross_entropy(output.logits_per_text, own) for output in (ours, theirs)]
    torch.testing.assert_close(*losses)  # of what was written, not of the formula


def test_logits_are_those_of_the_forward() -> None:
    """An optimizer's step between the forward and the look changes parameters, not logits."""
    from pycl.compat import transformers

    for kind in (SIGLIP, NAMED["AlignModel"], NAMED["PeVideoModel"]):
        found = []
        for ours in (True, False):
            transformers.patch() if ours else transformers.unpatch()
            model = kind.make().eval()
            output = model(**kind.batch(3), return_loss=True)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1
            found.append(next(x for name, x in output.items() if name.startswith("logits")))
        torch.testing.assert_close(*found)


def test_embeddings_that_changed_are_noticed() -> None:
    ours, _ = outputs()
    with torch.no_grad():
        ours.text_embeds.mul_(2)
    with pytest.raises(RuntimeError, match="embeddings they are of were changed in place"):
        ours.logits_per_text.max()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients(context: Callable[[], Any]) -> None:
    model = CLIP.make().eval()
    with context():
        ours, theirs = outputs(model)
        torch.testing.assert_close(ours.loss, theirs.loss)
    assert not ours.logits_per_text.requires_grad
    torch.testing.assert_close(ours.logits_per_text.softmax(0), theirs.logits_per_text.softmax(0))


def test_looked_at_in_inference_mode_and_used_after() -> None:
    model = CLIP.make()
    ours, theirs = outputs(model)
    with torch.inference_mode():
        ours.logits_per_text.max()
    found = torch.autograd.grad(ours.logits_per_text.square().sum(), model.logit_scale)
    torch.testing.assert_close(found, torch.autograd.grad(theirs.logits_per_text.square().sum(), model.logit_scale))


def test_an_output_is_saved_and_loaded() -> None:
    with torch.no_grad():
        ours, theirs = outputs()
    loaded = pickle.loads(pickle.dumps(ours))
    assert type(loaded.logits_per_text) is Tensor
    torch.testing.assert_close(loaded.logits_per_text, theirs.logits_per_text)
    file = io.BytesIO()
    torch.save({"logits": ours.logits_per_image}, file)
    file.seek(0)
    assert type(torch.load(file)["logits"]) is Tensor


KINDS = [
    "CLIPModel",
    "AlignModel",
    "SiglipModel",
    "ClapModel",
    "BridgeTowerForContrastiveLearning",
    "PeAudioModel",
    "FlavaForPreTraining",
    "RoCBertForPreTraining",
]


@pytest.mark.parametrize("name", KINDS)
def test_no_matrix_is_made(name: str) -> None:
    n, model = 96, NAMED[name].make(torch.float32)
    batch = NAMED[name].batch(n, torch.float32)
    shapes = torch.Size((n, n)), torch.Size((n - 1, n))

    class Matrices(Largest):
        found = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = super().__torch_dispatch__(func, types, args, kwargs)
            self.found += isinstance(made, Tensor) and made.shape in shapes
            return made

    with Matrices() as ours:
        step(model, batch)
    assert ours.found == 0
    from pycl.compat import transformers

    transformers.unpatch()
    with Matrices() as theirs:
        step(model, batch)
    assert theirs.found > 0
