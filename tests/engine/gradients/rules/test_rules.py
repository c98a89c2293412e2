"""The rules of the gradient check, on evidence whose figures are known."""

import math

import pytest

from pytest_fp16.engine.gradients.evidence import Evidence
from pytest_fp16.engine.gradients.origins.found import Found
from pytest_fp16.engine.gradients.origins.lost_digits import LostDigits
from pytest_fp16.engine.gradients.origins.whole_numbers import Miscount
from pytest_fp16.engine.gradients.points import Point
from pytest_fp16.engine.gradients.probes.optimizer_probe import Probe
from pytest_fp16.engine.gradients.probes.second_look import SecondLook
from pytest_fp16.engine.gradients.probes.statistics_probe import Lag
from pytest_fp16.engine.gradients.rules.rules import RULES, doubtful, gradient_is_lost
from pytest_fp16.theory.gradient import Movement, Noise
from pytest_fp16.theory.rounding import FLOAT16


def noise(rho=1e-4, gain=1.0, relative=0.01, zeroed=0.0, zeroed_norm=0.0):
    return Noise(rho, 1.0, 0.0, gain, relative, zeroed, zeroed_norm)


LOUD = noise(rho=3.0, relative=0.5)


def point(total=None, step=0, losses=((1.0, 1.0),), **tensors):
    named = {name.replace("_", "."): n for name, n in tensors.items()}
    return Point(step, list(losses), total or noise(), named)


def found(**known):
    """What the rules say, in their order."""
    evidence = Evidence(FLOAT16, **known)
    return [finding for rule in RULES if (finding := rule(evidence)) is not None]


def only(**known):
    (finding,) = found(**known)
    return finding


def test_nothing_is_wrong_with_no_evidence_or_with_sound_figures():
    assert found() == []
    assert found(points=[point(head_weight=noise()), point(step=5)]) == []


def test_the_origin_of_what_is_not_finite_is_named_with_its_line():
    origin = Found("blocks.1", "pow", "overflow", 300.0, 9e4, "net.py:7")
    finding = only(broke=("the loss is infinite", origin))
    assert (finding.module, finding.operation) == ("blocks.1", "pow")
    assert (finding.mechanism, finding.source) == ("overflow", "net.py:7")
    assert "9.0e+04" in finding.evidence


def test_an_optimizer_that_divided_by_zero_is_named_with_its_epsilon():
    origin = Found("<optimizer>", "addcdiv", "eps-underflow", 1.0)
    finding = only(broke=("a weight is infinite", origin), epsilon=("eps", 1e-8))
    assert "eps 1e-08 is zero in float16" in finding.evidence


def test_weights_that_broke_after_steps_too_long_are_the_steps_fault():
    far = Probe(Movement(5.0, 50.0, 1.0), True, -1, {}, {"exp_avg_sq": 0.9}, 0.0)
    first, *_ = found(
        broke=("a weight is not finite", Found("head", "mm", "overflow", 1.0)), optimizer=far
    )
    assert (first.module, first.operation) == ("<optimizer>", "exp_avg_sq")


def test_a_weight_that_the_cast_lost_is_named():
    finding = only(broke=("the loss is NaN", None), lost_weights=["head.scale"])
    assert (finding.module, finding.operation, finding.mechanism) == ("head", "scale", "overflow")
    assert "6.55e+04" in finding.evidence


@pytest.mark.parametrize(
    ("said", "raised_in", "module", "mechanism"),
    [
        ("value cannot be converted to type at::Half without overflow", "mask", "mask", "mask-inf"),
        ("\"linalg_qr\" not implemented for 'Half'", "qr", "qr", "unsupported-op"),
        ("\"linalg_qr\" not implemented for 'Half'", None, "<loss>", "unsupported-op"),
        ("the loss is infinite", None, "<loss>", "overflow"),
    ],
)
def test_what_was_raised_is_told_apart(said, raised_in, module, mechanism):
    finding = only(broke=(said, None), raised_in=raised_in)
    assert (finding.module, finding.mechanism) == (module, mechanism)


def test_a_model_made_sure_may_break_too():
    origin = Found("<loss>", "log", "cancellation", 1.0)
    assert only(confident=("the loss is NaN", origin)).module == "<loss>"


def test_a_lost_buffer_is_named():
    finding = only(lost_buffers=["stem.norm.running_var"])
    assert (finding.module, finding.operation) == ("stem.norm", "running_var")


@pytest.mark.parametrize(
    ("total", "told"),
    [
        (noise(rho=2.0, relative=0.5), True),
        (noise(rho=2.0, relative=0.1), False),  # beside a gradient that hardly changes
        (noise(rho=0.5, relative=0.5), False),  # beside batches that differ more
        (noise(gain=0.4), True),
        (noise(gain=2.1), True),
        (noise(gain=math.nan), True),
        (noise(gain=0.6), False),
    ],
)
def test_the_whole_gradient(total, told):
    assert bool(found(points=[point(total, head_weight=noise())])) == told


def test_the_worst_tensor_of_the_worst_point_is_named():
    finding = only(
        points=[
            point(noise(rho=2.0, relative=0.5), step=3, a_weight=noise()),
            point(LOUD, step=9, a_weight=noise(), b_weight=noise(rho=0.9)),
        ]
    )
    assert (finding.module, finding.operation) == ("b", "backward")
    assert "after 9 steps" in finding.reason
    assert finding.mechanism == "precision-loss"


def test_underflow_of_every_tensor_is_the_losses():
    lost = noise(rho=3.0, gain=0.0, relative=1.0, zeroed=1.0, zeroed_norm=1.0)
    first, *_ = found(points=[point(lost, a_weight=lost, b_weight=lost)])
    assert (first.module, first.mechanism) == ("<loss>", "underflow")
    first, *_ = found(points=[point(lost, a_weight=lost, b_weight=noise())])
    assert (first.module, first.mechanism) == ("a", "underflow")


@pytest.mark.parametrize("bad", [LOUD, noise(gain=0.1, relative=0.9)])
def test_one_tensor_is_judged_by_most_points(bad):
    few = [point(a_weight=bad), point(a_weight=noise()), point(a_weight=noise())]
    assert found(points=few) == []
    most = [point(a_weight=bad), point(a_weight=bad), point(a_weight=noise())]
    assert only(points=most).module == "a"


def test_a_tensor_without_meaning_at_one_point_is_never_judged():
    silent = point()
    silent.meaningless.append("a.weight")
    assert found(points=[point(a_weight=LOUD), point(a_weight=LOUD), silent]) == []


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        (((2.0, 2.9),), False),
        (((2.0, 3.2),), True),
        (((2.0, 2.0), (2.0, math.nan)), True),
        (((math.inf, 1.0),), False),  # the reference has none to miss
    ],
)
def test_a_loss_far_off(losses, told):
    assert bool(found(points=[point(losses=losses)])) == told
    # Where gradients were compared they are what counts: what is constant in a loss has none.
    assert found(points=[point(losses=losses, head_weight=noise())]) == []


def test_the_loss_that_is_furthest_off_is_told():
    finding = only(points=[point(losses=((-9.0, -9.0), (2.0, 7.0)), step=3)])
    assert finding.evidence == "7 where float32 gives 2, after 3 steps"


def statistic(gain, size, lag):
    return {"norm.running_mean": (Movement(gain, size, 1.0), lag)}


def test_an_average_that_loses_its_way():
    finding = only(statistics=statistic(0.1, 0.1, 0.5))
    assert (finding.module, finding.operation) == ("norm", "running_mean")
    assert found(statistics=statistic(0.1, 0.1, 0.05)) == []  # it ends near all the same
    assert found(statistics=statistic(0.9, 0.9, 0.5)) == []


def test_an_average_of_features_may_follow_weights_that_go_another_way():
    led = {"weights": Movement(0.3, 1.0, 1.0), "first_losses": [(1.0, 1.0), (1.0, 1.0)]}
    assert found(statistics=statistic(0.1, 1.2, 0.5), **led) == []
    assert only(statistics=statistic(0.1, 0.1, 0.5), **led).operation == "running_mean"


@pytest.mark.parametrize(
    ("average", "weight", "told"),
    [
        ("avg.0.bias", "net.0.bias", False),
        ("ema.module.0.bias", "0.bias", False),
        ("avg.0.bias", "net.1.bias", True),
        ("avg.10.bias", "0.bias", True),
    ],
)
def test_the_average_of_a_weight_without_a_gradient_has_no_way_to_lose(average, weight, told):
    silent = point()
    silent.meaningless.append(weight)
    lost = {average: (Movement(0.1, 0.1, 1.0), 0.5)}
    assert bool(found(points=[silent], statistics=lost)) is told


def test_running_statistics_of_a_whole_training():
    lag = Lag("norm.running_var", 0.7, 0.1)
    finding = only(lags=[Lag("norm.running_mean", 0.1, 0.1), lag])
    assert (finding.operation, finding.mechanism) == ("running_var", "absorption")
    assert "momentum 0.1" in finding.reason
    assert found(lags=[Lag("norm.running_var", 0.4, 0.1)]) == []
    lost = Lag("norm.running_var", math.nan, 0.1, lost=0.25)
    assert only(lags=[lag, lost]).mechanism == "overflow"


BENT = noise(rho=25.0, gain=0.26, relative=0.8)
VANISHED = noise(rho=25.0, gain=0.0, relative=1.0, zeroed=1.0, zeroed_norm=1.0)


def look(start, end, candidate):
    return SecondLook(20, start, None, end, candidate)


def test_a_bent_gradient_is_no_fault_where_the_model_learns_with_it():
    assert doubtful(Evidence(FLOAT16, points=[point(gate=BENT)]))
    assert only(points=[point(gate=BENT)]).mechanism == "precision-loss"
    learns = look([2.0, 2.1], [0.5, 0.6], [0.5, 0.6])
    assert not found(points=[point(gate=BENT)], second=learns)
    assert not found(points=[point(total=LOUD)], second=learns)


def test_a_gradient_that_a_step_changes_while_it_is_scaled_is_not_the_formats_fault():
    clipped = noise(rho=25.0, gain=0.0, relative=1.0)
    assert only(points=[point(gate=clipped)]).variant is None
    finding = only(points=[point(gate=clipped)], scaled_steps=0.95)
    assert (finding.operation, finding.variant) == ("step", "while scaled")
    assert finding.reason.startswith("a step of its own changes gradients while they are scaled")
    assert "the first steps miss their way by 95% in 32 bits too" in finding.reason


@pytest.mark.parametrize(
    "second",
    [
        look([2.0, 2.1], [0.5, 0.6], [1.9, 2.0]),  # learns too slowly with it
        look([2.0, 2.2], [2.1, 2.1], [2.1, 2.1]),  # nothing has learnt: no answer
    ],
)
def test_a_bent_gradient_is_one_where_nothing_shows_that_it_learns(second):
    first, *_ = found(points=[point(head_weight=BENT)], second=second)
    assert (first.module, first.operation) == ("head", "backward")


def test_a_gradient_that_vanished_is_one_whatever_else_learns():
    evidence = {"points": [point(gate=BENT, head_weight=VANISHED)]}
    assert not doubtful(Evidence(FLOAT16, **evidence))
    assert found(**evidence, second=look([2.0, 2.1], [0.5, 0.6], [0.5, 0.6]))


def test_what_left_the_range_on_the_way_to_a_lost_gradient_is_named():
    lost = point(total=noise(rho=3.0, relative=1.0, gain=0.0), head_weight=LOUD)
    assert gradient_is_lost(lost)
    assert not gradient_is_lost(point(head_weight=noise()))
    origin = Found("<loss>", "mul", "overflow", 3e2, 1e5, "loss.py:3")
    finding, *_ = found(points=[lost], swallowed=origin)
    assert (finding.module, finding.operation) == ("<loss>", "mul")
    assert (finding.mechanism, finding.source) == ("overflow", "loss.py:3")
    assert "mul in <loss> leaves the range" in finding.reason
    assert found(points=[lost])[0].mechanism == "precision-loss"


def test_the_operation_that_broke_the_optimizer_alone_is_named():
    origin = Found("<optimizer>", "sqrt", "cancellation", 1.0)
    way = Movement(math.nan, math.nan, 1.0)
    broken = Probe(way, False, 48, {}, {}, 0.0, origin=origin)
    finding = only(optimizer=broken)
    assert (finding.operation, finding.mechanism) == ("sqrt", "cancellation")
    assert "48 steps" in finding.reason


def test_what_left_the_range_in_a_step_is_named_where_16_bits_learn_too_slowly():
    look = SecondLook(60, [4.0] * 4, [3.0] * 4, [1.0] * 4, [3.9] * 4)
    origin = Found("<optimizer>", "add", "overflow", 3e4, 8e4, "clip.py:5")
    finding = only(second=look, stepped=origin)
    assert (finding.operation, finding.mechanism) == ("add", "overflow")
    assert finding.source == "clip.py:5"
    assert "less than half the speed" in finding.reason
    assert only(second=look).mechanism == "precision-loss"
    assert found(stepped=origin) == []
    still = only(weights=Movement(0.0, 0.0, 1.0), first_losses=[(1.0, 1.0)], stepped=origin)
    assert (still.operation, still.mechanism) == ("add", "overflow")


@pytest.mark.parametrize(("steps", "collapses"), [(100, False), (1000, True)])
def test_a_scale_collapses_where_too_many_steps_are_skipped(steps, collapses):
    origin = Found("gate", "div", "eps-underflow", 1.0, source="gate.py:4")
    said = found(skipped=(0.1, origin), total_steps=steps)
    assert bool(said) is collapses
    if collapses:
        assert (said[0].module, said[0].operation, said[0].source) == ("gate", "div", "gate.py:4")
        assert "for 10% of the batches" in said[0].reason


def test_a_gradient_that_is_bent_is_laid_to_whole_numbers_that_a_cast_changed():
    changed = Miscount("rotary", "net.py:3", 2049, 2048, 0.4)
    first, *_ = found(points=[point(LOUD, head_weight=LOUD)], changed=changed)
    assert (first.module, first.mechanism, first.source) == ("rotary", "absorption", "net.py:3")
    assert first.variant == "whole numbers"
    assert "2049 becomes 2048" in first.reason
    assert "2049 becomes 2048" in first.evidence
    vanished = noise(rho=3.0, relative=0.9, gain=0.1, zeroed=0.9, zeroed_norm=0.9)
    first, *_ = found(points=[point(vanished, head_weight=vanished)], changed=changed)
    assert first.mechanism == "underflow"  # no matter of digits
    for gone, mechanism in ((0.1, "underflow"), (0.9, "cancellation")):
        digits = LostDigits("<loss>", "sub", "net.py:5", 1.0, 3e4, 1.0, True, gone)
        first, *_ = found(points=[point(vanished, head_weight=vanished)], digits=digits)
        assert first.mechanism == mechanism


def test_weights_that_broke_after_gradients_that_were_lost_are_the_gradients_fault():
    broke = ("a weight is not finite", Found("head", "mm", "overflow", 1.0))
    lost = point(noise(rho=1e9, relative=1e9), head_weight=LOUD)
    first, *_ = found(broke=broke, points=[lost])
    assert first.operation == "backward"


def test_a_gradient_that_is_lost_as_it_is_comes_before_that_of_sure_outputs():
    confident = "the gradient of confident outputs is not finite", Found("", "sum", "overflow", 1.0)
    lost = point(noise(rho=9.0, relative=1.0, gain=0.0), head_weight=VANISHED)
    swallowed = Found("<loss>", "mul", "overflow", 3e2, 1e5, "loss.py:3")
    first, *_ = found(confident=confident, points=[lost], swallowed=swallowed)
    assert first.operation == "mul"
    first, *_ = found(confident=confident, points=[lost])  # for no reason that is known
    assert first.operation == "sum"
