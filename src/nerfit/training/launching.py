"""``--devices N``: starts the processes of a training on this machine, as torchrun does."""

import os
import uuid
from collections.abc import Callable

import torch
from torch.distributed import is_available

from nerfit.errors import ConfigError, RunError
from nerfit.training.devices import pick_device

RESTARTS = 3
"""Number of times that all processes are restarted after one was lost."""


def under_torchrun() -> bool:
    """Whether this process is one of several that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(entry: Callable[[list[str]], int], argv: list[str], count: int, device: str | None) -> int:
    """Run ``entry(argv)`` in ``count`` processes, which share the machine's threads or have a GPU each; returns the largest exit code.

    If one is lost, all are restarted and go on from the latest checkpoint.
    """
    if not is_available():
        raise ConfigError("this PyTorch was built without torch.distributed, which --devices needs.")
    gpus = torch.cuda.device_count()
    on_gpu = gpus > 0 and (pick_device("auto").type == "cuda" if device in (None, "auto") else device.startswith("cuda"))
    if on_gpu and count > gpus:
        raise ConfigError(f"--devices {count} is more than this machine's {gpus} GPUs: take fewer, or --device cpu.")
    if not on_gpu:
        os.environ["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else new processes may find where those before them listened, and wait there
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=RESTARTS,
        monitor_interval=0.5,
    )
    try:
        return max(elastic_launch(config, entry)(argv).values())
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RunError(
            f"process {rank} of {count} ended with code {failure.exitcode}, also after {RESTARTS} restarts; its messages are above."
        ) from error
