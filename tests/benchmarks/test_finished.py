"""Finished runs in their order, and errors that name what is damaged."""

import shutil

import pytest

from otdml.benchmarks.finished import collect


def test_runs_come_in_the_order_of_losses_arms_and_seeds(finished):
    runs = collect(finished)
    assert [run.method for run in runs[::3]] == [
        "proxy-anchor",
        "proxy-anchor+nir",
        "proxy-anchor+nir-control",
        "soft-triple",
    ]
    assert [run.seed for run in runs[:3]] == [0, 1, 2]


def test_unfinished_runs_are_left_out(finished):
    (finished / "soft-triple" / "seed-1" / "metrics.json").unlink()
    assert len(collect(finished)) == 11


def test_a_copy_of_a_method_is_no_more_seeds_of_it(finished):
    """Its runs are of the seeds that are there, under another name of their folder."""
    shutil.copytree(finished / "soft-triple", finished / "soft-triple.backup")
    shutil.copytree(finished / "soft-triple" / "seed-0", finished / "soft-triple" / "seed-0.old")
    with pytest.warns(UserWarning, match=r"Passed over .*: its run belongs into .*/soft-triple/seed-") as said:
        runs = collect(finished)
    assert len(said) == 4
    assert [(run.seed, run.folder.path.parent.name) for run in runs if run.method == "soft-triple"] == [
        (0, "soft-triple"),
        (1, "soft-triple"),
        (2, "soft-triple"),
    ]


def test_a_finished_run_that_does_not_say_which_it_is_is_named_with_the_remedy(finished):
    (finished / "soft-triple" / "seed-1" / "config.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"soft-triple/seed-1/config.json is not there. Delete its folder to rep"
    ):
        collect(finished)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{}"),
        ("metrics.json", "[]"),
        ("metrics.json", "3"),
        ("metrics.json", '{"last": 3, "best": null, "best_epoch": null, "seconds": 1}'),
        ("metrics.json", '{"last": {"recall@1": "high"}, "best": null, "best_epoch": null, "seconds": 1}'),
        ("metrics.json", "[" * 100_000),
        ("metrics.json", ""),
        ("config.json", '{"run": {}}'),
        ("config.json", '{"run": []}'),
        ("config.json", "[]"),
    ],
)
def test_what_is_damaged_in_a_folder_is_named_with_the_folder(finished, name, content):
    path = finished / "soft-triple" / "seed-1" / name
    path.write_text(content)
    with pytest.raises(ValueError, match=r"soft-triple/seed-1.* damaged .* Delete"):
        collect(finished)


def test_a_damaged_curve_is_named(finished):
    path = finished / "soft-triple" / "seed-1" / "curve.csv"
    for content in (b"epoch,loss\n1,low\n", b"epoch,loss\n\xff\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"curve.csv is damaged .* Delete its folder"):
            collect(finished)[-2].folder.curve()
