from xml.etree import ElementTree


def properties(example, *args):
    example.check("--junitxml=out.xml", "--fp16-precisions=16-true", *args)
    root = ElementTree.parse(example.pytester.path / "out.xml").getroot()
    return {
        case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")}
        for case in root.iter("testcase")
    }


def test_each_case_has_its_figures_as_short_strings(example):
    found = properties(example)

    sound, broken = found["test_sound[16-true]"], found["test_broken[16-true]"]
    assert sound["fp16.verdict"] == "equivalent"
    assert broken["fp16.verdict"] == "not equivalent"
    assert broken["fp16.failed"].startswith("finite")
    assert float(broken["fp16.loss"]) > float(broken["fp16.budget"])
    assert all(len(value) < 200 for values in found.values() for value in values.values())


def test_the_failure_message_is_the_reports(example):
    properties(example)

    text = (example.pytester.path / "out.xml").read_text()
    assert "NotEquivalent: 16-true is not equivalent to 32-true on test_broken: accuracy" in text


def test_a_test_by_hand_has_them_too(example):
    example.write(
        "def test_it(fp16, model, data):\n    fp16.evaluate(model, data, precision='bf16-true')\n"
    )

    assert properties(example)["test_it"]["fp16.precision"] == "bf16-true"
