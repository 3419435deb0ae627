"""The tables of settings agree with the parameters that they reach, one by one."""

import inspect
import subprocess
import sys

import pytest

from otdml.benchmarks import settings
from otdml.benchmarks.fields import Rates, Table
from otdml.benchmarks.methods import SETTINGS
from otdml.data import Distort
from otdml.data.registry import DATASETS
from otdml.dml import NIR, ProxyDML, TrainingConfig
from otdml.dml.backbones import BACKBONES, LIBRARIES
from otdml.dml.dispersion import REGULARISERS
from otdml.dml.head import POOLS
from otdml.dml.losses import LOSSES
from otdml.dml.names import PART_NAMES, REGULARISER_NAMES
from otdml.dml.optim import OPTIMIZERS, SCHEDULES

# Parameters that are not a preset's to set.
NOT_SET = {"num_classes", "dim", "generator", "flow", "root", "split", "transform", "fold", "seed"}
REACHED = {
    settings.RunTraining: (TrainingConfig, NOT_SET - {"seed"}),
    settings.RunModel: (ProxyDML, NOT_SET - {"dim"}),
    settings.Augment: (Distort, NOT_SET),
    settings.NIROptions: (NIR, NOT_SET),
    **{table: (BACKBONES[name], NOT_SET) for name, table in settings.BACKBONES.items()},
    **{table: (LOSSES[name].kind, NOT_SET) for name, table in settings.LOSS_OPTIONS.items()},
    **{table: (DATASETS[name].kind, NOT_SET) for name, table in settings.DATA_OPTIONS.items()},
}


def plain(value):
    """A default as TOML would have it."""
    if isinstance(value, Table):
        return value.model_dump(exclude_none=True)
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("table", REACHED, ids=lambda table: table.__name__)
def test_a_table_has_the_parameters_of_what_it_reaches_and_their_defaults(table):
    kind, left_out = REACHED[table]
    parameters = inspect.signature(kind).parameters
    assert set(table.model_fields) == set(parameters) - left_out
    for name, field in table.model_fields.items():
        assert plain(field.default) == plain(parameters[name].default), name


def test_rates_have_the_parts_of_a_model():
    assert tuple(Rates.model_fields) == PART_NAMES


def test_a_method_has_the_settings_of_its_table():
    assert set(settings.MethodSettings.model_fields) == set(SETTINGS)


def test_names_are_those_of_what_is_there():
    assert set(settings.BACKBONES) == set(BACKBONES)
    assert set(settings.LIBRARIES) == set(LIBRARIES)
    assert set(REGULARISER_NAMES) == set(REGULARISERS)
    for key, names in (("pool", POOLS), ("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("loss", LOSSES)):
        for name in names:
            settings.RunModel.model_validate({key: name})
        with pytest.raises(ValueError, match=f"Known: {', '.join(names)}"):
            settings.RunModel.model_validate({key: "none of these"})


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_has_a_table_of_its_options(loss):
    table = settings.options_of(loss)
    assert set(table.model_fields) == set(inspect.signature(LOSSES[loss].kind).parameters) - NOT_SET
    with pytest.raises(ValueError, match="not permitted"):
        table.model_validate({"alphabet": 1})


def test_settings_are_read_without_torch():
    script = (
        "import sys; from otdml.benchmarks import preset, preset_files, results, runs; "
        "[preset(name) for name in preset_files()]; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
