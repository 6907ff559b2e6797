"""Workers in processes of their own: copies of one that has imported all that they need."""

import os
import sys
from multiprocessing import get_context

import torch

import adasteer
import runs


def processes():
    context = get_context("forkserver")
    context.set_forkserver_preload(["adasteer", "backbones.longcat"])
    return context


def start_worker(said, *flags):
    """adasteer.py with these flags, which writes what it says into the file `said`."""
    process = processes().Process(target=work, args=(said, [*map(str, flags)]), daemon=True)
    process.start()
    return process


def work(said, flags):
    file = os.open(said, os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    sys.argv = ["adasteer.py", *flags]
    runs.run_script(adasteer.main)
