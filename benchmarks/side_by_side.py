"""Our verdict beside those of the tolerances people use, on the same labelled pairs.

The others are handed the candidate's real outputs: native 16-bit CPU kernels under CUDA's autocast
lists. A candidate that raises is rejected by everybody.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks import common
from benchmarks.cases import judge
from benchmarks.forecast import group, pairs


def assert_close(candidate: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """torch.testing.assert_close at the default tolerance of the 16-bit type."""
    try:
        torch.testing.assert_close(candidate.to(dtype), reference.to(dtype), equal_nan=True)
    except AssertionError:
        return False
    return True


def dynamo_same(candidate: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """torch._dynamo.utils.same with its defaults (tol 1e-4)."""
    from torch._dynamo.utils import same

    return bool(same(reference, candidate.float(), log_error=lambda *_, **__: None))


def cosine(candidate: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """Cosine of all outputs above 0.99."""
    a, b = candidate.double().flatten(), reference.double().flatten()
    return bool(torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.99)


def polygraphy(candidate: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """Polygraphy's default: absolute and relative error 1e-5."""
    return bool(torch.isclose(candidate.float(), reference, rtol=1e-5, atol=1e-5).all())


OTHERS: dict[str, Callable[[Tensor, Tensor, torch.dtype], bool]] = {
    "torch.testing.assert_close": assert_close,
    "torch._dynamo.utils.same": dynamo_same,
    "cosine > 0.99": cosine,
    "Polygraphy 1e-5": polygraphy,
}


def others(case: object, precision: str) -> dict[str, str]:
    """What each of the others says."""
    model, data = case.build()
    reference = torch.cat(judge.run(model, data, "32-true"))
    try:
        candidate = torch.cat(judge.run(model, data, precision, "cuda"))
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return dict.fromkeys(OTHERS, "not equivalent")
    dtype = judge.FORMATS[precision.split("-")[0]]
    said = {name: test(candidate, reference, dtype) for name, test in OTHERS.items()}
    return {name: "equivalent" if ok else "not equivalent" for name, ok in said.items()}


def main() -> None:
    """Count wrong verdicts of everybody, ours included."""
    options = common.options(__doc__, ("--only", {"default": ""}))
    wrong: dict[str, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for case, precision, expected in pairs("cuda", options.only, options.quick):
        kind = group(case, expected)
        totals[kind] = totals.get(kind, 0) + 1
        said = others(case, precision)
        found = common.check_case(case, precision)
        said["pytest-fp16, forecast"] = found.forecast
        said["pytest-fp16"] = found.verdict
        for name, verdict in said.items():
            tally = wrong.setdefault(name, {})
            tally[kind] = tally.get(kind, 0) + (verdict != expected)
    kinds = list(totals)
    rows = [
        (name, *(f"{tally[k]} of {totals[k]}" for k in kinds), sum(tally.values()))
        for name, tally in wrong.items()
    ]
    common.write(
        "side_by_side",
        "Wrong verdicts, side by side",
        f"{sum(totals.values())} labelled (case, precision) pairs, target cuda. Wrong verdicts:",
        ("judge", *kinds, "all"),
        rows,
        quick=options.quick or bool(options.only),
    )


if __name__ == "__main__":
    main()
