import re
from typing import get_args

import pytest

from pytest_fp16.report.message import _WHY_VARIANT, generous, message
from pytest_fp16.report.model import (
    Certified,
    Check,
    Culprit,
    Cure,
    Forecast,
    Mechanism,
    Run,
    Speed,
    Variant,
)

NAN = float("nan")


def lines(report):
    return message(report).splitlines()


def test_a_failure_says_what_where_why_and_what_to_do_in_this_order(failed):
    assert lines(failed()) == [
        "16-true is not equivalent to 32-true on test_digits: accuracy 61.2 %, reference 97.1 % "
        "(loss 35.9 points, budget 0.8)",
        "  as predicted: 130 flips, 2 allowed",
        "  good enough: loss above the budget",
        "  where: blocks.1.norm, operation pow (norms.py:12): largest value 9.0e+04, float16 holds "
        "6.55e+04",
        "  why:   overflow: a value leaves the range of float16",
        "  cure:  keep blocks.1.norm in float32; tried: accuracy 97.1 %, 0 flips of 360, passes",
        "  forecast: not equivalent (adjoint, from 32-bit arithmetic alone): overflow in "
        "blocks.1.norm",
        "  ran:   emulated for cuda on cpu",
    ]


def test_str_of_a_report_is_the_message(failed):
    assert str(failed()) == message(failed())


def test_a_pass_is_one_paragraph(passed):
    certified = Certified(measured=1.0, bounded=0.902, probable=0.9972)
    speed = Speed(seconds=1.0, reference_seconds=1.62, speedup=1.62)
    run = Run(device="cuda:0", target="cuda", mode="native")
    assert lines(passed(certified=certified, speed=speed, run=run)) == [
        "16-true is equivalent to 32-true on test_digits: accuracy 97.1 %, reference 97.1 % "
        "(loss 0.0 points, budget 0.8); 0 flips of 360 (2 allowed); certified: measured 100 %, "
        "bounded 90 %, probable 99 %. It ran native on cuda:0, 1.62 times as fast as 32-true."
    ]


def test_a_gain_is_not_called_a_negative_loss(passed, metric):
    report = passed(metric=metric(candidate=0.97456, loss=-0.00333))
    assert "(gain 0.3 points, budget 0.8)" in message(report)


def test_warnings_follow_one_a_line(passed):
    report = passed(warnings=["the argmax survived by luck", "the reference is not deterministic"])
    assert lines(report)[1:] == [
        "  warning: the argmax survived by luck",
        "  warning: the reference is not deterministic",
    ]


@pytest.mark.parametrize(
    ("loss", "said", "cure"),
    [
        (0.7, "More than half of the budget is spent, most of it at", "To win it back"),
        (-1, "It passes by luck: most of what moved the outputs comes from", "To be safe"),
    ],
)
def test_a_pass_that_is_near_to_failing_says_where(passed, failed, metric, loss, said, cure):
    own = metric()
    own = metric(loss=loss * own.budget)
    report = passed(culprit=failed().culprit, cure=failed().cure, metric=own)
    assert (
        f"{said} blocks.1.norm, operation pow "
        f"(norms.py:12): largest value 9.0e+04, float16 holds 6.55e+04. {cure}: keep "
        "blocks.1.norm in float32; tried: accuracy 97.1 %, 0 flips of 360, passes."
    ) in message(report)


@pytest.mark.parametrize(("origin", "cost"), [("default", "cost "), ("absolute", "")])
def test_unlabelled_data_are_judged_by_flips(failed, metric, origin, cost):
    changes = {"reference": 1.0, "candidate": 0.639, "loss": 130 / 360, "labelled": False}
    report = failed(metric=metric(name="agreement", budget_origin=origin, **changes))
    assert lines(report)[0] == (
        f"16-true is not equivalent to 32-true on test_digits: 130 flips of 360 ({cost}36.1 %, "
        "budget 0.8 %; no labels)"
    )


def test_regression_has_no_flips(passed, metric):
    r2 = metric(name="R²", reference=0.91234, candidate=0.91111, loss=0.00123, budget=0.005)
    report = passed(task="regression", metric=r2, flips=None, ties=None, decisions=0)
    assert lines(report) == [
        "16-true is equivalent to 32-true on test_digits: R² 0.911, reference 0.912 (loss 0.001, "
        "budget 0.005). It ran emulated for cuda on cpu."
    ]


def test_a_training_says_so(failed):
    report = failed(
        kind="training",
        flips=None,
        ties=None,
        checks=[Check(name="same over seeds", passed=False, detail="5 seeds, loss 2.1 ± 0.3")],
        culprit=Culprit(
            module="<optimizer>",
            operation="Adam",
            mechanism="eps-underflow",
            evidence="epsilon 1e-08, float16 holds 6e-08",
        ),
        forecast=None,
    )
    said = lines(report)
    assert said[0].startswith("training in 16-true is not equivalent to 32-true on test_digits: ")
    assert said[1:4] == [
        "  same over seeds: 5 seeds, loss 2.1 ± 0.3",
        "  where: the optimizer, operation Adam: epsilon 1e-08, float16 holds 6e-08",
        "  why:   eps-underflow: what keeps a divisor or logarithm from zero is zero in float16",
    ]


@pytest.mark.parametrize(
    ("module", "shown"),
    [("", "the model itself"), ("<loss>", "the loss"), ("a.b", "a.b")],
)
def test_places_have_names(failed, module, shown):
    culprit = Culprit(module=module, operation="", mechanism="overflow", evidence="")
    assert f"  where: {shown}" in lines(failed(culprit=culprit))


def test_an_exception_in_16_bits_is_told_with_its_words(failed):
    report = failed(
        metric=None, flips=None, decisions=0, error='RuntimeError: "x" not implemented for Half'
    )
    said = lines(report)
    assert said[0] == (
        "16-true is not equivalent to 32-true on test_digits: the model raised an error in 16 bits"
    )
    assert '  error: RuntimeError: "x" not implemented for Half' in said


def test_an_exception_beside_a_reference_that_ran(failed, metric):
    report = failed(metric=metric(candidate=NAN, loss=NAN), error="boom")
    assert lines(report)[0].endswith("raised an error in 16 bits (reference: accuracy 97.1 %)")


def test_further_lines_of_an_error_are_indented(failed):
    assert "  error: first\n         second\n" in message(failed(error="first\nsecond"))


@pytest.mark.parametrize("loss", [NAN, float("inf")])
def test_a_metric_that_is_nan_is_said_in_words(failed, metric, loss):
    r2 = metric(name="R²", reference=0.9, candidate=NAN, loss=loss, budget=0.005)
    first = lines(failed(task="regression", metric=r2, flips=None))[0]
    assert first.endswith("R² NaN, reference 0.900 (the loss cannot be computed, budget 0.005)")


def test_no_culprit_names_the_largest_shares(failed, site):
    sites = [site(module=m, share=s) for m, s in (("a", 0.1), ("b", 0.5), ("", 0.2), ("d", 0.05))]
    report = failed(culprit=None, cure=None, sites=sites)
    assert lines(report)[3:5] == [
        "  where: no single module or operation was found at fault; largest shares of σ²: b "
        "(linear) 50 %, the model itself (linear) 20 %, a (linear) 10 %",
        "  cure:  none was found; stay in 32-true, or test bf16-true and bf16-mixed, whose range "
        "is that of float32",
    ]


def test_no_culprit_without_shares(failed):
    report = failed(culprit=None, cure=None, precision="bf16-true")
    assert lines(report)[3:5] == [
        "  where: no single module or operation was found at fault",
        "  cure:  none was found; stay in 32-true",
    ]


def test_inconclusive_is_neither(failed):
    report = failed(
        verdict="inconclusive",
        metric=None,
        culprit=None,
        cure=None,
        flips=None,
        forecast=None,
        checks=[Check(name="16 bit ran", passed=False, detail="out of memory at batch 1")],
    )
    assert lines(report) == [
        "16-true against 32-true on test_digits is inconclusive",
        "  16 bit ran: out of memory at batch 1",
        "  ran:   emulated for cuda on cpu",
    ]


def _cure(**changes):
    known = {"kind": "epsilon", "verified": False, "description": "raise the epsilon to 1e-4."}
    return Cure(**{**known, **changes})


@pytest.mark.parametrize(
    ("cure", "text"),
    [
        (_cure(), "raise the epsilon to 1e-4; not tried"),
        (_cure(description=""), "epsilon; not tried"),
        (_cure(untried="no line"), "raise the epsilon to 1e-4; not tried: no line"),
        (
            _cure(kind="keep_in_float32", description="", modules=["a", "b"]),
            "keep_in_float32: a, b; not tried",
        ),
        (_cure(verified=True), "raise the epsilon to 1e-4; tried: passes"),
        (
            _cure(verdict="not equivalent", flips=1, metric=0.91),
            "raise the epsilon to 1e-4; tried: accuracy 91.0 %, 1 flip of 360, does not pass",
        ),
        (
            _cure(verified=True, metric=0.953, reference=0.96, budget=0.015, seeds=[2]),
            "raise the epsilon to 1e-4; tried: accuracy 95.3 %, reference 96.0 % "
            "(loss 0.7 points, budget 1.5) with seed 2, passes",
        ),
        (_cure(verdict="inconclusive"), "raise the epsilon to 1e-4; tried: inconclusive"),
        (
            _cure(verdict="inconclusive", unsettled="it gains more"),
            "raise the epsilon to 1e-4; tried: inconclusive: it gains more",
        ),
    ],
)
def test_a_cure_says_whether_it_was_tried_and_what_came_of_it(failed, cure, text):
    assert f"  cure:  {text}" in lines(failed(cure=cure))


def test_a_cure_of_a_run_that_ended_early_has_its_own_decisions_and_metric(failed):
    numbers = {"flips": 2, "decisions": 600, "metric": 0.993, "metric_name": "accuracy"}
    report = failed(metric=None, decisions=0, cure=_cure(verified=True, **numbers))
    said = "raise the epsilon to 1e-4; tried: accuracy 99.3 %, 2 flips of 600, passes"
    assert f"  cure:  {said}" in lines(report)


@pytest.mark.parametrize("kind", Cure.model_fields["kind"].annotation.__args__)
def test_every_kind_of_cure_can_be_told(failed, kind):
    assert f"  cure:  {kind}; not tried" in lines(failed(cure=_cure(kind=kind, description="")))


@pytest.mark.parametrize("mechanism", Mechanism.__args__)
def test_every_mechanism_is_explained(failed, mechanism):
    culprit = Culprit(module="m", operation="op", mechanism=mechanism, evidence="")
    report = failed(culprit=culprit, precision="bf16-true")
    (why,) = [line for line in lines(report) if line.startswith("  why:")]
    assert re.fullmatch(rf"  why:   {mechanism}: \S.{{20,}}", why)
    assert "{" not in why
    assert "float16" not in why.replace("bfloat16", "")


def test_a_random_rounding_forecast_and_a_canary(failed):
    forecast = Forecast(
        verdict="equivalent",
        reason="",
        method="random rounding",
        metric_loss=0.0,
        flips_expected=1.0,
        flips_allowed=4,
    )
    run = Run(
        device="cpu", target="cpu", mode="native", canary="the canary found no kernel for cumprod"
    )
    assert lines(failed(forecast=forecast, run=run))[-2:] == [
        "  forecast: equivalent (random rounding, from 32-bit arithmetic alone)",
        "  ran:   native on cpu; the canary found no kernel for cumprod",
    ]


def test_no_number_has_more_digits_than_anybody_reads(failed, passed, metric):
    third = metric(reference=2 / 3, candidate=1 / 3, loss=1 / 3, budget=1 / 300)
    for report in (failed(metric=third), passed(metric=third)):
        assert not re.search(r"\d\.\d{4,}", message(report))


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("mixed dtypes", "tensors of different dtypes meet"),
        ("refused by the program", "the program itself refuses float16"),
        ("refused by autocast", "unsafe in 16 bits"),
        ("padding", "reads padded positions, which are zero in float32 alone"),
        ("fast path", "torch's fast path of padded encoders stays on under autocast"),
        ("not in NumPy", "hand it tensor.float()"),
        ("other bits", "the bits of float32 are asked for, and float16 has others"),
        ("closure", "that evaluates the loss itself"),
        ("no gradient left", "not in hooks of the backward pass"),
        ("while scaled", "after scaler.unscale_(optimizer)"),
        ("stored inputs", "inputs themselves lose digits when they are cast to float16"),
        ("infinite inputs", "inputs themselves leave the range of float16 when they are cast"),
        ("infinite values", "a number of the program's own leaves the range of float16 as it is"),
        ("stored digits", "a weight or a buffer loses digits as the model is cast to float16"),
        ("near one", "a bound just below one is one in float16"),
        ("another constant", "the program takes another constant for float16"),
        ("own statement", "a statement of the program's own stops it in float16"),
        ("no room", "a mask of the smallest number that float16 has"),
        ("whole numbers", "large whole numbers become one in float16"),
    ],
)
def test_a_variant_has_words_of_its_own(failed, variant, words):
    culprit = Culprit(
        module="", operation="", mechanism="unsupported-op", evidence="it", variant=variant
    )
    (why,) = [line for line in lines(failed(culprit=culprit)) if line.startswith("  why:")]
    assert words in why


def test_no_variant_is_without_words():
    assert _WHY_VARIANT.keys() == set(get_args(Variant))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": 0.8, "budget_origin": "absolute"}, "0.008 is 0.8 points"),
        ({"budget": 0.8, "budget_origin": "relative"}, "80 points, 160 times the default one"),
        ({"budget": 0.05, "budget_origin": "absolute"}, None),
        ({"budget": 0.8, "budget_origin": "default"}, None),
        ({"budget": 0.8, "budget_origin": "absolute", "name": "R²"}, None),
    ],
)
def test_a_budget_that_may_have_been_meant_in_points(metric, changes, words):
    said = generous(metric(**changes), usual=0.005)
    assert words in said if words else said is None
