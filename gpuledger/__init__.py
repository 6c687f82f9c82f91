"""Run sweeps on GPU machines that share a file system.

In a training script, all harmless outside a worker:

    params = gpuledger.params()
    gpuledger.report(step=3, total=90, loss=0.12)
    checkpoint = gpuledger.task_dir() / "last.pt"
"""

from __future__ import annotations

from gpuledger.task import Fatal, attempt, params, report, seed, task_dir

__version__ = "0.1.0"

__all__ = ["Fatal", "attempt", "params", "report", "seed", "task_dir"]
