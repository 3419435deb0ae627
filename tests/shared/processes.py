"""Two processes for tests, connected as torchrun connects them."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

__all__ = ["in_two_processes"]


def in_two_processes(work: Callable[[int, str], None], folder: Path) -> None:
    """Call ``work(rank, folder)`` in two connected processes of one thread each.

    Args:
        work: A function of a module, which a new process can import.
        folder: Where it may leave what it found.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_connected, (work, port, str(folder)), nprocs=2)


def _connected(rank: int, work: Callable[[int, str], None], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=120))
    try:
        # What reduces gradients is released before the connection ends, and neither process leaves before the other.
        work(rank, folder)
        dist.barrier()
    finally:
        dist.destroy_process_group()
