"""Files of weights that are damaged, or made to harm."""

import os
import zipfile

import pytest
import torch

from otdml.dml.checkpoint import checkpoint, read_tensors


class Harm:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_what_torch_wrote_is_read(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(2)}}, tmp_path / "a.ckpt")
    assert torch.equal(checkpoint(tmp_path / "a.ckpt")["state_dict"]["w"], torch.ones(2))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_named(share, tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"w": torch.ones(2000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"a\.ckpt (is empty|cannot be read)"):
        checkpoint(path)


def test_other_files_are_named(tmp_path):
    (tmp_path / "page.html").write_text("<html>")
    torch.save([1], tmp_path / "list.pth")
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("page.html", "cannot be read"), ("list.pth", "is no checkpoint"), ("pipe", "is no regular")):
        with pytest.raises(ValueError, match=f"{name} {said}") as error:
            checkpoint(tmp_path / name)
        assert "weights_only" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="absent"):
        read_tensors(tmp_path / "absent")


def test_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Harm()}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt cannot be read: .* \(it holds \S*mkdir, which is code\)") as error:
        checkpoint(tmp_path / "a.ckpt")
    # Torch's advice to run it is not passed on.
    assert "weights_only" not in str(error.value)
    assert not (tmp_path / "harmed").exists()


def test_what_would_burst_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2**20)}}, tmp_path / "a.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "a.ckpt") as whole,
        zipfile.ZipFile(tmp_path / "b.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match=r"b\.ckpt has [\d,]+ bytes and would unpack to 4,19"):
        read_tensors(tmp_path / "b.ckpt")
