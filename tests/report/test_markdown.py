from pytest_fp16.report.markdown import to_markdown


def test_the_table_and_the_message_of_what_failed(failed, passed):
    report = failed(certified={"measured": 1.0})
    text = to_markdown([("test_a", report), ("test_b", passed())])
    lines = text.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:4]]
    assert cells[0] == [
        "test",
        "precision",
        "verdict",
        "metric 32 → 16 bit",
        "loss",
        "budget",
        "flips allowed",
        "certified m/b/p",
        "ran",
    ]
    assert cells[2][:6] == [
        r"test\_a", "16-true", "not equivalent", "97.1 → 61.2 %", "35.9", "0.8"
    ]  # fmt: skip
    assert cells[3][:3] == [r"test\_b", "16-true", "equivalent"]
    assert lines[5:8] == [r"**test\_a**, 16-true", "", "```text"]
    assert lines[8:] == [*str(report).splitlines(), "```"]


def test_no_text_can_break_out_of_its_cell_or_block(failed):
    text = to_markdown([("test_x[a|b*c]", failed(error="see ```this```"))])
    assert r"| test\_x\[a\|b\*c\] |" in text
    assert text.count("\n````") == 2


def test_no_report():
    assert to_markdown([]) == "No report.\n"
