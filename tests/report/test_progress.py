from pytest_fp16.report.progress import Bar, Log


class Terminal:
    def __init__(self):
        self.now = 0.0
        self.written = []
        self.bar = Bar(self.written.append, columns=60, clock=lambda: self.now)

    def at(self, now, done, total=10):
        self.now = now
        self.bar("reading batches", done, total)


def test_short_work_stays_silent():
    terminal = Terminal()

    terminal.at(1.9, 9)
    terminal.bar.close()

    assert terminal.written == []


def test_long_work_shows_how_far_it_is_on_one_line():
    terminal = Terminal()

    terminal.at(2.0, 5)
    terminal.at(2.1, 6)  # too soon after the last
    terminal.at(2.3, 10)

    assert terminal.written == [
        "\rfp16: [############............] 5/10 reading batches",
        "\rfp16: [########################] 10/10 reading batches",
    ]


def test_the_time_left_goes_by_the_work_done_since_the_start():
    terminal = Terminal()
    terminal.at(1.0, 4)  # three of them were finished by an earlier run

    terminal.at(11.0, 6)

    (line,) = terminal.written
    assert line.startswith("\rfp16: [#########......] 6/10, 0:00:20 left: reading batches")


def test_no_time_is_left_where_nothing_was_done_yet():
    terminal = Terminal()
    terminal.at(0.0, 4)

    terminal.at(5.0, 4)

    assert "left" not in terminal.written[0]


def test_what_precedes_the_first_unit_says_nothing_of_the_speed():
    terminal = Terminal()
    terminal.at(0.0, 0, 1000)  # a check before the training
    terminal.at(60.0, 1, 1000)

    terminal.at(61.0, 11, 1000)

    assert "left" not in terminal.written[0]
    assert "11/1000, 0:01:39 left" in terminal.written[1]


def test_a_log_has_a_line_a_minute_of_its_own():
    now, written = 0.0, []
    log = Log(written.append, clock=lambda: now)
    for now in (0.0, 59.0, 61.0, 90.0, 120.0, 122.0):
        log("training", int(now) + 1, 1001)
    log.close()

    assert written == [
        "\nfp16: 62/1001, 0:15:39 left: training\n",
        "fp16: 123/1001, 0:14:38 left: training\n",
    ]


def test_a_log_of_work_without_a_known_end():
    now, written = 0.0, []
    log = Log(written.append, clock=lambda: now)
    now = 70.0
    log("training", 3, None)

    assert written == ["\nfp16: 3 done, training\n"]


def test_a_total_nobody_knows():
    terminal = Terminal()

    terminal.at(3.0, 7, None)

    assert terminal.written == ["\rfp16: reading batches, 7 done"]


def test_a_shorter_line_covers_a_longer_one_and_closing_wipes_it():
    terminal = Terminal()
    terminal.at(3.0, 7)
    length = len(terminal.written[0]) - 1

    terminal.at(4.0, 7, None)
    terminal.bar.close()

    assert len(terminal.written[1]) == length + 1
    assert terminal.written[2].strip() == ""


def test_where_columns_are_scarce_the_figures_stay():
    terminal = Terminal()
    for now, name in [(2, "test_digits"), (4, "test_digits_and_more"), (6, "t" * 99)]:
        terminal.now = now
        terminal.bar(f"{name}: seed 0, 16-true, epoch 1/3, loss 0.123", 0, 12)

    assert [line.strip() for line in terminal.written] == [
        "fp16: 0/12 test_di…: seed 0, 16-true, epoch 1/3, loss 0.123",
        "fp16: 0/12 test_di…: seed 0, 16-true, epoch 1/3, loss 0.123",
        "fp16: 0/12 ttttttt…: seed 0, 16-true, epoch 1/3, loss 0.123",
    ]
    assert all(len(line) == 60 for line in terminal.written)


def test_a_line_never_wraps():
    terminal = Terminal()
    terminal.now = 3.0

    terminal.bar("x" * 200, 1, 2)

    assert len(terminal.written[0]) == 60
