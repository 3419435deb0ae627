"""Errors of the command line are there at once: what is heavy is loaded when the words are known to be good."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
sys.argv = ["otdml", *sys.argv[1:]]
from otdml.cli import main
try:
    main()
except SystemExit as ended:
    heavy = sorted({"torch", "numpy", "lightning", "sklearn", "PIL"} & set(sys.modules))
    print("ended", ended.code, *heavy)
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("benchmark", "-d", "digit"), 2),
        (("benchmark", "-m", "proxy-ancor"), 2),
        (("benchmark", "-d", "digits", "--set", "training.epoch=3"), 2),
        (("benchmark", "-d", "digits", "--set", "model.freeze_bn=no"), 2),
        (("benchmark", "-d", "digits", "--set", "model.lr.proxies=1"), 2),
        (("benchmark", "-d", "digits", "--dispersion", "koleo"), 2),
        (("benchmark", "-d", "cub"), 2),
        (("benchmark", "-d", "omniglot", "-p", "small", "--root", "gone"), 2),
        (("benchmark", "--preset", "gone.toml"), 1),
        (("benchmark", "--threads", "100000"), 2),
        (("train", "-m", "proxy-anchor"), 2),
        (("train", "-d", "digits", "--seed", "-1"), 2),
        (("evaluate", "gone.ckpt"), 1),
        (("evaluate", "gone.ckpt", "--ks", "0"), 2),
        (("embed", "gone.ckpt", "photos"), 1),
        (("search", "gone.index", "photo.jpg"), 1),
        (("serve", "gone.index"), 1),
        (("serve", "gone.index", "--port", "65536"), 2),
        (("speed", "sinkorn"), 2),
        (("speed", "--quick"), 2),
        (("doctor", "kepos"), 2),
        (("data", "check", "cubs"), 2),
    ],
)
def test_a_wrong_word_is_refused_before_anything_heavy_is_loaded(tmp_path, words, code):
    found = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.splitlines()[-1].split() == ["ended", str(code)], found.stderr
    assert "Traceback" not in found.stderr
