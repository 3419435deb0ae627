"""Doctests that need an extra are collected where it is installed."""

from importlib.util import find_spec

NEEDS = {
    "otdml/dml/export.py": ("onnx", "onnxscript", "onnxruntime", "safetensors"),
    "otdml/server/application.py": ("starlette", "anyio"),
    "otdml/server/guard.py": ("starlette",),
    "otdml/server/launch.py": ("starlette",),
}
collect_ignore = [path for path, names in NEEDS.items() if not all(map(find_spec, names))]
