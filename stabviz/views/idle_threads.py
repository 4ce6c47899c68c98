"""Give the cores to the panel: idle OpenMP threads of the notebook's main thread slow a panel's worker down.

torch keeps one pool of OpenMP threads for every Python thread that ever computed. With the pool of the main
thread waiting, the two pools together have more threads than there are cores, and the OpenMP runtime then
holds every pool back: eight runs of 200 steps took a panel 5.6 s instead of 3.8 s (two cores, torch 2.13). So
after each cell, and while a cell waits for a panel, the main thread hands its pool back. It comes again by
itself with the next large operation.
"""

import ctypes
import functools
from pathlib import Path

import torch

_SOFT = 1
"""omp_pause_soft of OpenMP 5.0: free the threads, keep the settings."""


def release_idle_threads(*_) -> bool:
    """Free the calling thread's OpenMP pool; False where the runtime does not offer it: nothing is lost."""
    pause = _pause_function()
    return pause is not None and pause(_SOFT) == 0


def release_after_each_cell() -> None:
    """Have IPython, where it runs, release the main thread's pool after every cell; twice is once."""
    try:
        from IPython import get_ipython
    except ImportError:
        return
    shell = get_ipython()
    # each panel calls this: registered twice, it would run twice after each cell
    if shell is not None and release_idle_threads not in shell.events.callbacks["post_run_cell"]:
        shell.events.register("post_run_cell", release_idle_threads)


@functools.cache
def _pause_function():
    """Find the function in the runtime that torch itself has loaded."""
    folder = Path(torch.__file__).parent / "lib"
    # torch brings its own copy under lib/: the system's library of the same name would have another pool
    for pattern in ("libgomp*.so*", "libiomp5*", "libomp*"):
        for path in sorted(folder.glob(pattern)):
            try:
                return ctypes.CDLL(str(path)).omp_pause_resource_all
            except (OSError, AttributeError):
                continue
    return None
