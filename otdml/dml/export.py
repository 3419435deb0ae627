"""Trained models in formats of other programs: ONNX, safetensors, and folders of the Hugging Face hub."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from otdml._checks import argument_error, check_integer
from otdml._files import replacing, write_text
from otdml._training import evaluating

if TYPE_CHECKING:
    from otdml.dml.module import ProxyDML

__all__ = ["export_onnx", "export_safetensors", "load_pretrained", "save_pretrained"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Entries of a state that are no tensors, such as the position in a memory, as JSON in the header of the file.
EXTRA = "extra_state"
TOLERANCE = 1e-4


class _Embedder(nn.Module):
    """A trained module without its losses: from images to unit embeddings."""

    def __init__(self, module: "ProxyDML") -> None:
        super().__init__()
        self.backbone, self.head = module.backbone, module.head

    def forward(self, images: Tensor) -> Tensor:
        return F.normalize(self.head(self.backbone(images)).float(), dim=-1)


def export_onnx(module: "ProxyDML", path: str | Path, *, size: int, channels: int | None = None) -> float:
    """Write the network and its head as an ONNX graph, and compare its output with PyTorch's.

    The graph maps ``images``, float32 of shape (n, channels, size, size) with any n, to ``embeddings``, unit rows of
    shape (n, dim). Proxies, flow and everything else that only trains is left out. Images must come as the network saw
    them in training, e.g. in [0, 1] with ink one.

    Args:
        module: What embeds.
        path: File to write.
        size: Pixels per side.
        channels: Channels of the images; those of the first convolution if None.

    Returns:
        The largest difference between the embeddings of random images by ONNX Runtime and by PyTorch.

    Raises:
        ArithmeticError: If it is above 1e-4; an earlier file stays as it was.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is not installed.

    Example:
        >>> import tempfile
        >>> from otdml.dml import ProxyDML
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(ProxyDML(3, dim=8, seed=0), f"{folder}/model.onnx", size=28) < 1e-4
        True
    """
    size = check_integer("size", size)
    channels = _channels(module) if channels is None else check_integer("channels", channels)
    for name in ("onnxruntime", "onnx", "onnxscript"):
        _library(name)
    with replacing(path) as part:
        difference = _write_onnx(module, part, size, channels)
        if not difference <= TOLERANCE:
            raise ArithmeticError(f"the ONNX graph for {path} is off by {difference:.2g} from what PyTorch computes.")
    return difference


def _write_onnx(module: "ProxyDML", path: Path, size: int, channels: int) -> float:
    """Write the graph, and return its largest difference to PyTorch."""
    runtime = _library("onnxruntime")
    images = torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0), device="cpu")
    with evaluating(module), torch.no_grad(), _quiet():
        network = _Embedder(module).eval()
        torch.onnx.export(
            network,
            (images.to(module.device),),
            path,
            input_names=["images"],
            output_names=["embeddings"],
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            external_data=False,
            dynamo=True,
            verbose=False,
        )
        # Not the batch size that the graph was traced with.
        images = torch.cat([images, images.flip(-1)])
        expected = network(images.to(module.device)).numpy(force=True)
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"images": images.numpy()})[0] - expected).max())


def export_safetensors(module: nn.Module, path: str | Path) -> None:
    """Write the state of a module as a safetensors file, which holds numbers and no code.

    Args:
        module: Any module; of :class:`~otdml.dml.ProxyDML` everything, proxies and flow included.
        path: File to write.

    Raises:
        ModuleNotFoundError: If safetensors is not installed.
        OSError: If the file cannot be written; the earlier one is kept.

    Example:
        >>> import tempfile
        >>> from otdml.dml import ProxyDML
        >>> from safetensors.torch import load_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_safetensors(ProxyDML(3, dim=8, seed=0), f"{folder}/model.safetensors")
        ...     load_file(f"{folder}/model.safetensors")["loss.proxies"].shape
        torch.Size([3, 8])
    """
    save, failure = _library("safetensors.torch").save_file, _library("safetensors").SafetensorError
    state = module.state_dict()
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items() if isinstance(value, Tensor)}
    # safetensors refuses tensors that share memory.
    tensors = {name: value.clone() for name, value in tensors.items()}
    others = {name: value for name, value in state.items() if name not in tensors}
    about = {"format": "pt", EXTRA: json.dumps(others)} if others else {"format": "pt"}
    with replacing(path) as part:
        try:
            save(tensors, str(part), metadata=about)
        except failure as error:
            # Of a full disk; the exception of the library is no OSError.
            raise OSError(str(error)) from error


def save_pretrained(module: "ProxyDML", folder: str | Path) -> None:
    """Write what :meth:`~otdml.dml.ProxyDML.save_pretrained` does.

    Raises:
        ValueError: The folder holds a ``config.json`` of something else, as that of a run, which would be lost.
    """
    folder = Path(folder)
    _check_free(folder)
    folder.mkdir(parents=True, exist_ok=True)
    export_safetensors(module, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(dict(module.hparams), indent=2, sort_keys=True) + "\n")


def _check_free(folder: Path) -> None:
    """Raise where a folder has a configuration that is not one of a model."""
    path = folder / CONFIG
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except (ValueError, RecursionError):
        there = None
    if not (isinstance(there, dict) and "num_classes" in there):
        raise argument_error(
            "folder", "hold no other configuration", f"{path}, which is none of a model", "Name another."
        )


def load_pretrained(name: str | Path, revision: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hyper-parameters and state of a folder, or of a repository of the hub.

    Raises:
        FileNotFoundError: If there is no such folder, and the name is none of a repository.
        ValueError: If a file of it is damaged; the message names it.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _from_hub(str(name), revision)
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}).") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / CONFIG} is damaged: it holds no settings.")
    safetensors = _library("safetensors")
    try:
        with safetensors.safe_open(str(folder / WEIGHTS), framework="pt") as file:
            state: dict[str, Any] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            others: Mapping[str, Any] = json.loads((file.metadata() or {}).get(EXTRA, "{}"))
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged ({error}).") from error
    return settings, {**state, **others}


def _from_hub(name: str, revision: str | None) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise FileNotFoundError(f"there is no folder {name}, and a repository of the hub is called OWNER/NAME.")
    return Path(
        _library("huggingface_hub").snapshot_download(name, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
    )


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = name.partition(".")[0]
        raise ModuleNotFoundError(f"this needs {missing}: pip install 'otdml[export]'", name=missing) from error


def _channels(module: "ProxyDML") -> int:
    first = next((weight for weight in module.backbone.parameters() if weight.ndim == 4), None)
    if first is None:
        raise argument_error("channels", "be given for a backbone without convolutions", None)
    return first.shape[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on libraries that are not there, and on names that it calls itself."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
            yield
    finally:
        logger.setLevel(level)
