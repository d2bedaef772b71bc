"""nerfit bench speed: the matrix product, the fused field and every kernel on this machine."""

from dataclasses import dataclass
from typing import Any, Literal

from nerfit.commands.options import DeviceOptions


@dataclass
class Options(DeviceOptions):
    """nerfit bench speed: this machine's matrix product, the fused field, and each kernel beside its definition in PyTorch.

    Examples:
      nerfit bench speed
      nerfit bench speed --threads 2 --precision float32 --json
    """

    levels: int = 8
    """Levels of the hash grid."""
    log2_entries: int = 19
    """Entries per level at most, as a power of two."""
    width: int = 64
    """Channels of the networks."""
    samples: int = 65_536
    """Positions along made-up rays."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Precision of the matrix products; auto = bf16 on hardware that is fast at it."""


def run(options: Options) -> dict[str, Any]:
    """Measure; the machine, its matrix peak, the field and each kernel."""
    from rich.console import Console

    from nerfit.commands.bench_kernels import speed
    from nerfit.kernels.layouts import FieldShape, GridLayout
    from nerfit.training.devices import pick_device, set_threads

    set_threads(options.threads)
    shape = FieldShape(GridLayout(options.levels, options.log2_entries, 16, 1024), options.width)
    with Console(stderr=True).status("measuring"):
        return speed(shape, options.samples, options.precision, pick_device(options.device))


def text(answer: dict[str, Any]) -> str:
    """A table of the kernels below the peak of the machine."""
    from rich.console import Console
    from rich.table import Table

    m, f, peaks = answer["machine"], answer["field"], answer["matrix_peak_gflops"]
    table = Table(box=None, pad_edge=False)
    table.add_column("kernel")
    for title in ("ms", "reference ms", "ratio", "difference", "GFLOP/s"):
        table.add_column(title, justify="right")
    for row in answer["kernels"]:
        rays = f" ({row['differing_rays']:.1%} of rays)" if row.get("differing_rays") else ""
        numbers = (
            f"{row['milliseconds']:.2f}",
            f"{row['reference_milliseconds']:.2f}",
            f"{row['ratio']:.1f}",
            f"{row['difference']:.0e}{rays}",
        )
        table.add_row(row["kernel"], *numbers, f"{row['gflops']:.0f}" if "gflops" in row else "")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(
        [
            f"{m['cpu']}, cores: {m['cores']}, threads: {m['threads']}, device {m['device']}, PyTorch {m['torch']}, {m['date']}",
            f"matrix peak: {peaks['float32']:,.0f} GFLOP/s in float32, {peaks['bf16']:,.0f} in bf16",
            f"fused field forward + backward in {f['precision']}: {f['samples_per_second'] / 1e6:.2f} million samples/s, "
            f"{f['gflops']:,.0f} GFLOP/s, {f['share_of_float32_peak']:.0%} of the float32 peak",
            "",
            capture.get().rstrip(),
        ]
    )
