"""Every module of the package has its own test file, or a reason why not."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_fp16"

ELSEWHERE = {
    "plugin.py": "tests/plugin/ runs it, one file per option",
    "progress.py": "a protocol without code",
    "diagnosis/remedy.py": "a dataclass without code",
}
#: Debts, not reasons: a module leaves this table with the test file it gets.
NOT_YET: dict[str, str] = {
    "diagnosis/findings.py": "imported by tests/diagnosis/test_bounds.py",
    "diagnosis/replay.py": "imported by tests/diagnosis/test_autopsy.py",
    "diagnosis/specimen.py": "imported by tests/diagnosis/conftest.py",
    "diagnosis/tape.py": "imported by tests/diagnosis/test_autopsy.py",
    "diagnosis/training_cures.py": "imported by tests/diagnosis/test_training.py",
    "diagnosis/training_price.py": "no test imports it; its callers run it",
    "diagnosis/twin.py": "no test imports it; its callers run it",
    "fixture.py": "run by tests/plugin/test_fixture.py",
    "report/training.py": "no test imports it; its callers run it",
    "treatment.py": "imported by tests/diagnosis/test_evaluation.py",
}


def without_tests() -> set[str]:
    modules = (p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    return {
        module.as_posix()
        for module in modules
        if not (ROOT / "tests" / module.parent / f"test_{module.name}").is_file()
    }


def test_every_module_has_its_test_file_or_is_an_exception_with_a_reason():
    excepted = ELSEWHERE.keys() | NOT_YET.keys()
    missing = without_tests()
    assert not missing - excepted, "modules without a test file of their own"
    assert not excepted - missing, "exceptions that are none any more"
