# SPDX-License-Identifier: Apache-2.0
"""What sentence-transformers writes of a loss into the card of a model."""

from __future__ import annotations

from inspect import isclass
from typing import Any

from sentence_transformers.base import model_card
from sentence_transformers.util import fullname

DROP_IN = "pycl.compat.sentence_transformers"


class Carded:
    """A drop-in's parameters in the card, with a line that says what computed the loss."""

    def get_config_dict(self) -> dict[str, Any]:
        return {**super().get_config_dict(), "computed_by": DROP_IN}  # type: ignore[misc]  # the library's class is next


def named(thing: Any) -> str:
    """The full name of a class, or of an object's; a drop-in has that of the library's class, which the card links."""
    kind: Any = thing if isclass(thing) else type(thing)
    stands_for_it = issubclass(kind, Carded) and kind.__module__.startswith(f"{DROP_IN}.")
    return str(fullname(next(c for c in kind.__mro__[1:] if c.__name__ == kind.__name__) if stands_for_it else thing))


if hasattr(model_card, "fullname"):
    model_card.fullname = named  # the card's one question about a loss that no class can answer and be pickled
