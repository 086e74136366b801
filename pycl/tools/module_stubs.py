# SPDX-License-Identifier: Apache-2.0
"""Write ``pycl/modules/losses.pyi``, the modules with arguments and docstrings written out, as ``make stubs`` does.

Modules take the keyword arguments and the docstrings of their functions when Python runs. An IDE and a type checker
read the stub.
"""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path
from typing import Any

from pycl.modules import losses
from pycl.modules.base import Loss

HEAD = """# SPDX-License-Identifier: Apache-2.0
# Written by `make stubs` from the signatures and docstrings of pycl.functional; tests/losses/test_modules.py compares.
from collections.abc import Sequence

from torch import Tensor

from pycl.distributed.ranks import Group
from pycl.functional._common import Scalar
from pycl.modules.base import Loss

"""


def stub() -> str:
    """The text of the file."""
    names = [
        name for name, value in vars(losses).items() if inspect.isclass(value) and value.__module__ == losses.__name__
    ]
    listed = "".join(f'    "{name}",\n' for name in losses.__all__)
    return f"{HEAD}__all__ = [\n{listed}]\n" + "".join(_class(getattr(losses, name)) for name in names)


def _class(module: type[Loss]) -> str:
    text = f"\nclass {module.__name__}({module.__base__.__name__}):\n"  # type: ignore[union-attr]  # classes have a base
    text += _docstring(module, "    ") + "\n"
    if "function" in vars(module):
        text += _method("__init__", module.arguments)
    if "forward" in vars(module):
        whole = inspect.signature(module.forward)
        text += _method("forward", whole.replace(parameters=list(whole.parameters.values())[1:]), module.forward)
    return text


def _docstring(described: Any, indent: str) -> str:
    """What IDEs show when one points at a name."""
    text = textwrap.indent(inspect.cleandoc(described.__doc__), indent).strip()
    return f'{indent}r"""{text}' + (f'\n{indent}"""\n' if "\n" in text else '"""\n')


def _method(name: str, signature: inspect.Signature, described: Any = None) -> str:
    """A line for each argument: which fit in one line is the formatter's to say."""
    lines, by_name = ["self"], False
    for p in signature.parameters.values():
        by_name_now = p.kind is p.KEYWORD_ONLY
        if by_name_now and not by_name and not any(q.kind is q.VAR_POSITIONAL for q in signature.parameters.values()):
            lines.append("*")
        by_name = by_name or by_name_now
        star = "*" if p.kind is p.VAR_POSITIONAL else ""
        default = "" if p.default is p.empty else f" = {_quoted(p.default)}"
        lines.append(f"{star}{p.name}: {p.annotation}{default}")
    arguments = "".join(f"        {line},\n" for line in lines)
    returned = signature.return_annotation
    head = f"    def {name}(\n{arguments}    ) -> {returned}:"
    return f"{head} ...\n" if described is None else f"{head}\n{_docstring(described, '        ')}"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    path = Path(losses.__file__).with_suffix(".pyi")
    path.write_text(stub(), encoding="utf-8")
    print(f"wrote {path.name}")
