"""nerfit bench: what is measured, what is written, and what is not measured again."""

import csv
import itertools
import json
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nerfit import cli
from nerfit.commands import bench_quality, bench_speed
from nerfit.commands.bench_kernels import SPACING, _compare
from nerfit.commands.bench_quality_results import COLUMNS, _nice, quality_chart
from nerfit.commands.machine import matrix_peak
from nerfit.kernels.layouts import FieldShape, GridLayout, Samples

TINY = [
    *("--scene.size", "16", "--scene.views", "4", "--scene.samples", "1", "--scene.test-views", "1", "--scene.val-views", "0"),
    *("--model.samples", "64", "--model.log2-entries", "8", "--model.levels", "2", "--log.image-every", "0", "--threads", "1"),
]
MACHINE = {"cpu", "cores", "threads", "device", "system", "python", "torch", "nerfit", "date"}
KERNELS = [
    *("encode_grid", "encode_grid backward", "spherical_harmonics", "field_density", "field forward", "field backward"),
    *("field forward + backward", "composite forward", "composite backward", "march", "visible_samples"),
    *("render_rays forward", "render_rays backward"),
    *("sample_pdf", "sparse_adam", "pack_occupancy", "draw_pixels", "camera_rays"),
]


@pytest.mark.parametrize(("gflops", "rows"), [(60.0, 2048), (1.0, 512), (0.01, 128)])
def test_no_matrix_product_takes_longer_than_a_second(monkeypatch: pytest.MonkeyPatch, gflops: float, rows: int) -> None:
    """A processor of a made-up speed, whose products also cost 10 ns a row."""
    measured = []

    def seconds(product: int, repeats: int) -> float:
        measured.append(product)
        return 2 * product**3 / (1e9 * gflops) + 1e-8 * product

    monkeypatch.setattr("nerfit.commands.machine._product", lambda device, dtype, rows: rows)
    monkeypatch.setattr("nerfit.commands.machine.median_seconds", seconds)
    assert matrix_peak(torch.device("cpu"), torch.float32) == pytest.approx(1e9 * gflops, rel=0.05)
    assert measured[-1] == rows


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`nerfit bench`, run in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: Any) -> tuple[int, str, str]:
        code = cli.main(["bench", *map(str, argv)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_speed(bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerfit.commands.bench_kernels.matrix_peak", lambda device, dtype: 2e11 if dtype == torch.float32 else 8e11)
    code, out, _ = bench("speed", "--levels", 2, "--log2-entries", 10, "--width", 32, "--samples", 259, "--precision", "float32", "--json")
    answer = json.loads(out)
    assert code == 0 and set(answer["machine"]) == MACHINE
    assert answer["matrix_peak_gflops"] == {"float32": 200, "bf16": 800}
    rows = {row["kernel"]: row for row in answer["kernels"]}
    assert list(rows) == KERNELS
    for name, row in rows.items():
        assert row["milliseconds"] > 0 and row["ratio"] == pytest.approx(row["reference_milliseconds"] / row["milliseconds"])
        # render_rays: where the two march to differs in the last bits, which a grid of 1024 cells magnifies
        assert row["difference"] < (1e-3 if name.startswith("render_rays") else 1e-4), name
        assert row.get("differing_rays", 0) <= 1 / 16, name
    shape, field = FieldShape(GridLayout(2, 10, 16, 1024), 32), answer["field"]
    for name, times in (("field forward", 1), ("field backward", 2), ("field forward + backward", 3)):
        assert rows[name]["gflops"] == pytest.approx(times * shape.flops() * 256 / rows[name]["milliseconds"] / 1e6)
    assert field["samples"] == 256 and field["precision"] == "float32"
    assert field["gflops"] == pytest.approx(3e-9 * shape.flops() * field["samples_per_second"])
    assert field["share_of_float32_peak"] == pytest.approx(field["gflops"] / 200)
    text = bench_speed.text(answer)
    assert all(name in text for name in KERNELS) and answer["machine"]["cpu"] in text


def test_rays_with_other_samples_are_counted_apart() -> None:
    x = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))

    def samples(x: torch.Tensor, counts: list[int]) -> Samples:
        offsets = torch.tensor([0, *itertools.accumulate(counts)])
        ray = torch.repeat_interleave(torch.arange(len(counts)), offsets.diff()).int()
        return Samples(ray, x[:, 0], x[:, 0], x, offsets)

    moved = x.clone()
    moved[5] += 3 * SPACING
    moved[0] += 1e-4
    found = _compare(samples(moved, [2, 0, 1, 3]), samples(x, [2, 0, 1, 3]))
    assert found["differing_rays"] == 0.25 and found["difference"] == pytest.approx(1e-4 / float(x[:5].max()), rel=1e-2)
    assert _compare(samples(x[1:], [1, 0, 1, 3]), samples(x, [2, 0, 1, 3])) == {"difference": 0, "differing_rays": 0.25}


def test_time_to_quality(bench: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = bench("time-to-quality", "procedural", "--at", 1, "--out", "q", *TINY, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["method"], answer["source"], answer["flags"]) == ("instant", "procedural", TINY)
    assert set(answer["machine"]) == MACHINE and answer["machine"]["threads"] == 1
    (row,) = answer["rows"]
    assert tuple(sorted(row)) == tuple(sorted(COLUMNS)) and (row["budget"], row["seed"], row["threads"]) == (1, 0, 1)
    assert 1 <= row["seconds"] < 30 and row["steps"] > 0 and row["rays"] >= 64 * row["steps"]
    assert 5 < row["psnr"] < 60 and 100 < row["peak_memory_mb"] < 5000 and row["matrix_peak_gflops"] > 0
    saved = json.loads((tmp_path / "q" / "results.json").read_text())
    assert saved["rows"] == answer["rows"]
    with (tmp_path / "q" / "results.csv").open() as file:
        assert list(csv.DictReader(file)) == [{name: str(row[name]) for name in COLUMNS}]
    ElementTree.parse(tmp_path / "q" / "results.svg")
    assert json.loads((tmp_path / row["run"] / "metrics.json").read_text())["train"]["seed"] == 0

    asked: list[tuple[float, int]] = []

    def interrupted_at_the_third(plan: object, flags: object, budget: float, seed: int, run: Path) -> dict[str, Any]:
        asked.append((budget, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return row | {"budget": budget, "seed": seed, "psnr": 20.0 + seed}

    monkeypatch.setattr(bench_quality, "_timed_training", interrupted_at_the_third)
    again = ["time-to-quality", "instant", "procedural", "--at", 2, 1, "--seeds", 2, "--out", "q", *TINY]
    assert bench(*again)[0] == 130
    assert bench(*again)[0] == 0
    assert asked == [(1, 1), (2, 0), (2, 1), (2, 1)]
    rows = json.loads((tmp_path / "q" / "results.json").read_text())["rows"]
    assert [(r["budget"], r["seed"]) for r in rows] == [(1, 0), (1, 1), (2, 0), (2, 1)] and rows[0] == row

    code, _, err = bench("time-to-quality", "procedural", "--at", 1, "--out", "q")
    assert code == 1 and "another training (instant procedural --scene.size 16" in err
    (tmp_path / "q" / "results.json").write_text("{}")
    code, _, err = bench(*again)
    assert code == 1 and "results.json can't be read" in err


def test_a_training_that_fails_says_why(bench: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "procedural: procedural scene\nnerfit: the disk is full.\n")
    monkeypatch.setattr("nerfit.commands.bench_quality.subprocess.run", lambda *_, **__: failed)
    monkeypatch.setattr("nerfit.commands.machine.matrix_peak", lambda *_: 1.0)
    code, out, err = bench("time-to-quality", "procedural", "--at", 2, *TINY)
    assert (code, out) == (1, "") and err.splitlines()[-1] == "nerfit: the training of 2 s failed: the disk is full."


def test_memory_is_that_of_the_process_itself(tmp_path: Path) -> None:
    """Linux hands the peak of a parent down to its children in ru_maxrss; it must not count."""
    large = torch.ones(150 * 2**20)  # 600 MB
    command = [sys.executable, "-m", "nerfit", "bench", "memory", "procedural", "--steps", "2", *TINY, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(large)
    answer = json.loads(done.stdout)
    stages = answer["peak_memory_mb"]
    assert list(stages) == ["the program", "the scene", "the method", "training", "rendering"]
    assert 50 < stages["the program"] < (600 if sys.platform == "linux" else 5000)
    assert list(stages.values()) == sorted(stages.values())
    assert answer["steps"] == 2 and set(answer["machine"]) == MACHINE
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("", "bench what? One of speed, time-to-quality, memory."),
        ("sped", "did you mean 'speed'"),
        ("speed --samples 3", "--samples must be at least 64"),
        ("speed --width 7", "multiple of 32"),
        ("speed --levels 99", "1 to 32 levels"),
        ("speed procedural", "'procedural' is one value"),
        ("time-to-quality", "a SCENE is needed first"),
        ("memory --steps 3 procedural", "a SCENE is needed first"),
        ("time-to-quality procedural --at 0", "above 0"),
        ("time-to-quality procedural --at soon", "--at"),
        ("time-to-quality procedural --at", "--at"),
        ("time-to-quality procedural --seeds 0", "--seeds must be at least 1"),
        ("time-to-quality procedural --seconds 3", "leave out --seconds"),
        ("time-to-quality procedural --no-evaluate", "leave out --evaluate"),
        ("memory procedural --resume", "leave out --resume"),
        ("memory procedural foo", "there is no method 'foo'"),
        ("memory nowhere", "no known scene at 'nowhere'"),
        ("memory procedural --steps 0", "steps must be above 0"),
        ("memory procedural --model.levelz 3", "did you mean '--model.levels'"),
    ],
)
def test_bad_input_is_one_sentence(bench: Callable[..., tuple[int, str, str]], tmp_path: Path, argv: str, said: str) -> None:
    code, out, err = bench(*argv.split())
    refusals = [line for line in err.splitlines() if line.startswith("nerfit: ")]
    assert (code, out) == (1, "") and len(refusals) == 1 and said in refusals[0], err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["speed"], ["time-to-quality"], ["memory"]])
def test_help_has_examples(bench: Callable[..., tuple[int, str, str]], command: list[str]) -> None:
    code, out, _ = bench(*command, "--help")
    assert code == 0 and "Examples:" in out and f"nerfit bench {' '.join(command)}" in out


def test_chart_is_logarithmic_in_time_and_even_in_psnr() -> None:
    points = [(15.0, 20.0, 15.0), (60.0, 24.0, 60.0), (240.0, 25.0, 240.0), (240.0, 27.0, 240.0)]
    svg = ElementTree.fromstring(quality_chart(points, "<a & b>"))
    tag = "{http://www.w3.org/2000/svg}"
    dots = [(float(c.attrib["cx"]), float(c.attrib["cy"])) for c in svg.iter(tag + "circle")]
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = dots
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and x2 == x3 > x1 > x0
    assert (y0 - y1) / 4 == pytest.approx(y2 - y3, rel=0.5) and (y0 - y1) == pytest.approx(2 * (y2 - y3), abs=0.3)
    line = next(svg.iter(tag + "polyline")).attrib["points"].split()
    assert [tuple(map(float, p.split(","))) for p in line[:2]] == dots[:2]
    assert float(line[2].split(",")[1]) == pytest.approx((y2 + y3) / 2, abs=0.1)
    texts = [t.text for t in svg.iter(tag + "text")]
    assert {"<a & b>", "15", "60", "240", "20", "22", "24", "26", "28"} <= set(texts)
    one = ElementTree.fromstring(quality_chart([(30.0, 22.0, 30.0)], "one"))
    assert all(math.isfinite(float(c.attrib["cy"])) for c in one.iter(tag + "circle"))


@given(st.floats(0.1, 1e6))
def test_nice_steps(step: float) -> None:
    found = _nice(step)
    assert step * (1 - 1e-6) <= found <= 2.5 * step * (1 + 1e-6)
    assert round(found / 10 ** math.floor(math.log10(found) + 1e-9)) in (1, 2, 5)
