"""Files are replaced whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from otdml._files import folder_lock, replacing, write_text


def test_replaces_and_leaves_nothing_beside(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "one")
    write_text(path, "zwei ü")
    assert path.read_text(encoding="utf-8") == "zwei ü"
    assert os.listdir(tmp_path) == ["file.txt"]


def write_half(path, error):
    with replacing(path) as part:
        part.write_text("half")
        raise error


def write_to_full_device(path):
    with replacing(path) as part:
        part.symlink_to("/dev/full")
        part.write_text("two")


@pytest.mark.parametrize("error", [ValueError("bad"), OSError(errno.ENOSPC, "full")])
def test_an_error_inside_leaves_the_earlier_file(tmp_path, error):
    path = tmp_path / "file.txt"
    write_text(path, "one")
    with pytest.raises(type(error)):
        write_half(path, error)
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_full_disk_is_said_with_the_file(tmp_path):
    message = "file.txt: No space left on device. What was there before is unchanged"
    with pytest.raises(OSError, match=message), replacing(tmp_path / "file.txt"):
        raise OSError(errno.ENOSPC, "full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_device_that_is_full(tmp_path):
    write_text(tmp_path / "file.txt", "one")
    with pytest.raises(OSError, match="No space left on device"):
        write_to_full_device(tmp_path / "file.txt")
    assert (tmp_path / "file.txt").read_text() == "one"


def test_an_error_of_another_file_passes_through(tmp_path):
    write_text(tmp_path / "file.txt", "one")
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "file.txt"):
        (tmp_path / "photo.jpg").read_bytes()
    assert found.value.filename == str(tmp_path / "photo.jpg")
    assert "cannot write" not in str(found.value)
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_file_that_could_not_be_moved_here_is_not_another_one(tmp_path):
    with pytest.raises(OSError, match=r"file\.txt: No space left on device"), replacing(tmp_path / "file.txt") as part:
        raise OSError(errno.ENOSPC, "full", str(tmp_path / "made.elsewhere"), None, str(part))


def test_threads_write_one_file_and_one_of_them_is_last(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    texts = [str(i) * 10_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: [write_text(tmp_path / "file.txt", text) for _ in range(20)], texts))
    assert (tmp_path / "file.txt").read_text() in texts
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_private_file_stays_private(tmp_path):
    write_text(tmp_path / "file.txt", "one")
    (tmp_path / "file.txt").chmod(0o600)
    write_text(tmp_path / "file.txt", "two")
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o600


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot write .*absent/file.txt: No such file"):
        write_text(tmp_path / "absent" / "file.txt", "one")


HOLD = """
import pathlib, sys, time
from otdml._files import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_folder_is_held_by_one_process_until_it_ends_or_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="Wait for it, or choose another folder"), folder_lock(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with folder_lock(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_what_a_kill_has_left_is_removed_by_the_next_attempt_and_what_is_being_written_is_not(tmp_path):
    path = tmp_path / "file.txt"
    script = (
        f"import os; from otdml._files import replacing\nwith replacing({str(path)!r}) as part:\n    part.touch()\n"
    )
    subprocess.run([sys.executable, "-c", script + "    os.kill(os.getpid(), 9)"], check=False)
    (left,) = os.listdir(tmp_path)
    assert left.endswith(".part")
    with replacing(path) as part:
        part.write_text("one")
        assert sorted(os.listdir(tmp_path)) == [part.name]
        write_text(tmp_path / "another.txt", "two")
        with replacing(path) as same:
            assert same == part
            assert part.exists()
            part.write_text("three")
        part.write_text("four")
    assert sorted(os.listdir(tmp_path)) == ["another.txt", "file.txt"]


def test_a_folder_is_locked_until_the_outermost_block_ends(tmp_path):
    script = "from pathlib import Path; from otdml._files import folder_lock\n"
    script += f"with folder_lock(Path({str(tmp_path)!r})): pass"

    def another():
        return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    with folder_lock(tmp_path):
        with folder_lock(tmp_path):
            assert "another process trains" in another().stderr
        assert "another process trains" in another().stderr
    assert another().returncode == 0


def test_links_are_written_through(tmp_path):
    (tmp_path / "real.txt").write_text("one")
    (tmp_path / "link.txt").symlink_to("real.txt")
    (tmp_path / "new.txt").symlink_to(tmp_path / "absent.txt")
    write_text(tmp_path / "link.txt", "two")
    write_text(tmp_path / "new.txt", "three")
    assert (tmp_path / "link.txt").is_symlink()
    assert ((tmp_path / "real.txt").read_text(), (tmp_path / "absent.txt").read_text()) == ("two", "three")


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("pipe", "link", "folder", "circle"):
        with pytest.raises(OSError, match=f"cannot write .*{name}"):
            write_text(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == ["circle", "folder", "link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_names_that_are_no_utf8_are_written_as_escapes_that_json_reads(tmp_path):
    name = os.fsdecode(b"b\xff.png")
    write_text(tmp_path / "file.json", json.dumps([name], ensure_ascii=False))
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == [name]
