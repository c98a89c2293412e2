"""Values that are not finite, and that nothing reads, or nothing that minds: they do no harm.

A sum whose gradient alone is wanted (forces are the slope of an energy) may leave the range: its
gradient is one all the same. So may a square whose negative is the argument of an exponential.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pytest_fp16.engine.emulation.operations import facts, flat, tensors
from pytest_fp16.engine.gradients.origins.lost_values import finite

#: What is asked for a tensor's form, or shown to somebody, and what hands its values on.
_FORMS = frozenset("ones_like zeros_like empty_like full_like _local_scalar_dense".split())
_COPIES = frozenset("_to_copy clone detach alias neg".split())
#: Functions with a limit: what a number too large for the format gives them is what infinity does.
_LIMITED = frozenset("exp exp2 sigmoid tanh erf erfc atan".split())


class Unread:
    """The results of one operation, until another one reads them.

    Args:
        results: not all of them are finite. They are held, so that their memory is not used anew.
    """

    def __init__(self, results: list[Any]) -> None:
        self._held: list[Tensor] = []
        self.read = False
        self._hold(results)

    def _hold(self, results: list[Any]) -> None:
        lost = [t for t in results if isinstance(t, Tensor) and not finite(t)]
        if any(not _addressed(t) for t in lost):
            self.read = True  # nobody can tell
        self._held += lost

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        """An operation has run, with these arguments."""
        if self.read:
            return
        places = {t.untyped_storage().data_ptr() for t in self._held}
        given = [t for t in tensors(args, kwargs) if _addressed(t)]
        if not any(t.untyped_storage().data_ptr() in places and not finite(t) for t in given):
            return
        known = facts(func)
        if known.view or known.name in _COPIES:
            self._hold(flat(out))
        elif known.name in _LIMITED and all(map(finite, flat(out))):
            return  # exp(-inf) is zero, as it would have been
        elif known.name not in _FORMS:
            self.read = True


def _addressed(tensor: Tensor) -> bool:
    """Whether its values lie in a memory of its own that can be told from others."""
    try:
        return tensor.untyped_storage().data_ptr() != 0
    except (RuntimeError, NotImplementedError):  # sparse, or wrapped by a transform
        return False
