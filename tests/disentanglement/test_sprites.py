"""The sprites by what they show, and the archive of dSprites."""

import numpy as np
import pytest
import torch

from otdml.disentanglement import FACTORS, SPRITES, load_dsprites, sprites


def test_sprites_move_with_their_factors():
    images, factors = sprites(200, size=32, generator=torch.Generator().manual_seed(0))
    assert images.shape == (200, 1, 32, 32)
    assert 0 <= images.min() <= images.max() == 1
    assert (factors.amax(0) < torch.tensor(list(FACTORS.values()))).all()
    mass = images.sum((1, 2, 3))
    columns = (images.sum((1, 2)) * torch.arange(32)).sum(1) / mass
    rows = (images.sum((1, 3)) * torch.arange(32)).sum(1) / mass
    for centre, position in ((columns, factors[:, 3]), (rows, factors[:, 4])):
        assert torch.corrcoef(torch.stack([centre, position.float()]))[0, 1] > 0.98
    assert torch.corrcoef(torch.stack([mass, (1 + factors[:, 1] / 5).square()]))[0, 1] > 0.9


def test_no_sprite_is_cut():
    images, _ = sprites(4000, size=64, generator=torch.Generator().manual_seed(1))
    assert images[..., 0, :].sum() == images[..., -1, :].sum() == images[..., 0].sum() == images[..., -1].sum() == 0


def test_sprites_repeat_with_their_seed():
    first, second = (sprites(8, size=16, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])


def test_dsprites_archive(tmp_path):
    images = np.zeros((6, 64, 64), dtype=np.uint8)
    images[3] = 1
    classes = np.arange(36).reshape(6, 6)
    # The published archive has pickled metadata, too.
    np.savez(tmp_path / "dsprites.npz", imgs=images, latents_classes=classes, metadata=np.array({"a": 1}))
    loaded, factors = load_dsprites(tmp_path / "dsprites.npz", 6)
    assert loaded.shape == (6, 1, 64, 64)
    bright = loaded.sum((1, 2, 3)).argmax()
    assert factors[bright].tolist() == [19, 20, 21, 22, 23]
    np.savez(tmp_path / "other.npz", imgs=images)
    with pytest.raises(ValueError, match="`path` must hold the arrays 'imgs' and 'latents_classes'"):
        load_dsprites(tmp_path / "other.npz", 1)
    with pytest.raises(ValueError, match="`n` must be at most 6, the number of images, got 7"):
        load_dsprites(tmp_path / "dsprites.npz", 7)
    with pytest.raises(FileNotFoundError):
        load_dsprites(tmp_path / "absent.npz", 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"imgs": np.full((6, 8, 8), 255, np.uint8)}, "lie in"),
        ({"imgs": np.zeros((6, 64), np.uint8)}, "hold bytes of shape"),
        ({"imgs": np.zeros((6, 8, 8))}, "hold bytes of shape"),
        ({"latents_classes": np.zeros(6, int)}, "6 classes of each"),
        ({"latents_classes": np.zeros((5, 6), int)}, "6 classes of each"),
    ],
)
def test_another_archive_is_named(tmp_path, wrong, message):
    arrays = {"imgs": np.zeros((6, 8, 8), np.uint8), "latents_classes": np.zeros((6, 6), int)} | wrong
    np.savez(tmp_path / "dsprites.npz", **arrays)
    with pytest.raises(ValueError, match=f"`path` must .*{message}"):
        load_dsprites(tmp_path / "dsprites.npz", 6)


@pytest.mark.parametrize("content", [b"", b"a text", b"PK\x03\x04", "one array"])
def test_another_file_is_named(tmp_path, content):
    path = tmp_path / "dsprites.npz"
    if isinstance(content, str):
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="`path` must be the archive of dSprites") as error:
        load_dsprites(path, 1)
    assert "pickle" not in str(error.value)


def test_the_radius_scales_areas():
    small, large = (
        sprites(50, size=64, radius=radius, generator=torch.Generator().manual_seed(0))[0].sum((1, 2, 3))
        for radius in (0.06, 0.12)
    )
    torch.testing.assert_close(large / small, torch.full((50,), 4.0), rtol=0.15, atol=0)


def test_the_set_is_what_draws_it():
    images, factors = SPRITES.draw(2, size=16, generator=torch.Generator().manual_seed(0))
    assert images.shape[1] == SPRITES.channels == 1
    assert SPRITES.counts.tolist() == list(FACTORS.values())
    assert factors.shape[1] == len(SPRITES.factors)
