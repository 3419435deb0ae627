"""Mistyped and damaged inputs of every command: no traceback, none taken and ignored, each named in one message.

A table of kinds, each a function that draws an input and says what the message must name; whoever finds another kind
adds it to ``KINDS``. Inputs are drawn from a number, the same on every machine.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from otdml import cli
from otdml.benchmarks import settings
from otdml.benchmarks.fields import Rates, Table
from otdml.benchmarks.methods import METHODS
from otdml.benchmarks.presets import preset_files
from otdml.dml.names import REGULARISER_NAMES

# An input: the words after `otdml`, and what the message must name.
Input = tuple[list[str], str]
RUNS = 300
MINIMAL = """
title = "t"
dataset = "digits"
compare = ["proxy-anchor", "proxy-anchor+nir"]
seeds = 2
note = "n"
[model]
dim = 8
lr = { backbone = 1e-3, proxies = 1e-2 }
freeze_bn = true
[training]
epochs = 1
ks = [1, 2]
[augment]
degrees = 5.0
[data]
rotations = true
[settings.proxy-anchor]
loss_options = { alpha = 16.0 }
loss_weight = 0.5
[settings."proxy-anchor+nir"]
nir_weight = 0.1
nir_options = { objective = "nll" }
[[published]]
method = "proxy-anchor"
metric = "recall@1"
value = 0.5
source = "nobody"
second_hand = true
"""
WRONG = {
    bool: ['"False"', "1", "yes", "[true]", "{}", "0.0"],
    int: ['"3"', "2.5", "true", "inf", "-7", "three", "[1]", "{}", str(10**30), "1e400"],
    float: ['"0.1"', "true", "nan", "-inf", "-0.5", "ten", "[0.1]", "'[]'"],
    str: ["3", "true", "[1]", "''", "1.5", "{}"],
    list: ["3", "'1,2'", "[0]", "['a']", "[1.5]", "true", "[[1]]", "[-1]"],
    dict: ["3", "[]", "'a'", "true"],
}
# Keys whose default tells nothing of their type.
OPTIONAL = {"step_epochs": int, "clip": float, "batches_per_epoch": int, "classes_per_batch": int}
OPTIONAL |= {
    "frozen_epochs": int,
    "warmup_epochs": int,
    "backbone_options": dict,
    "loss_options": dict,
    "nir_options": dict,
}


def _keys() -> list[tuple[str, type]]:
    """Every key that can be set, dotted, with the type of its value."""
    head, loss = 'settings."proxy-anchor+nir"', "settings.proxy-anchor"
    tables = {
        "model": settings.Model,
        "model.backbone_options": settings.Conv4Options,
        "training": settings.Training,
        "augment": settings.Augment,
        "data": settings.DigitsData,
        head: settings.MethodSettings,
        f"{head}.nir_options": settings.NIROptions,
        f"{loss}.loss_options": settings.LOSS_OPTIONS["proxy-anchor"],
        f"{head}.lr": Rates,
        "model.lr": Rates,
    }
    found = []
    for place, table in tables.items():
        for name, field in table.model_fields.items():
            kind = OPTIONAL.get(name, float if table is Rates else type(field.default))
            found.append((f"{place}.{name}", dict if issubclass(kind, Table) else kind))
    return found


KEYS = _keys()
# A number is a rate for all parts.
AMBIGUOUS = {"model.lr", "model.weight_decay", "training.devices"}


def mistyped(chance: random.Random, word: str) -> str:
    """``word`` with a letter left out, doubled, exchanged with the next, or replaced."""
    i = chance.randrange(len(word) - 1)
    return chance.choice(
        [
            word[:i] + word[i + 1 :],
            word[:i] + word[i] + word[i:],
            word[:i] + word[i + 1] + word[i] + word[i + 2 :],
            word[:i] + chance.choice("qxz") + word[i + 1 :],
        ]
    )


def misspelt(chance: random.Random, words: list[str]) -> str:
    """One of the words with a slip that makes it none of them."""
    while True:
        found = mistyped(chance, chance.choice(words))
        if found not in words and found.strip("-"):
            return found


def command(chance: random.Random) -> list[str]:
    return chance.choice([["benchmark", "-m", "proxy-anchor+nir"], ["train", "-d", "digits", "-m", "proxy-anchor+nir"]])


def misspelt_key_to_set(chance: random.Random, folder: Path) -> Input:
    key, _ = chance.choice(KEYS)
    place, _, name = key.rpartition(".")
    siblings = [other.rpartition(".")[2] for other, _ in KEYS if other.rpartition(".")[0] == place]
    wrong = misspelt(chance, [name, *siblings])
    return [*command(chance), "--set", f"{place}.{wrong}=1"], wrong


def misspelt_table_to_set(chance: random.Random, folder: Path) -> Input:
    wrong = misspelt(chance, ["model", "training", "data", "augment", "settings"])
    return [*command(chance), "--set", f"{wrong}.dim=1"], wrong


def wrong_value_to_set(chance: random.Random, folder: Path) -> Input:
    key, kind = chance.choice([(key, kind) for key, kind in KEYS if key not in AMBIGUOUS])
    return [*command(chance), "--set", f"{key}={chance.choice(WRONG[kind])}"], key


def setting_of_a_method(chance: random.Random, folder: Path) -> Input:
    """What belongs to a method is not taken from all, nor what belongs to a head from its loss."""
    name = chance.choice(["loss", "loss_options.alpha", "loss_weight", "nir_weight", "nir_options.cap", "dispersion"])
    place = "model" if "nir" not in name else chance.choice(["model", "settings.proxy-anchor"])
    return [*command(chance), "--set", f"{place}.{name}=1"], f"{place}.{name.partition('.')[0]}"


def no_change(chance: random.Random, folder: Path) -> Input:
    wrong = chance.choice(
        ["dim=3", "model.dim", "model.=3", "model..dim=3", "=3", "model.dim=", "model.lr={", "seeds=3", "model dim=3"]
    )
    return [*command(chance), "--set", wrong], "--set"


def overridden_change(chance: random.Random, folder: Path) -> Input:
    key = chance.choice(["model.lr.proxies=1", "model.warmup_epochs=3", "model.lr=1", "model.lr.proxies=.5"])
    return [*command(chance), "--set", key], 'settings."proxy-anchor+nir"'


def change_without_effect(chance: random.Random, folder: Path) -> Input:
    keys = ["model.step_epochs=3", "model.step_factor=.1", "training.select=recall@1", "training.val_every=2"]
    keys += ["training.workers=2", "settings.soft-triple.loss_weight=2", "settings.proxy-nca.warmup_epochs=2"]
    key = chance.choice(keys)
    return [*command(chance), "--set", key], key.partition("=")[0]


def changed_twice(chance: random.Random, folder: Path) -> Input:
    first, second = chance.choice([("model.dim=3", "model.dim=4"), ("model.lr=1", "model.lr.head=1")])
    return [*command(chance), "--set", first, "--set", second], first.partition("=")[0]


def in_file(folder: Path, text: str | bytes) -> list[str]:
    path = folder / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return ["--preset", str(path)]


def misspelt_key_in_a_file(chance: random.Random, folder: Path) -> Input:
    lines = MINIMAL.splitlines()
    places = [i for i, line in enumerate(lines) if re.match(r"\[?\[?[a-z_]{3,}", line)]
    i = chance.choice(places)
    name = re.search(r"[a-z_]{3,}", lines[i])[0]
    wrong = misspelt(chance, [name])
    lines[i] = lines[i].replace(name, wrong, 1)
    return ["benchmark", *in_file(folder, "\n".join(lines))], "mine.toml"


def wrong_value_in_a_file(chance: random.Random, folder: Path) -> Input:
    key, kind = chance.choice([(key, kind) for key, kind in KEYS if key not in AMBIGUOUS])
    place, _, name = key.rpartition(".")
    text = re.sub(rf"(?m)^{name} = .*\n", "", MINIMAL)
    line = f"{name} = {chance.choice(WRONG[kind])}\n"
    header = f"[{place}]\n"
    text = text.replace(header, header + line, 1) if header in text else f"{text}\n{header}{line}"
    return ["benchmark", *in_file(folder, text)], "mine.toml"


def wrong_head_of_a_file(chance: random.Random, folder: Path) -> Input:
    """Values of the whole preset, and of a published figure."""
    wrong = {
        "seeds": ["0", "-1", "1.5", "'2'", "true", str(10**12)],
        "compare": ["[]", "3", "'proxy-anchor'", "['proxy-ancor']", "[3]", "['proxy-anchor+koleo']"],
        "dataset": ["'digit'", "3", "['digits']"],
        "title": ["3", "''", "['t']"],
        "note": ["3", "[]"],
        "value": ["69.7", "-0.1", "'0.5'", "nan", "true"],
        "metric": ["'recal@1'", "1", "'recall@0'", "'recall@x'"],
        "second_hand": ["'no'", "0"],
        "source": ["2020", "''"],
    }
    name = chance.choice(list(wrong))
    text = re.sub(rf"(?m)^{name} = .*$", f"{name} = {chance.choice(wrong[name])}", MINIMAL)
    return ["benchmark", *in_file(folder, text)], name


def table_that_is_none(chance: random.Random, folder: Path) -> Input:
    name = chance.choice(["model", "training", "augment", "data"])
    value = chance.choice(["3", "'x'", "[]", "true", "1979-05-27"])
    text = re.sub(rf"(?ms)^\[{name}\]\n.*?(?=^\[)", "", MINIMAL)
    return ["benchmark", *in_file(folder, f"{name} = {value}\n{text}")], name


def damaged_file(chance: random.Random, folder: Path) -> Input:
    lines = MINIMAL.encode().split(b"\n")
    i = chance.choice([i for i, line in enumerate(lines) if line])
    lines[i] = chance.choice([b"\xff\xfe", b"= ", b"\x00", b'"', b"]", b"{"]) + lines[i]
    return ["benchmark", *in_file(folder, b"\n".join(lines))], "mine.toml"


def file_that_is_none(chance: random.Random, folder: Path) -> Input:
    place = chance.choice([folder, folder / "gone.toml", folder / "gone"])
    return [chance.choice(["benchmark", "train"]), "--preset", str(place)], str(place)


def wrong_extends(chance: random.Random, folder: Path) -> Input:
    value = chance.choice(["3", "[3]", "'digts'", "['digits', 'cubs']", "'gone.toml'", "{ a = 1 }", "true"])
    return ["benchmark", *in_file(folder, f"extends = {value}\n{MINIMAL}")], "gone" if "gone" in value else "extend"


def misspelt_name(chance: random.Random, folder: Path) -> Input:
    option, words = chance.choice(
        [
            ("-d", [name for name in preset_files() if "-" not in name]),
            ("-m", list(METHODS)),
        ]
    )
    wrong = misspelt(chance, words)
    return [chance.choice(["benchmark", "train"]), *(["-d", "digits"] if option == "-m" else []), option, wrong], wrong


def misspelt_protocol(chance: random.Random, folder: Path) -> Input:
    wrong = misspelt(chance, ["small", "full"])
    return ["benchmark", "-d", "omniglot", "-p", wrong], wrong


def wrong_dispersion(chance: random.Random, folder: Path) -> Input:
    name = chance.choice(REGULARISER_NAMES)
    ends = ["", ":", ":x", ":-1", ":0", ":nan", ":1@", ":1@proxie"]
    wrong = chance.choice([f"{misspelt(chance, list(REGULARISER_NAMES))}:1", *(name + end for end in ends)])
    return [chance.choice(["benchmark", "train"]), "-d", "digits", "--dispersion", wrong], "dispersion"


def misspelt_option(chance: random.Random, folder: Path) -> Input:
    options = {
        "benchmark": ["--dataset", "--protocol", "--method", "--seeds", "--epochs", "--threads", "--jobs", "--weights"],
        "train": ["--dataset", "--seed", "--epochs", "--hold-out", "--dispersion", "--out", "--preset"],
        "evaluate": ["--split", "--images", "--dataset", "--skip-corrupt", "--json"],
        "embed": ["--size", "--skip-corrupt", "--out"],
        "search": ["--count", "--checkpoint", "--html"],
        "speed": ["--quick", "--only", "--out"],
        "doctor": ["--timeout"],
    }
    name = chance.choice(list(options))
    wrong = "--" + misspelt(chance, [option.removeprefix("--") for option in options[name]])
    arguments = {"evaluate": ["x"], "embed": ["x", "y"], "search": ["x", "y"]}
    return [name, *arguments.get(name, []), wrong, "1"], wrong


def wrong_number(chance: random.Random, folder: Path) -> Input:
    words, option, values = chance.choice(
        [
            (["benchmark"], "--seeds", ["0", "-1", "1.5", "two", str(10**12)]),
            (["benchmark"], "--threads", ["0", "100000", "x", "1.5"]),
            (["benchmark"], "--jobs", ["0", "-3", "x", str(10**9)]),
            (["benchmark"], "--devices", ["0", "all", str(10**9)]),
            (["benchmark"], "--epochs", ["0", "-1", "1e3", str(10**30)]),
            (["train", "-d", "digits"], "--seed", ["-1", "x", str(2**64), "1.5"]),
            (["evaluate", "x"], "--ks", ["0", "1,,2", "1;2", "a", "-1", str(2**70), "1.5", ""]),
            (["evaluate", "x"], "--size", ["0", "-4", "x", str(10**9)]),
            (["search", "x", "y"], "--count", ["0", "-1", "x"]),
            (["doctor"], "--timeout", ["0", "x", "-5", "inf"]),
        ]
    )
    return [*words, option, chance.choice(values)], option


def contradiction(chance: random.Random, folder: Path) -> Input:
    path = in_file(folder, MINIMAL)
    return chance.choice(
        [
            (["benchmark", "-d", "digits", *path], "--preset"),
            (["benchmark", *path, "-p", "small"], "--protocol"),
            (["benchmark", "-d", "digits", "--root", str(folder)], "--root"),
            (["benchmark", "-d", "digits", "--allow-partial"], "--allow-partial"),
            (["benchmark", "-d", "digits", "--skip-corrupt"], "--skip-corrupt"),
            (["benchmark", "-d", "digits", "--epochs", "3", "--set", "training.epochs=4"], "training.epochs"),
            (["benchmark", "-d", "digits", "--weights", path[1]], "--weights"),
            (["benchmark", "-d", "digits", "--reality-check"], "dataset"),
            (["benchmark", "-d", "cub", "--weights", "none"], "--root"),
            (["benchmark", "-d", "cub", "--weights", "none", "--root", path[1]], "--root"),
            (["benchmark", "-d", "digits", "--out", path[1]], "--out"),
            (["train", "-d", "digits", "--out", path[1]], "--out"),
            (["evaluate", "x", "-p", "small"], "--protocol"),
            (["evaluate", "x", "--images", str(folder), "-d", "digits"], "--images"),
            (["evaluate", "x", "--images", str(folder), "--split", "val"], "--split"),
            (["evaluate", "x", "--images", str(folder / "gone")], "--images"),
            (["evaluate", "x", "--size", "8"], "--size"),
            (["evaluate", "x", "-d", "digits", "--root", str(folder)], "--root"),
            (["speed", "--quick"], "--quick"),
            (["speed", "--only", "n=3"], "--only"),
            (["data", "check", "digits", "--root", str(folder)], "--root"),
        ]
    )


def path_that_is_none(chance: random.Random, folder: Path) -> Input:
    gone = str(folder / misspelt(chance, ["last.ckpt", "photos", "index"]))
    return chance.choice(
        [(["evaluate", gone], gone), (["embed", gone, str(folder)], gone), (["search", gone, str(folder)], gone)]
    )


def misspelt_thing(chance: random.Random, folder: Path) -> Input:
    words, known = chance.choice(
        [
            (["speed"], ["alignment", "dispersion", "gromov", "mmd", "retrieval", "sinkhorn", "training"]),
            (["doctor"], ["torch", "keops", "faiss", "geomloss", "zuko", "lightning", "pillow"]),
            (["data", "check"], ["digits", "omniglot", "cars", "inshop"]),
            (["evaluate", "x", "--split"], ["train", "trainval", "test"]),
            (["evaluate", "x", "--dataset"], ["digits", "cars", "inshop"]),
        ]
    )
    wrong = misspelt(chance, known)
    return [*words, wrong], wrong


KINDS: list[Callable[[random.Random, Path], Input]] = [
    misspelt_key_to_set,
    misspelt_table_to_set,
    wrong_value_to_set,
    setting_of_a_method,
    no_change,
    overridden_change,
    change_without_effect,
    changed_twice,
    misspelt_key_in_a_file,
    wrong_value_in_a_file,
    wrong_head_of_a_file,
    table_that_is_none,
    damaged_file,
    file_that_is_none,
    wrong_extends,
    misspelt_name,
    misspelt_protocol,
    wrong_dispersion,
    misspelt_option,
    wrong_number,
    contradiction,
    path_that_is_none,
    misspelt_thing,
]


class Taken(BaseException):
    """What is raised where a run would begin."""


@pytest.fixture
def message(monkeypatch, tmp_path):
    """The one message of an input that is refused; any other end is an error."""

    def taken(*_, **__):
        raise Taken

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.experiments, "_check_machine", taken)
    runner = CliRunner(env={"COLUMNS": "10000", "TERM": "dumb", "NO_COLOR": "1"})

    def refused(words: list[str]) -> str:
        result = runner.invoke(cli.app, words)
        assert result.exit_code != 0, f"taken: {words}\n{result.output}"
        assert isinstance(result.exception, (SystemExit, *cli.FAILURES)), f"a traceback: {words}: {result.exception!r}"
        said = result.output if isinstance(result.exception, SystemExit) else str(result.exception)
        assert "Traceback" not in said
        return " ".join(said.split())

    return refused


@pytest.mark.parametrize("number", range(RUNS))
def test_a_wrong_input_is_refused_and_named(message, tmp_path, number):
    words, named = KINDS[number % len(KINDS)](random.Random(number), tmp_path)
    assert named in message(words), words


def test_the_file_that_others_are_made_wrong_from_is_taken(message, tmp_path):
    with pytest.raises(Taken):
        message(["benchmark", *in_file(tmp_path, MINIMAL)])
