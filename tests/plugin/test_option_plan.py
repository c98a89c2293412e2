"""The plan: a cure that was tried is written down, and later runs are held against it."""

BROKEN = """
import torch

class Detour(torch.nn.Module):
    def forward(self, x):
        return x * 1e5 / 1e5

@fp16_equivalent(precisions=["16-true"])
def test_broken(model, data):
    return Evaluation(model=torch.nn.Sequential(model, Detour()).eval(), data=data)
"""


def test_a_cure_is_written_down_and_then_applied(example):
    example.write(BROKEN)

    first = example.check_apart("--fp16-plan=kept.txt")

    first.assert_outcomes(failed=1)
    plan = (example.pytester.path / "kept.txt").read_text()
    assert "test_broken[16-true]: 1 " in plan

    second = example.check_apart("--fp16-plan=kept.txt")

    second.assert_outcomes(passed=1)
    second.stdout.fnmatch_lines(["*plan*"])


MANY = """
import torch

class Detour(torch.nn.Module):
    def forward(self, x):
        return x * 1e5 / 1e5

@pytest.mark.parametrize("n", range(4))
@fp16_equivalent(precisions=["16-true"])
def test_broken(model, data, n):
    return Evaluation(model=torch.nn.Sequential(model, Detour()).eval(), data=data)
"""


def test_workers_that_find_cures_at_the_same_time_lose_none(example):
    example.write(MANY)

    example.check_apart("-n2", "--fp16-plan=kept.txt").assert_outcomes(failed=4)

    lines = (example.pytester.path / "kept.txt").read_text().splitlines()
    assert len([line for line in lines if "test_broken[" in line and ": 1 " in line]) == 4
    example.check_apart("-n2", "--fp16-plan=kept.txt").assert_outcomes(passed=4)


def test_a_plan_that_cannot_be_read_is_a_usage_error(example):
    (example.pytester.path / "kept.txt").write_text("no such line\n")

    result = example.check("--fp16-plan=kept.txt")

    assert result.ret == 4
    said = result.stdout.str() + result.stderr.str()
    assert "kept.txt:1" in said


SAME_NAME = """
import torch

class Detour(torch.nn.Module):
    def forward(self, x):
        return x * FACTOR / FACTOR

@fp16_equivalent(precisions=["16-true"])
def test_same(model, data):
    return Evaluation(model=torch.nn.Sequential(model, Detour()).eval(), data=data)
"""


def test_tests_of_one_name_in_two_files_keep_their_own_entries(example):
    example.write(SAME_NAME.replace("FACTOR", "2.0"))
    example.write(SAME_NAME.replace("FACTOR", "1e5"), "test_broken")

    example.check_apart("--fp16-plan=kept.txt").assert_outcomes(passed=1, failed=1)
    second = example.check_apart("--fp16-plan=kept.txt")

    plan = (example.pytester.path / "kept.txt").read_text()
    assert "test_broken.py::test_same[16-true]: 1 " in plan
    assert "test_it.py" not in plan
    second.assert_outcomes(passed=2)
    second.stdout.no_fnmatch_line("*stale*")


TWO = """
import torch

class Detour(torch.nn.Module):
    def forward(self, x):
        return x * 1e5 / 1e5

def test_two(fp16, model, data):
    broken = torch.nn.Sequential(model, Detour()).eval()
    sound = torch.nn.Sequential(model, torch.nn.Identity()).eval()
    print(fp16.evaluate(broken, data).verdict)
    report = fp16.evaluate(sound, data)
    assert (report.verdict, report.run.islands) == ("equivalent", [])
"""


def test_what_one_check_of_a_test_needs_is_not_kept_for_another(example):
    example.write(TWO)

    for _ in range(2):
        example.check_apart("--fp16-plan=kept.txt").assert_outcomes(passed=1)
    assert (example.pytester.path / "kept.txt").read_text().count("test_two") == 1


def test_an_entry_whose_test_is_gone_is_stale(example):
    example.write(BROKEN)
    kept = example.pytester.path / "kept.txt"
    kept.write_text("test_it.py::test_renamed[16-true]: 1\n")
    said = "warning: kept.txt:*: stale entry: test_it.py has no test test_renamed any more*"

    one = "test_it.py::test_broken"
    for more, told in [((), True), (("-k", "broken"), True), (("-n", "2"), True), ((one,), False)]:
        result = example.check_apart("--fp16-plan=kept.txt", *more)
        kept.write_text("test_it.py::test_renamed[16-true]: 1\n")
        (result.stdout.fnmatch_lines if told else result.stdout.no_fnmatch_line)(
            [said] if told else said
        )
