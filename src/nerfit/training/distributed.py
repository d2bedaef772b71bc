"""One training on several devices: the processes that torchrun started share each step's batch and sum their gradients.

A batch is a function of seed and step alone. Rank r of N takes its rays r, r+N, r+2N, … with the random numbers that they have in the
whole batch (`Part`), so N devices do what one does, up to the rounding of sums. The backward pass exchanges nothing. After it come three
exchanges, and then every process takes the same step and the same decisions:

1. `all_gather`: losses, counts, clocks and signals, a few numbers each;
2. `all_reduce`: all dense gradients as one vector, already divided by the rays of the whole batch;
3. in `all_reduce` too: the factors of hash tables' gradients, which sparse Adam sums where it uses them. A position and 4 numbers a level
   for each visible sample are a few megabytes; the table has tens.

DistributedDataParallel does only the second. It needs dense gradients, which tables do not have; one forward call through a wrapper, but
steps render several chunks after the cameras' graph is built; and a list of the parameters that a step leaves out (cameras that do not
move, a view without rays).

With one process the functions here do nothing, or their work without an exchange.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nerfit.errors import ConfigError, NerfitError, RunError
from nerfit.kernels.factored import add_factored, as_row
from nerfit.kernels.layouts import FactoredGradient
from nerfit.sampling.share import WHOLE, Share

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds ($NERFIT_PATIENCE) without an answer in the middle of a step after which a process counts as lost."""
_LONG = timedelta(days=1)
"""Time limit where one process may work for long: reading a scene, evaluation, rendering."""
_waits: Any = None
sent = 0
"""Bytes that this process has sent for gradients, by the ring algorithms that Gloo and NCCL use."""


def share() -> Share:
    """This process among those of the training."""
    if not (dist.is_available() and dist.is_initialized()):
        return WHOLE
    return Share(dist.get_rank(), dist.get_world_size())


def is_main() -> bool:
    """Whether this is the main process, which writes, logs and prints."""
    return share().rank == 0


_JOB = "torchrun-id.txt"


def sign(folder: Path) -> None:
    """Write the id of torchrun's job into a run folder."""
    if _job():
        (folder / _JOB).write_text(_job(), "utf-8")


def goes_on(folder: Path) -> bool:
    """Whether this job of torchrun began the run in ``folder``, and restarted the processes because one was lost or joined."""
    if not (folder / "config.yaml").is_file():
        return False
    begun_by_it = _job() and (folder / _JOB).is_file() and (folder / _JOB).read_text("utf-8") == _job()
    return bool(begun_by_it) or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def _job() -> str:
    """The id of torchrun's job; empty if it has none of its own."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").removeprefix("none")


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the other processes that torchrun started, if there are any; all but the main process print nothing from then on."""
    global _waits
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    on_gpu = torch.cuda.is_available() and dist.is_nccl_available()
    if on_gpu and _local() < torch.cuda.device_count():
        torch.cuda.set_device(_local())
    patience = timedelta(seconds=float(os.environ.get("NERFIT_PATIENCE", PATIENCE)))
    with _connection():
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=patience)
        _waits = dist.new_group(backend="gloo", timeout=_LONG)
    try:
        with contextlib.ExitStack() as silence:
            if not is_main():
                nowhere = silence.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
                silence.enter_context(contextlib.redirect_stdout(nowhere))
                silence.enter_context(contextlib.redirect_stderr(nowhere))
            yield
    finally:
        dist.destroy_process_group()


def _local() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def own_device(device: torch.device, alike: bool = False) -> torch.device:
    """The device; ConfigError if this machine has too few of its kind for its processes.

    With ``alike``, which all processes pass, also if one of them has a device of another kind.
    """
    kinds = all_gather_object(device.type) if alike else [device.type]
    if len(set(kinds)) > 1:
        raise ConfigError(f"the processes would compute on different devices ({', '.join(kinds)}): give one with --device cuda or cpu.")
    if share().world_size > 1 and device.type == "cuda" and (device.index is not None or _local() >= torch.cuda.device_count()):
        raise ConfigError(
            f"each process takes a GPU of its own, and this machine has {torch.cuda.device_count()}: start as many, with --device cuda, "
            "or train with --device cpu."
        )
    return device


@contextlib.contextmanager
def _connection() -> Iterator[None]:
    """Turn a failed connection into a RunError."""
    try:
        yield
    except RuntimeError as error:
        what = str(error).strip().splitlines()[0].rstrip(".")
        raise RunError(f"the connection to the training's other processes was lost ({what}); go on with --resume.") from error


def broadcast_result(make: Callable[[], T]) -> T:
    """The result of ``make`` in the main process, on all processes; an error for the user is raised on all."""
    if share().world_size == 1:
        return make()
    answer: list[Any] = [None]
    if is_main():
        try:
            answer = [(make(), None)]
        except (NerfitError, SystemExit) as error:
            answer = [(None, error)]
    with _connection():
        dist.broadcast_object_list(answer, 0, group=_waits)
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Copy the main process's values into the tensors of all processes."""
    if share().world_size == 1:
        return
    tensors = list(tensors)
    for tensor, value in zip(tensors, broadcast_result(lambda: [t.detach().cpu() for t in tensors]), strict=True):
        tensor.detach().copy_(value)


def run_on_main(work: Callable[[], T], module: nn.Module) -> T:
    """Run ``work``, which changes ``module``, in the main process; all processes get its result and the module's state."""
    result = broadcast_result(work)
    broadcast(module.state_dict().values())
    return result


def all_gather_object(value: T) -> list[T]:
    """The values of all processes, by rank."""
    if share().world_size == 1:
        return [value]
    found: list[Any] = [None] * share().world_size
    with _connection():
        dist.all_gather_object(found, value, group=_waits)
    return found


@contextlib.contextmanager
def leaders_first() -> Iterator[None]:
    """Run the body in the first process of each machine, then in the others, which find what it compiled or decoded."""
    wait = lambda: share().world_size > 1 and all_gather_object(None)  # noqa: E731
    if _local() > 0:
        wait()
    try:
        yield
    finally:
        if _local() == 0:
            wait()


@contextlib.contextmanager
def collected(folder: Path) -> Iterator[Path]:
    """A folder for each process to write files into; in the end all files are in ``folder`` of the main process."""
    with contextlib.ExitStack() as open_ones:
        root = folder if is_main() else Path(open_ones.enter_context(tempfile.TemporaryDirectory()))
        yield root
        if share().world_size > 1:
            _send_files(root, [] if is_main() else [path for path in sorted(root.rglob("*")) if path.is_file()])


def _send_files(root: Path, files: list[Path]) -> None:
    """Send files to the main process, one at a time, which writes them at the same paths below its own ``root``."""
    for number in range(max(all_gather_object(len(files)))):
        own = files[number] if number < len(files) else None
        found: list[Any] | None = [None] * share().world_size if is_main() else None
        with _connection():
            dist.gather_object(own and (str(own.relative_to(root)), own.read_bytes()), found, 0, group=_waits)
        for name, data in filter(None, found or []):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)


def all_gather(values: Sequence[float]) -> list[list[float]]:
    """A few numbers (as float64) of every process, by rank."""
    own = torch.tensor(values, dtype=torch.float64)
    rows = [torch.empty_like(own) for _ in range(share().world_size)]
    with _connection():
        dist.all_gather(rows, own)
    return [row.tolist() for row in rows]


def all_reduce(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over all processes; a parameter without a gradient in any process keeps none."""
    parameters = list(parameters)
    with _connection():
        tables = [p for p in parameters if getattr(p, "factored_gradients", None) is not None]
        together = _gather_factors(tables)
        _all_reduce_dense([p for p in parameters if not any(p is table for table in together)])


def _all_reduce_dense(parameters: list[nn.Parameter]) -> None:
    global sent
    if not parameters:
        return
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has_one = pieces[0].new_tensor([float(p.grad is not None) for p in parameters])
    flat = torch.cat([*(piece.flatten() for piece in pieces), has_one])
    dist.all_reduce(flat)
    sent += 2 * (share().world_size - 1) * flat.nbytes // share().world_size
    *sums, has_one = flat.split([*(p.numel() for p in parameters), len(parameters)])
    for p, piece, total, has in zip(parameters, pieces, sums, has_one.tolist(), strict=True):
        if has:
            p.grad = piece.copy_(total.view_as(p))


def _gather_factors(tables: list[nn.Parameter]) -> list[nn.Parameter]:
    """Give every process the factors of all processes; returns the tables for which factors are smaller than dense gradients.

    Of the other tables each process has a dense gradient then.
    """
    global sent
    world, together = share().world_size, []
    rows = [as_row(table.factored_gradients) for table in tables]  # pyright: ignore[reportAttributeAccessIssue]
    sizes = torch.tensor([0 if row is None else row.count[0] for row in rows])
    every = [torch.empty_like(sizes) for _ in range(world)]
    if tables:
        dist.all_gather(every, sizes)
    for table, row, counts in zip(tables, rows, torch.stack(every, 1).tolist(), strict=True):
        room = max(counts)
        if row is None or room == 0:
            continue
        depth = row.layout.depth
        if world * room * (3 + depth) > 2 * table.numel():
            table.grad = torch.zeros_like(table) if table.grad is None else table.grad
            add_factored(row, table.grad)
            table.factored_gradients = []  # pyright: ignore[reportAttributeAccessIssue]
            continue
        all_rows = []
        for values, width in ((row.positions, 3), (row.features, depth)):
            own, rows_of_all = torch.zeros(room * width), torch.empty(world, room * width)
            own[: values.size] = torch.from_numpy(values[0])
            dist.all_gather(list(rows_of_all.unbind()), own)
            sent += (world - 1) * own.nbytes
            all_rows.append(rows_of_all.numpy())
        positions, features = all_rows
        table.grad = None
        table.factored_gradients = [FactoredGradient(positions, features, counts, row.layout)]  # pyright: ignore[reportAttributeAccessIssue]
        together.append(table)
    return together
