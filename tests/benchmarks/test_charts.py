"""Charts: where marks stand, and that they are well-formed XML."""

import math
from xml.etree import ElementTree

import pytest

from otdml.benchmarks.charts import Series, interval, line_chart, strip, thumbnail_map


def test_line_chart_puts_values_where_the_axes_say():
    line = Series("a < b", "plain", [0, 10], [0.0, 100.0], [0.0, 90.0], [10.0, 100.0])
    svg = ElementTree.fromstring(line_chart([line], title="R & D", x_label="epoch", y_range=(0, 100), unit="%"))
    (mean,) = [path for path in svg.iter("path") if path.get("class") == "line plain"]
    (left, bottom), (right, top) = (map(float, point.split(",")) for point in mean.get("d")[1:].split("L"))
    assert (left, right) == (44, 370)
    assert (bottom, top) == (216, 12)
    labels = {text.text: text for text in svg.iter("text")}
    assert float(labels["100%"].get("y")) == top + 3.5
    assert float(labels["10"].get("x")) == right
    assert svg.get("aria-label") == "R & D"


def test_a_single_point_and_a_constant_are_drawn():
    line = Series("a", "plain", [1], [5.0], [5.0], [5.0])
    text = line_chart([line], title="t", x_label="x", y_range=(5.0, 5.0), unit="")
    ElementTree.fromstring(text)
    assert "nan" not in text
    # In the middle of 12 to 216, at the left end.
    assert 'd="M44,114"' in text


def test_strip_has_one_dot_per_seed_and_the_mean_between_them():
    svg = ElementTree.fromstring(strip([0.0, 1.0], 0.5, 0.0, 1.0, "nir"))
    assert [float(dot.get("cx")) for dot in svg.iter("circle")] == [6, 154]
    assert any(path.get("d").startswith("M80.0,") for path in svg.iter("path"))


def test_interval_leaves_out_whiskers_it_does_not_know():
    known, unknown = interval(0.1, 0.0, 0.2, 0.2), interval(0.1, math.nan, math.nan, 0.2)
    assert 'class="whisker" d="M80.0,9H154.0"' in known
    assert "whisker" not in unknown
    assert "nan" not in unknown


@pytest.mark.parametrize("points", [[(0.0, 0.0), (1.0, 2.0)], [(3.0, 3.0), (3.0, 3.0)]])
def test_map_frames_each_thumbnail_by_its_class(points):
    svg = ElementTree.fromstring(thumbnail_map(points, ["data:,", "data:,"], [0, 9], [str(i) for i in range(10)], "m"))
    frames = [rect.get("class") for rect in svg.iter("rect")]
    assert frames == ["frame k0 p0", "frame k1 p1"]
