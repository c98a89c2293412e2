from html.parser import HTMLParser

from pytest_fp16.report.html import to_html


class Reader(HTMLParser):
    """Collects rows, their classes, and blocks of text; refuses tags that are not closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.rows, self.classes, self.texts = [], [], [], {}
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "meta":
            return
        self.open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "tr":
            self.rows.append([])
            self.classes.append(dict(attributes).get("class"))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1].append(self.texts[tag][-1])

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]][-1] += data


def test_a_row_for_every_report_coloured_by_its_verdict_and_every_message(failed, passed):
    reports = [("test_a", failed()), ("test_b", passed()), ("c", failed(verdict="inconclusive"))]
    page = Reader(to_html(reports))
    assert page.classes == [None, "not-equivalent", "equivalent", "inconclusive"]
    assert page.rows[0][:3] == ["test", "precision", "verdict"]
    assert page.rows[1][:4] == ["test_a", "16-true", "not equivalent", "97.1 → 61.2 %"]
    assert page.texts["h2"] == ["test_a, 16-true", "test_b, 16-true", "c, 16-true"]
    assert page.texts["pre"] == [str(report) for _, report in reports]


def test_text_is_text_and_never_markup(failed):
    name, error = 'test_x[<b>&"]', "<script>alert(1)</script>"
    page = to_html([(name, failed(error=error))])
    assert "<script" not in page
    read = Reader(page)
    assert read.rows[1][0] == name
    assert error in read.texts["pre"][0]


def test_no_report():
    assert Reader(to_html([])).texts["p"] == ["No report."]
