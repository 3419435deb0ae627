"""Several processes that want the same maps at the same time; run by test_maps.py.

Called as ``maps_run.py FOLDER COUNT KILLED``: the first process to begin with crop KILLED is killed there. Prints the
crops in the order in which processes began with them, and on a second line a sum of the maps that each process read.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

import otdml.dml.maps as maps
from otdml.data import Digits, Distort
from otdml.dml import ProxyDML


def module() -> ProxyDML:
    return ProxyDML(3, backbone_options={"widths": (4, 8)}, dim=8, frozen="layers.3", seed=0)


def note(file: Path, line: str) -> None:
    with file.open("a") as log:
        log.write(line + "\n")


def keep(folder: Path, killed: int) -> None:
    torch.set_num_threads(1)
    write = maps._write

    def noted(file, batches, *rest):
        def slow():
            for number, batch in enumerate(batches):
                if number == 1 and int(file.stem) == killed and not (folder / "killed").exists():
                    (folder / "killed").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                yield batch
            time.sleep(0.3)

        note(folder / "began", file.stem)
        write(file, slow(), *rest)

    maps._write = noted
    kept = maps.keep_maps(module(), Digits(), folder=folder / "maps", crops=2, augment=Distort())
    note(folder / "read", str(float(sum(crop.astype("float64").sum() for crop in kept.crops))))


def main() -> None:
    folder, count, killed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    for _ in range(count):
        if not os.fork():
            keep(folder, killed)
            os._exit(0)
    for _ in range(count):
        # Whichever ends first: one that is not waited for counts as running.
        os.wait()
    for name in ("began", "read"):
        print((folder / name).read_text().replace("\n", " "))


if __name__ == "__main__":
    main()
