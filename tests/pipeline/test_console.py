from __future__ import annotations

import io

import pytest

from pipeline import console
from pipeline.console import Talk, bytes_text, duration_text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_of_progress_now_and_then(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Talk().bar("Extracting uni", "views") as update:
        for second in range(0, 100):
            clock[0] = float(second)
            update(100 + 2 * second, 400)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 3
    assert lines[0] == "Extracting uni: 160 of 400 views, 2.00 views/s, 2 min left"


def test_quiet_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(quiet=True)
    talk.say("x")
    with talk.bar("Extracting", "views") as update:
        update(1, 10)
        clock[0] = 1000.0
        update(9, 10)
    assert capsys.readouterr() == ("", "")


def test_amounts_are_told_as_people_read_them() -> None:
    assert [bytes_text(n) for n in (0, 999, 1500, 2_681_049_600)] == ["0 B", "999 B", "1.5 kB", "2.7 GB"]
    assert [duration_text(s) for s in (3, 600, 7200)] == ["3 s", "10 min", "2.0 h"]


def test_tables_are_not_wrapped_where_stdout_is_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    table = Table("a" * 60, "b" * 60)
    written = io.StringIO()
    monkeypatch.setattr(console.sys, "stdout", written)
    console.print_table(table)
    assert "a" * 60 in written.getvalue()
