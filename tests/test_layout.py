"""Every module of the package has its own test file, or a reason why not."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pytest_fp16"

ELSEWHERE = {
    "plugin.py": "tests/plugin/ runs it, one file per option",
    "progress.py": "a protocol without code",
    "diagnosis/proposal.py": "a dataclass without code",
    "diagnosis/remedy.py": "a dataclass without code",
}


def without_tests() -> set[str]:
    modules = (p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
    return {
        module.as_posix()
        for module in modules
        if not (ROOT / "tests" / module.parent / f"test_{module.name}").is_file()
    }


def test_every_module_has_its_test_file_or_is_an_exception_with_a_reason():
    missing = without_tests()
    assert not missing - ELSEWHERE.keys(), "modules without a test file of their own"
    assert not ELSEWHERE.keys() - missing, "exceptions that are none any more"
