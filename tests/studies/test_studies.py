"""Studies whose cells are arithmetic: what is kept, what goes on after a stop, and what the report says."""

import dataclasses
import json
import math
import re

import pytest
from rich.console import Console

from otdml import studies
from otdml.benchmarks.results import figure, half_width
from otdml.studies import Arm, Reading, Score, Study
from otdml.studies.cells import cells, finished, run_cells
from otdml.studies.display import show_study
from otdml.studies.figure import draw
from otdml.studies.finished import Finished
from otdml.studies.report import load, report, restore, save


class Stopped(Exception):
    pass


@pytest.fixture
def calls():
    return []


@pytest.fixture
def study(calls):
    """An arm's score is its level plus a term of the seed, and plus its wobble in even seeds."""

    def run(settings, seed, data):
        calls.append((settings["level"], settings["wobble"], seed))
        if settings.get("stops") == seed:
            raise Stopped
        yield Reading(1, 2, {})
        yield Reading(1, 2, {"answer": 0.0, "other": 1.0})
        yield Reading(2, 2, {"answer": settings["level"] + seed + settings["wobble"] * (seed % 2), "other": 2.0})

    arms = (
        Arm("control", {"level": 1.0, "wobble": 0.0}),
        Arm("better", {"level": 1.5, "wobble": 0.1}, ("control",)),
        Arm("unclear", {"level": 1.0, "wobble": 0.5}, ("control",)),
        Arm("worse", {"level": 0.0, "wobble": 0.1}, ("control",)),
    )
    scores = (Score("answer", "answer"), Score("other", "other", 0))
    return Study("toy", "Is it so?", "Adding.", arms, (0, 1, 2), scores, run)


def done(study, folder, **chosen):
    wanted = cells(study, folder, **chosen)
    list(run_cells(study, wanted))
    return report(study, finished(cells(study, folder)))


def test_means_and_differences(study, tmp_path):
    found = done(study, tmp_path)
    assert found.complete
    assert found.mean("control", "answer").mean == 2.0
    better, unclear, worse = found.differences()
    assert (better.verdict, unclear.verdict, worse.verdict) == ("higher", "not shown", "lower")
    values = figure([0.5, 0.6, 0.5])
    assert better.mean == pytest.approx(values.mean)
    assert better.high - better.low == pytest.approx(2 * half_width(values))
    assert better.sentence() == (
        f"better: answer is higher than with control (+0.533, 95% interval {better.low:+.3f} to {better.high:+.3f}, "
        "3 seeds)."
    )
    assert unclear.sentence().startswith("unclear: no difference in answer to control is shown (+0.167, ")


def test_a_finding_is_one_sentence_and_says_how_much_has_been_run(study, tmp_path):
    assert report(study, []).finding() == "Nothing can be said yet (running: 0 of 12 cells)."
    one = done(study, tmp_path, seeds=(0,))
    best = "One seed shows nothing; answer is highest with better (1.500) (running: 4 of 12 cells)."
    assert one.finding() == best
    less = dataclasses.replace(one, scores=(dataclasses.replace(study.scores[0], better=-1),))
    assert less.finding() == best.replace("highest with better (1.500)", "lowest with worse (0.000)")
    better, unclear, worse = (one.figures for one in done(study, tmp_path).differences())
    assert re.fullmatch(r"\+0\.533, \+0\.\d{3} to \+0\.\d{3}", better)
    found = report(study, finished(cells(study, tmp_path)))
    assert found.finding() == (
        f"With 3 seeds, answer is higher with better ({better}) than with control; lower with worse ({worse}) than "
        f"with control; not shown to differ from control with unclear ({unclear})."
    )
    fewer = dataclasses.replace(found, runs=tuple(r for r in found.runs if (r.arm, r.seed) != ("worse", 2)))
    assert fewer.finding().startswith(f"Answer is higher with better ({better}, 3 seeds) than with control; ")
    assert ", 2 seeds)" in fewer.finding()
    assert found.standing == "all 12 cells have been run"


def test_many_arms_that_are_not_shown_to_differ_have_one_range(study, tmp_path):
    same = [Arm(f"same {i}", {"level": 1.0, "wobble": 0.1 * i}, ("control",)) for i in (1, 2, 3)]
    found = done(dataclasses.replace(study, arms=(study.arms[0], *same)), tmp_path)
    low, high = ([getattr(one, end) for one in found.differences()] for end in ("low", "high"))
    assert found.finding() == (
        "With 3 seeds, answer is not shown to differ from control with same 1, same 2, same 3 (all intervals within "
        f"{min(low):+.3f} to {max(high):+.3f})."
    )


def test_an_arm_can_be_compared_with_several(study, tmp_path):
    arms = (*study.arms[:2], Arm("both", {"level": 2.0, "wobble": 0.0}, ("control", "better")))
    found = done(Study("two", "?", "", arms, study.seeds, study.scores, study.run), tmp_path)
    assert [(one.arm, one.against) for one in found.differences()] == [
        ("better", "control"), ("both", "control"), ("both", "better")
    ]  # fmt: skip
    assert [one.mean for one in found.differences(study.scores[1])] == [0, 0, 0]


def test_what_is_finished_is_not_repeated(study, calls, tmp_path):
    done(study, tmp_path, seeds=(0,))
    assert len(calls) == 4
    found = done(study, tmp_path)
    assert len(calls) == len(set(calls)) == 12
    assert found.complete


def test_a_stop_loses_the_cell_it_was_in_and_no_other(study, calls, tmp_path):
    study.arms[1].settings["stops"] = 1
    with pytest.raises(Stopped):
        done(study, tmp_path)
    assert len(finished(cells(study, tmp_path))) == 5
    assert not list(tmp_path.glob("better/seed-1/*.json"))
    del study.arms[1].settings["stops"]
    # The cell before the stop was kept with the setting that is gone now.
    (tmp_path / "better" / "seed-0" / "result.json").unlink()
    assert done(study, tmp_path).complete
    assert calls.count((1.0, 0.0, 0)) == 1


def test_a_cell_keeps_its_curve_its_settings_and_its_time(study, tmp_path):
    found = done(study, tmp_path, arms=("control",), seeds=(2,))
    (run,) = found.runs
    assert run.curve == [{"step": 1, "answer": 0.0, "other": 1.0}, {"step": 2, "answer": 3.0, "other": 2.0}]
    assert run.seconds >= run.processor_seconds > 0 or run.seconds > 0
    assert found.hours == run.seconds / 3600
    assert not found.complete
    content = json.loads((tmp_path / "control" / "seed-2" / "result.json").read_text())
    assert content["settings"] == {"level": 1.0, "wobble": 0.0}
    assert {"torch", "code", "processor"} <= content["environment"].keys()


def test_cells_of_other_settings_are_refused_before_anything_is_run(study, calls, tmp_path):
    done(study, tmp_path, arms=("worse",), seeds=(2,))
    study.arms[3].settings["level"] = 0.25
    calls.clear()
    with pytest.raises(ValueError, match=r"of other settings \(level: 0.0 there, 0.25 here\)"):
        done(study, tmp_path)
    assert not calls


def test_cells_of_other_data_are_refused_before_anything_is_run(study, calls, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two):
        path.write_text(path.name)
    study = dataclasses.replace(study, needs="a file", data_hash=lambda path: path.read_text())
    of_one, of_two = (cells(study, tmp_path / "runs", seeds=(seed,)) for seed in (0, 1))
    list(run_cells(study, of_one, one))
    calls.clear()
    with pytest.raises(ValueError, match=r"result\.json is of another data set than"):
        list(run_cells(study, of_one, two))
    assert not calls
    # Cells of two data sets that stand in one folder are not shown as one study.
    list(run_cells(study, of_two, two))
    assert [found.data for found in finished(of_two)] == ["two"] * 4
    with pytest.raises(ValueError, match=r"seed-1.result\.json is of another data set than"):
        finished([*of_one, *of_two])
    # A report keeps it, and so do cells that are taken from one.
    save(tmp_path / "toy.json", report(study, finished(of_one)))
    restore(tmp_path / "toy.json", study, cells(study, tmp_path / "new"))
    assert {found.data for found in finished(cells(study, tmp_path / "new"))} == {"one"}


def test_a_cell_that_does_not_say_its_data_is_taken(study, calls, tmp_path):
    done(study, tmp_path, seeds=(0,))
    calls.clear()
    later = dataclasses.replace(study, data_hash=lambda path: "some")
    list(run_cells(later, cells(later, tmp_path)))
    assert len(calls) == 8
    assert [found.data for found in finished(cells(later, tmp_path))] == [None] * 4 + ["some"] * 8


CELL = {
    "arm": "control", "seed": 0, "scores": {"answer": 1.0, "other": 2.0}, "curve": [{"step": 1, "answer": 1.0}],
    "seconds": 1.0, "processor_seconds": 1.0, "environment": {}, "settings": {"level": 1.0, "wobble": 0.0},
}  # fmt: skip


WRONG = {
    "settings": ([], None), "scores": ({}, None, {"answer": "1"}), "seconds": ("1",), "curve": (None, [3]),
    "environment": (1,), "seed": ("0", True), "arm": (3,), "data": (3,),
}  # fmt: skip
DAMAGED = [
    *(b"{", b"\xff\xfe", b"[]"),
    *(json.dumps(CELL | {key: value}).encode() for key, values in WRONG.items() for value in values),
    *(json.dumps({name: value for name, value in CELL.items() if name != key}).encode() for key in CELL),
]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        *((content, "is damaged") for content in DAMAGED),
        (json.dumps(CELL | {"seed": 7}).encode(), "is of control, seed 7"),
        (json.dumps(CELL | {"arm": "worse"}).encode(), "is of worse, seed 0"),
        (json.dumps(CELL | {"scores": {"answer": 1.0}}).encode(), "lacks other"),
    ],
)
def test_a_damaged_cell_is_named(study, tmp_path, content, message):
    path = tmp_path / "control" / "seed-0" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"result.json {message}.* Delete it to repeat that cell"):
        finished(cells(study, tmp_path))
    path.write_text(json.dumps(CELL))
    assert finished(cells(study, tmp_path))[0].scores == CELL["scores"]


def test_a_folder_in_place_of_a_cell_is_named(study, tmp_path):
    (tmp_path / "control" / "seed-0" / "result.json").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        finished(cells(study, tmp_path))


def of(study, values):
    """The report of cells with these answers, by arm and seed."""
    runs = [
        Finished(arm, seed, {"answer": value, "other": 0.0}, [{"step": 1, "answer": value}], 1.0, 1.0, {})
        for (arm, seed), value in values.items()
    ]
    return report(study, runs)


def test_what_is_no_number_is_told_and_kept(study, tmp_path):
    values = {("control", seed): 1.0 for seed in range(3)} | {("better", seed): 2.0 + 0.1 * seed for seed in range(3)}
    found = of(study, values | {("worse", 0): 1.0, ("worse", 1): math.nan, ("worse", 2): 0.5})
    assert [one.verdict for one in found.differences()] == ["higher", "not a number"]
    assert found.finding().endswith("than with control; not a number with some seed of worse (running: 9 of 12 cells).")
    assert "worse: answer is not a number with some seed" in found.differences()[1].sentence()
    save(tmp_path / "toy.json", found)
    again = load(tmp_path / "toy.json")
    assert math.isnan(again.of("worse")[1].scores["answer"])
    assert again.finding() == found.finding()
    alone = of(study, {("control", 0): math.nan, ("better", 0): 2.0})
    assert alone.finding().startswith("One seed shows nothing; answer is highest with better (2.000)")


def test_the_best_arm_is_best_on_the_seeds_that_all_have(study):
    found = of(study, {("control", 0): 1.0, ("control", 1): 5.0, ("control", 2): 9.0, ("better", 0): 2.0})
    assert found.finding().startswith("One seed shows nothing; answer is highest with better (2.000)")
    apart = of(study, {("control", 1): 5.0, ("better", 0): 2.0, ("worse", 1): 3.0})
    assert apart.finding().startswith("One seed shows nothing (running")


def test_a_finding_leaves_no_comparison_out(study):
    values = {(arm, seed): 1.0 + seed for arm in ("control", "unclear") for seed in range(3)}
    found = of(study, values | {("better", 0): 3.0, ("worse", 0): 0.0, ("worse", 1): 5.0})
    told = found.finding()
    assert "unclear (+0.000, +0.000 to +0.000, 3 seeds)" in told
    assert "worse (+1.000, " in told
    assert "one seed alone of better (running" in told


def test_no_bound_but_zero_is_written_as_zero(study):
    values = {("control", seed): 0.0 for seed in range(3)}
    width = 2.4841 * 1e-3  # Half the interval of -1, 0 and 1 thousandths.
    shift = width + 1e-5
    found = of(study, values | {("worse", seed): (seed - 1) * 1e-3 - shift for seed in range(3)})
    (worse,) = found.differences()
    assert worse.verdict == "lower"
    assert re.fullmatch(r"-0\.00249, -0\.0049\d to -0\.00001", worse.figures)


def test_a_report_that_cannot_be_is_refused_and_nothing_is_kept(study, tmp_path):
    save(tmp_path / "toy.json", of(study, {("control", 0): 1.0, ("better", 0): 2.0}))
    good = json.loads((tmp_path / "toy.json").read_text())
    for change, message in (
        ({"runs": [good["runs"][0] | {"arm": "x"}]}, "it has a cell of x"),
        ({"runs": good["runs"] + good["runs"][:1]}, "it has a cell twice"),
        ({"runs": [good["runs"][0] | {"scores": {}}]}, "is no report"),
        ({"runs": [good["runs"][0] | {"seed": [1]}]}, "is no report"),
        ({"arms": [one | {"settings": None} for one in good["arms"]]}, "is no report"),
        ({"runs": [good["runs"][0] | {"scores": {"answer": 1.0}}]}, "lacks other of control, seed 0"),
    ):
        (tmp_path / "bad.json").write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            restore(tmp_path / "bad.json", study, cells(study, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_cells_are_of_known_seeds_and_once_each(study, tmp_path):
    assert len(cells(study, tmp_path, arms=("worse", "worse"), seeds=(1, 1))) == 1
    with pytest.raises(ValueError, match=r"unknown seed of toy '9'\. Known: 0, 1, 2"):
        cells(study, tmp_path, seeds=(9,))


def test_a_cell_that_another_command_runs_is_left_to_it(study, calls, tmp_path):
    import subprocess
    import sys

    folder = tmp_path / "control" / "seed-0"
    folder.mkdir(parents=True)
    script = (
        "import sys, pathlib; from otdml._files import folder_lock\n"
        "with folder_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        found = done(study, tmp_path, seeds=(0,))
        other.stdin.close()
    assert [run.arm for run in found.runs] == ["better", "unclear", "worse"]
    assert not found.of("control")


def test_one_seed_shows_nothing(study, tmp_path):
    (better, *_) = done(study, tmp_path, seeds=(1,)).differences()
    assert math.isnan(better.low)
    assert better.sentence() == "better: answer +0.600 against control, one seed, which shows nothing."


def test_differences_are_of_common_seeds(study, tmp_path):
    done(study, tmp_path, arms=("control",), seeds=(0, 1))
    found = done(study, tmp_path, arms=("better",), seeds=(1, 2))
    (better,) = found.differences()
    assert (better.n, better.mean) == (1, pytest.approx(0.6))


def test_a_report_comes_back_from_its_file(study, tmp_path):
    found = done(study, tmp_path)
    save(tmp_path / "new" / "toy.json", found)
    assert load(tmp_path / "new" / "toy.json") == found
    content = json.loads((tmp_path / "new" / "toy.json").read_text())
    row = next(row for row in content["differences"] if row["arm"] == "better" and row["score"] == "answer")
    assert row["mean"] == pytest.approx(1.6 / 3)
    assert content["means"][0] == {"arm": "control", "score": "answer", "mean": 2.0, "std": 1.0, "n": 3}


def test_a_study_goes_on_from_a_report(study, calls, tmp_path):
    found = done(study, tmp_path / "old", seeds=(0, 1))
    save(tmp_path / "toy.json", found)
    done(study, tmp_path / "new", arms=("worse",), seeds=(2,))
    calls.clear()
    restore(tmp_path / "toy.json", study, cells(study, tmp_path / "new"))
    taken = report(study, finished(cells(study, tmp_path / "new")))
    assert [run for run in taken.runs if run.seed < 2] == list(found.runs)
    assert done(study, tmp_path / "new").complete
    assert {seed for *_, seed in calls} == {2}
    assert len(calls) == 3


def test_a_report_does_not_replace_what_is_finished(study, tmp_path):
    save(tmp_path / "toy.json", done(study, tmp_path / "old", seeds=(0,)))
    later = done(study, tmp_path / "new", seeds=(0,))
    restore(tmp_path / "toy.json", study, cells(study, tmp_path / "new"))
    assert finished(cells(study, tmp_path / "new", seeds=(0,))) == list(later.runs)


def test_a_report_of_something_else_is_refused_and_nothing_is_kept(study, tmp_path):
    wanted = cells(study, tmp_path / "new")
    path = tmp_path / "toy.json"
    save(path, done(study, tmp_path / "old", seeds=(0,)))
    with pytest.raises(ValueError, match="is a report of toy, not of other"):
        restore(path, dataclasses.replace(study, name="other"), wanted)
    study.arms[3].settings["level"] = 0.25
    with pytest.raises(ValueError, match=r"other settings \(worse: level: 0.0 there, 0.25 here\)"):
        restore(path, study, wanted)
    for content in ("{", "[]", "{}", json.dumps({"name": "toy"})):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"toy.json is no report of a study .* `otdml study NAME --json FILE`"):
            restore(path, study, wanted)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_figure_is_cut_off_however_narrow_the_terminal(study, tmp_path, width):
    found = done(study, tmp_path, arms=("control", "better"))
    console = Console(width=width, record=True, force_terminal=False, color_system=None)
    show_study(console, found)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    half = half_width(found.mean("better", "answer"))
    assert all(one in text for one in ("2.000 ± 2.484", f"2.533 ± {half:.3f}", "2.000 ± 0.000", "3 of 3"))
    assert "Not run yet: unclear, worse." in text
    assert "…" not in text


def test_nothing_has_been_run_yet(study, tmp_path):
    console = Console(width=80, record=True, force_terminal=False, color_system=None)
    show_study(console, report(study, []))
    assert console.export_text().splitlines()[2:] == [
        "Not run yet: control, better, unclear, worse.",
        "0 cells: 0.00 hours, 0.00 hours of a processor.",
    ]


def test_no_scores_is_an_error(study, tmp_path):
    silent = Study("silent", "?", "", study.arms, (0,), study.scores, lambda *_: iter([Reading(1, 1, {})]))
    with pytest.raises(ValueError, match="yielded no scores for control, seed 0"):
        list(run_cells(silent, cells(silent, tmp_path)))


def test_arms_have_different_names_and_controls_that_exist(study):
    with pytest.raises(ValueError, match="`arms` must have different names, not in spaces and capitals alone"):
        Study("toy", "?", "", (study.arms[0], study.arms[0]), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="`arms` must have names that folders can have"):
        Study("toy", "?", "", (Arm("a/b", {}),), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="`arms` must have different names"):
        Study("toy", "?", "", (Arm("a b", {}), Arm("A-b", {})), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="`arms` must have names that folders can have"):
        Study("toy", "?", "", (Arm("..", {}),), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="`seeds` must be different ones"):
        Study("toy", "?", "", study.arms, (0, 0), study.scores, study.run)
    with pytest.raises(ValueError, match="`arms` must be one or more"):
        Study("toy", "?", "", (), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="unknown control arm 'a'"):
        Study("toy", "?", "", (study.arms[0], Arm("a", {}, ("a",))), (0,), study.scores, study.run)
    with pytest.raises(ValueError, match="controll"):
        Study("toy", "?", "", (study.arms[0], Arm("a", {}, ("controll",))), (0,), study.scores, study.run)


def test_the_figure_has_a_line_and_dots_for_every_arm(study, tmp_path):
    pytest.importorskip("matplotlib")
    found = done(study, tmp_path)
    draw(found, tmp_path / "toy.svg")
    text = (tmp_path / "toy.svg").read_text()
    assert text.startswith("<?xml")
    # Matplotlib 3.9 calls an area PolyCollection, and later ones FillBetweenPolyCollection.
    assert len(re.findall('id="(FillBetween)?PolyCollection', text)) == 4


def drawn(found, tmp_path, monkeypatch):
    """The figure, instead of its file."""
    Figure = pytest.importorskip("matplotlib.figure").Figure
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw(found, tmp_path / "toy.svg")
    return figures.pop()


def test_ranges_are_drawn_where_they_can_be_told_apart(study, tmp_path, monkeypatch):
    twice = [dataclasses.replace(arm, name=f"{arm.name} again", against=()) for arm in study.arms]
    crowded = dataclasses.replace(study, arms=(*study.arms, *twice))
    curves, ends = drawn(done(crowded, tmp_path), tmp_path, monkeypatch).axes
    assert len(curves.lines) == 8
    assert not curves.collections
    assert [label.get_text() for label in ends.get_yticklabels()][:2] == ["control", "better"]


def test_runs_that_are_read_once_have_no_curves(study, tmp_path, monkeypatch):
    found = done(study, tmp_path)
    once = tuple(dataclasses.replace(run, curve=run.curve[-1:]) for run in found.runs)
    (ends,) = drawn(dataclasses.replace(found, runs=once), tmp_path, monkeypatch).axes
    assert [line.get_xdata()[0] for line in ends.lines[1::2]] == [
        found.mean(arm.name, "answer").mean for arm in found.arms
    ]


def test_the_figure_holds_its_labels(study, tmp_path, monkeypatch):
    long = [dataclasses.replace(score, title="linear probe of the class, unseen domain") for score in study.scores]
    found = drawn(done(dataclasses.replace(study, scores=tuple(long)), tmp_path), tmp_path, monkeypatch)
    found.draw_without_rendering()
    left, low, right, high = found.bbox.extents
    left_axes, right_axes = found.axes
    for label in (left_axes.xaxis.label, left_axes.yaxis.label, right_axes.xaxis.label):
        x0, y0, x1, y1 = label.get_window_extent().extents
        assert left <= x0 < x1 <= right
        assert low <= y0 < y1 <= high


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_declared_whole(name):
    study = studies.named(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.needs is None or study.data_hash is not None
    # What an arm is compared with differs from it.
    assert len({json.dumps(arm.settings, sort_keys=True) for arm in study.arms}) == len(study.arms)


def test_data_is_asked_for_where_it_is_needed(study, tmp_path):
    assert study.data(None) is None
    with pytest.raises(ValueError, match="toy draws its own data"):
        study.data(tmp_path)
    needy = studies.named("dsprites-base")
    with pytest.raises(ValueError, match="dsprites-base needs --data PATH: the archive dsprites"):
        needy.data(None)
    with pytest.raises(FileNotFoundError, match="there is nothing at"):
        needy.data(tmp_path / "absent.npz")
    assert needy.data(tmp_path) == tmp_path
