"""What to change in the code where nothing can be applied from outside, in words."""

from __future__ import annotations

from dataclasses import dataclass

from pytest_fp16.diagnosis.remedy import Meeting
from pytest_fp16.report.figures import written
from pytest_fp16.report.model import Culprit, CureKind


def in_float32(culprit: Culprit) -> str:
    """What to do with the culprit's operation; a cast itself is not computed: it is left out."""
    if culprit.operation == "_to_copy":
        return "stay in float32"
    return f"compute {written(culprit.operation) or 'it'} in float32"


#: Before the place where inputs are first read; nothing without one.
_ENTERING = "; they enter"


@dataclass(frozen=True)
class Advice:
    """What to change in the code.

    Attributes:
        kind: what sort of cure it is.
        change: what to do that leaves all in 16 bits; empty where there is nothing of the sort.
        wide: what to compute in float32 instead; empty where that is no help.
        then: how far, behind the place.
    """

    kind: CureKind
    change: str = ""
    wide: str = ""
    then: str = ""

    def at(self, place: str | None) -> str:
        """All of it, with the line."""
        where = f" at {place}" if place else ""
        text = ", or ".join(filter(None, (self.change, self.wide)))
        text = text if place else text.removesuffix(_ENTERING)
        return f"{text}{where}{self.then if self.wide else ''}" if text else ""


_ADVICE: dict[str, Advice] = {
    "overflow": Advice("rescale", "divide before it", "{in_float32}",
                       ", up to where its values fit again"),
    "underflow": Advice("rescale", "multiply before it, work with logarithms", "{in_float32}"),
    "cancellation": Advice("upcast", "subtract first", "compute the difference in float32"),
    "absorption": Advice("upcast", "", "keep what is added to in float32"),
    "precision-loss": Advice("upcast", "", "{in_float32}"),
    "unsupported-op": Advice("upcast", "", "cast the operands of {operation} to float32 and its "
                             "result back"),
    "mask-inf": Advice("mask constant", "mask with torch.finfo(x.dtype).min, x being what is "
                       "masked, instead of the constant"),
    "eps-underflow": Advice("epsilon", "use an epsilon that the format holds, 1e-5 or more (which "
                            "moves what float32 gives, too, as the floor of a logarithm)",
                            "add it in float32"),
}  # fmt: skip


#: Tried where inputs are to blame; said where that is not known to fail.
_HANDED_ON = "hand the inputs on in float32 (keep_inputs=), as a mixed precision does, or "

#: By variant, where the advice is another one: what to change, and what in float32.
_OTHERWISE: dict[str, tuple[str, str]] = {
    "mixed dtypes": ("bring the tensors that meet there to one dtype", ""),
    "other bits": ("", "cast to float32 before the bits are read"),
    "stored values": ("scale what is stored, and take the scale back behind", ""),
    "stored inputs": ("{handed_on}shift and scale them before they are cast", ""),
    "infinite inputs": ("{handed_on}scale them before they are cast" + _ENTERING, ""),
    "infinite values": ("scale what is stored, and take the scale back behind, or keep in float32 "
                        "what is read (a weight, a buffer, or a number of the program's own)", ""),
    "stored digits": ("keep the weight or buffer in float32 that is read", ""),
    "near one": ("use a bound that the format can tell from one, 0.999 in float16 and 0.99 in "
                 "bfloat16", "set it in float32"),
    "whole numbers": ("keep the whole numbers as integers", "keep them in float32"),
    "refused by the program": ("let the program take 16-bit tensors, or hand it float32 ones "
                               "and cast its result back,", ""),
    "own statement": ("let it take 16-bit tensors, or compute what it looks at in float32", ""),
    "no room": ("fill the masked places (masked_fill) instead of adding to them, or mask with "
                "half of torch.finfo(x.dtype).min, x being what is masked,", ""),
    "bound": ("bound by torch.finfo(x.dtype).max, x being what is bounded, instead of the "
              "constant", ""),
    "large constant": ("use torch.finfo(x.dtype).max, x being what it stands beside, instead of "
                       "the constant", ""),
    "merged outputs": ("", "{in_float32} and leave its result so"),
    "stale weight": ("enter autocast with cache_enabled=False, or leave it before a weight "
                     "changes", ""),
    "coefficient": ("scale what it is added to until the format holds it", "{in_float32}"),
    "fast path": ("make the encoder with enable_nested_tensor=False", ""),
    "padding": ("set padded positions to zero behind it, or leave them out of what is read,", ""),
    "another program": ("do for 16 bits what is done for float32", ""),
    "another constant": ("use a constant of one's own, the same whatever the dtype,", ""),
}  # fmt: skip


def advised(culprit: Culprit, handed_on: bool = True) -> Advice:
    """What to change in the code, without the place.

    Args:
        culprit: at fault.
        handed_on: whether inputs in float32 may be of help; they may have been tried in vain.
    """
    usual = _ADVICE[culprit.mechanism]
    parts = _OTHERWISE.get(culprit.variant or "", (usual.change, usual.wide))
    words = {"operation": written(culprit.operation), "in_float32": in_float32(culprit)}
    words["handed_on"] = _HANDED_ON if handed_on else ""
    change, wide = (part.format(**words) for part in parts)
    return Advice(usual.kind, change, wide, "" if culprit.variant else usual.then)


def advice(culprit: Culprit, handed_on: bool = True) -> tuple[CureKind, str]:
    """What to change in the code, and where; see `advised`."""
    found = advised(culprit, handed_on)
    if culprit.variant == "stale weight":  # whose cure is not where it is used
        return "fresh casts", found.change
    if culprit.variant == "fast path":  # nor this
        return "no fast path", found.change
    return found.kind, found.at(culprit.source)


#: Operations into whose first operand the others are written.
_INTO = frozenset("index_put index_copy index_fill copy masked_scatter scatter put".split())


def brought(meeting: Meeting, culprit: Culprit) -> str:
    """Which dtype the tensors that met were brought to."""
    if meeting == "widened":
        return "to float32, all of them"
    if culprit.operation in _INTO:
        return "what is written to that of what it is written into"
    return "the wider one to that of the other, x.to(y.dtype)"


def fitting(culprit: Culprit) -> str:
    """What a constant is put to that the format does not hold, as it was tried."""
    return f"{advice(culprit)[1]} (tried for all constants that the format does not hold)"
