"""The report in Chromium: it fits any window, in light and dark, and axe finds nothing amiss."""

import pytest

from otdml.benchmarks.finished import collect
from otdml.benchmarks.report import write_report

pytestmark = pytest.mark.browser


def test_the_report_fits_and_can_be_read(window, finished, digits, assert_readable):
    write_report(finished / "report.html", digits, collect(finished), ["otdml", "benchmark"])
    window.goto((finished / "report.html").as_uri())
    assert_readable(window)
    for summary in window.locator("summary").all():
        if not summary.evaluate("summary => summary.parentElement.open"):
            summary.click()
    assert_readable(window)
