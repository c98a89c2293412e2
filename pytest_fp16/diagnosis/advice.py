"""What to change in the code where nothing can be applied from outside, in words."""

from __future__ import annotations

from pytest_fp16.diagnosis.remedy import Meeting
from pytest_fp16.report.figures import written
from pytest_fp16.report.model import Culprit, CureKind


def in_float32(culprit: Culprit) -> str:
    """What to do with the culprit's operation; a cast itself is not computed: it is left out."""
    if culprit.operation == "_to_copy":
        return "stay in float32"
    return f"compute {written(culprit.operation) or 'it'} in float32"


_ADVICE: dict[str, tuple[CureKind, str]] = {
    "overflow": ("rescale", "divide before it, or {in_float32}"),
    "underflow": ("rescale", "multiply before it, work with logarithms, or {in_float32}"),
    "cancellation": ("upcast", "compute the difference in float32, or subtract first"),
    "absorption": ("upcast", "keep what is added to in float32"),
    "precision-loss": ("upcast", "{in_float32}"),
    "unsupported-op": ("upcast", "cast the operands of {operation} to float32 and its result back"),
    "mask-inf": ("mask constant", "mask with torch.finfo(x.dtype).min, x being what is masked, "
                 "instead of the constant"),
    "eps-underflow": ("epsilon", "use an epsilon that the format holds, 1e-5 or more, or add it in "
                      "float32"),
}  # fmt: skip


#: By variant, where the advice is another one.
_OTHERWISE = {
    "mixed dtypes": "bring the tensors that meet there to one dtype",
    "other bits": "cast to float32 before the bits are read",
    "stored values": "scale what is stored, and take the scale back behind",
    "stored inputs": "hand the inputs on in float32 (keep_inputs=), as a mixed precision does, or "
    "shift and scale them before they are cast",
    "infinite inputs": "hand the inputs on in float32 (keep_inputs=), as a mixed precision does, "
    "or scale them before they are cast; they enter",
    "infinite values": "scale what is stored, and take the scale back behind, or keep the weight "
    "or buffer in float32 that is read",
    "stored digits": "keep the weight or buffer in float32 that is read",
    "near one": "use a bound that the format can tell from one, 0.999 in float16 and 0.99 in "
    "bfloat16, or set it in float32",
    "whole numbers": "keep the whole numbers as integers, or in float32",
    "refused by the program": "let the program take 16-bit tensors, or hand it float32 ones and "
    "cast its result back,",
    "own statement": "let it take 16-bit tensors, or compute what it looks at in float32",
    "no room": "fill the masked places (masked_fill) instead of adding to them, or mask with half "
    "of torch.finfo(x.dtype).min, x being what is masked,",
    "bound": "bound by torch.finfo(x.dtype).max, x being what is bounded, instead of the constant",
    "merged outputs": "{in_float32} and leave its result so",
    "stale weight": "enter autocast with cache_enabled=False, or leave it before a weight changes",
    "another program": "do for 16 bits what is done for float32",
    "another constant": "use a constant of one's own, the same whatever the dtype,",
}


def advice(culprit: Culprit) -> tuple[CureKind, str]:
    """What to change in the code, and where."""
    kind, text = _ADVICE[culprit.mechanism]
    text = _OTHERWISE.get(culprit.variant or "", text)
    text = text.format(operation=written(culprit.operation), in_float32=in_float32(culprit))
    if culprit.variant == "stale weight":  # whose cure is not where it is used
        return "fresh casts", text
    return kind, f"{text} at {culprit.source}" if culprit.source else text


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
