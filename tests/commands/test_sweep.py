"""nerfit sweep: which jobs there are, what is done again and what is not, the table's figures, and Ray itself (slow)."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from many_jobs import descendants, in_turn, kill, needs_ray, until
from nerfit.cli import main
from nerfit.commands import cluster, jobs
from nerfit.commands import sweep as command
from nerfit.commands.cluster import Needs, Stop, TaskDied, locked, run_nerfit
from nerfit.commands.sweep_table import COLUMNS, MEASURES, compare, table
from nerfit.errors import ConfigError, RunError

SMALL = [
    *("--scene.size", "24", "--scene.samples", "1", "--scene.test-views", "2", "--scene.val-views", "1", "--log.image-every", "0"),
    *("--threads", "1"),
]
TINY = [
    *(*SMALL, "--scene.views", "6", "--model.depth", "2", "--model.width", "16", "--model.skips", "--model.samples", "8"),
    *("--model.fine-samples", "8", "--model.rays", "64", "--steps", "4", "--log.save-every", "2"),
]
SCENES = ("procedural", "procedural:forward-facing")


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """An empty folder to work in, where jobs run in this process; the commands that they ran."""
    commands: list[tuple[str, ...]] = []

    def run(words: Sequence[str], log: Any, cwd: Path) -> None:
        commands.append(tuple(words))
        with io.StringIO() as nowhere, contextlib.redirect_stdout(nowhere):
            if main(list(words)):
                raise RunError("the disk is full.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs, "run_nerfit", run)
    return commands


def sweep(*flags: str, seeds: int = 2, methods: Sequence[str] = ("nerf",), recipes: Sequence[str] = (), **more: Any) -> dict[str, Any]:
    options = command.Options(
        scenes=SCENES, methods=tuple(methods), recipes=tuple(recipes), seeds=seeds, out=Path("out"), flags=(*TINY, *flags), **more
    )
    return command.run(options, in_turn)


def snapshot(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.glob("*-seed*/**/*") if p.is_file()}


def test_a_sweep_does_everything_once(said: list[tuple[str, ...]]) -> None:
    Path("small.yaml").write_text("method: nerf\nmodel: {jitter: false}\n")
    answer = sweep(recipes=("small.yaml",))
    names = [f"{s}-{r}-seed{k}" for k in (0, 1) for s in ("procedural", "procedural-forward-facing") for r in ("nerf", "small")]
    assert [job["job"] for job in answer["jobs"]] == names and answer["exit_code"] == 0 and len(said) == 8
    assert {p.name for p in Path("out").iterdir()} == {*names, "logs", "sweep.json", "sweep.csv", "sweep.md"}
    for job in answer["jobs"]:
        metrics = json.loads((Path(job["run"]) / "metrics.json").read_text())
        assert (job["psnr"], job["ssim"], job["steps"]) == (metrics["test"]["psnr"], metrics["test"]["ssim"], 4)
        assert metrics["train"]["seed"] == job["seed"] and job["failed"] is None
    found = {(row["scene"], row["recipe"]): row for row in answer["scenes"]}
    for scene in ("procedural", "procedural-forward-facing"):
        values = [j["psnr"] for j in answer["jobs"] if (j["scene"], j["recipe"]) == (scene, "small")]
        assert len(values) == 2 and values[0] != values[1]
        assert found[scene, "small"]["psnr"] == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1)})
    with Path("out/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == names and float(rows[3]["psnr"]) == answer["jobs"][3]["psnr"]
    assert json.loads(Path("out/sweep.json").read_text())["scenes"] == answer["scenes"]
    assert Path("out/sweep.md").read_text() == table(answer) + "\n"

    before = snapshot(Path("out"))
    again = sweep(recipes=("small.yaml",), methods=("nerf",))
    assert len(said) == 8 and snapshot(Path("out")) == before and again == answer
    more = sweep("--threads", "2", seeds=3)
    assert len(said) == 10 and {k: v for k, v in snapshot(Path("out")).items() if k in before} == before
    assert [row["runs"] for row in more["scenes"]] == [3, 3]


def test_what_was_begun_goes_on(said: list[tuple[str, ...]]) -> None:
    first = sweep(seeds=1)
    killed, unjudged = (Path("out") / name for name in ("procedural-nerf-seed0", "procedural-forward-facing-nerf-seed0"))
    (killed / "metrics.json").unlink()
    (killed / "checkpoints/step_00000004.safetensors").unlink()
    metrics = json.loads((unjudged / "metrics.json").read_text())
    (unjudged / "metrics.json").write_text(json.dumps({"train": metrics["train"]}))
    said.clear()
    again = sweep(seeds=1)
    out = str(killed.resolve())
    assert said == [
        ("train", "--out", out, "--resume", "--threads=1"),
        ("train", "--out", str(unjudged.resolve()), "--resume", "--threads=1"),
    ]
    assert [j["psnr"] for j in again["jobs"]] == [j["psnr"] for j in first["jobs"]]
    for name in ("config.yaml", "metrics.json"):  # killed before it began
        (killed / name).unlink()
    said.clear()
    assert sweep(seeds=1)["jobs"][0]["psnr"] == first["jobs"][0]["psnr"]
    assert [words[:3] for words in said] == [("train", "nerf", "procedural")]


def test_judging_that_takes_long_is_a_command_of_its_own(said: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerfit.commands.train_run.EVALUATE_WITHIN", 0.0)
    answer = sweep(seeds=1)
    assert [words[0] for words in said] == ["train", "eval"] * 2 and said[1][2:] == ("--threads=1",)
    assert all(job["psnr"] > 3 for job in answer["jobs"]) and answer["exit_code"] == 0


def test_a_job_that_fails_is_a_row_and_one_that_died_is_tried_again(
    said: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, deaths = run_nerfit, iter([True, True, False])

    def sometimes(words: Sequence[str], log: Any, cwd: Path) -> None:
        if "procedural" in words and next(deaths):
            raise TaskDied("its process was ended by signal 9.")
        if "procedural:forward-facing" in words:
            raise RunError("the disk is full.")
        run(words, log, cwd)

    monkeypatch.setattr(jobs, "run_nerfit", sometimes)
    monkeypatch.setattr(command.run, "__defaults__", (in_turn,))
    words = ["sweep", *SCENES, "--methods", "nerf", "--out", "out", "--retries", "2", *TINY]
    assert main([*words, "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [job["failed"] for job in answer["jobs"]] == [None, "the disk is full."]
    assert answer["recipes"][0]["psnr"] is None and answer["scenes"][0]["psnr"]["mean"] == answer["jobs"][0]["psnr"]
    assert "- procedural-forward-facing-nerf-seed0: the disk is full." in Path("out/sweep.md").read_text()
    assert main(words) == 1
    text = capsys.readouterr()
    assert "| procedural " in text.out and "1/2" not in text.err and "2/2" in text.err


def test_a_stopped_sweep_says_what_is_left(said: list[tuple[str, ...]]) -> None:
    def stopped(work: Any, items: Sequence[Any], needs: Needs, stop: Stop) -> Iterator[tuple[int, Any]]:
        yield 0, work(items[0])
        stop.interrupted = 15

    options = command.Options(scenes=SCENES, methods=("nerf",), out=Path("out"), flags=tuple(TINY))
    answer = command.run(options, stopped)
    assert answer["exit_code"] == 143 and [job["failed"] for job in answer["jobs"]] == [None, "not done yet."]
    assert len(said) == 1 and sweep(seeds=1)["exit_code"] == 0 and len(said) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "SCENES and --methods or --recipes are needed"),
        (["procedural"], "SCENES and --methods or --recipes are needed"),
        (["procedural", "--methods", "nrf"], "nrf on procedural: there is no method 'nrf', did you mean 'nerf'?"),
        (["procedural", "--recipes", "legoo"], "there is no recipe 'legoo', did you mean 'lego'?"),
        (["procedural", "--recipes", "lego"], "recipe lego is for blender scenes"),
        (["/no/where", "--methods", "nerf"], "nerf on /no/where: no known scene at '/no/where'"),
        (["procedural", "procedural", "--methods", "nerf"], "two jobs would be called procedural-nerf-seed0"),
        (["procedural", "--methods", "nerf", "--seeds", "0"], "--seeds must be at least 1"),
        (["procedural", "--methods", "nerf", "--retries", "-1"], "--retries must be at least 0"),
        (["procedural", "--methods", "nerf", "--modle.depth", "1"], "--model.depth"),
        (["procedural", "--methods", "nerf", "--resume"], "leave out --resume: the sweep sets it itself"),
        (["procedural", "--methods", "nerf", "--out", "full"], "full exists already"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_mistakes_are_reported_before_anything_is_written(
    said: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    Path("full").mkdir()
    Path("full/thesis.tex").touch()
    assert main(["sweep", *words]) == 1
    refusals = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nerfit: ")]
    assert len(refusals) == 1 and expected in refusals[0] and not said
    assert [str(p) for p in Path().rglob("*")] == ["full", "full/thesis.tex"]


def test_another_configuration_in_the_same_place_is_refused(said: list[tuple[str, ...]]) -> None:
    sweep(seeds=1)
    before = snapshot(Path("out"))
    with pytest.raises(ConfigError, match=r"procedural-nerf-seed0 was begun with optim.lr 0.0005, not 0.01: choose another --out."):
        sweep("--optim.lr", "0.01", seeds=1)
    with pytest.raises(ConfigError, match="was begun with steps 4, not 5"):
        sweep("--steps", "5", seeds=1)
    assert snapshot(Path("out")) == before


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"extra `cluster`: pip install 'nerfit\[cluster\]'"):
        next(cluster.on_ray(len, ["a"], Needs(), Stop()))


def test_a_ray_that_does_not_start_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**_: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=too_late))
    with pytest.raises(ConfigError, match=r"started or joined on host:1, nothing is lost: The current node timed out during startup\.$"):
        next(cluster.on_ray(len, ["a"], Needs(address="host:1"), Stop()))


def test_a_child_is_recognised_by_how_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        locked(tmp_path / "logs/a.txt") as log,
        pytest.raises(RunError, match="^there is no command 'trian', did you mean 'train'") as error,
    ):
        run_nerfit(["trian"], log, tmp_path)
    assert not isinstance(error.value, TaskDied) and "nerfit: there is no command" in (tmp_path / "logs/a.txt").read_text()
    fake = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(fake))
    for script, expected in (("kill -9 $$", "signal 9"), ("exit 143", "signal 15")):
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
        with locked(tmp_path / "logs/a.txt") as log, pytest.raises(TaskDied, match=expected):
            run_nerfit(["train"], log, tmp_path)
    fake.write_text("#!/bin/sh\nexit 0\n")
    with locked(tmp_path / "logs/a.txt") as log:
        run_nerfit(["train"], log, tmp_path)


def test_an_interrupted_parent_has_its_child_end_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text(
        f"#!/bin/sh\ntrap 'echo saved > {tmp_path}/saved; exit 143' TERM\nsleep 1\nkill -INT {os.getpid()}\nwhile :; do sleep 0.1; done\n"
    )
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
    try:
        with locked(tmp_path / "a.txt") as log, pytest.raises(KeyboardInterrupt):
            run_nerfit(["train"], log, tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").read_text() == "saved\n"


numbers = st.floats(-1e3, 1e3)


@given(st.lists(st.lists(numbers, min_size=1, max_size=4), min_size=1, max_size=3))
def test_means_and_spreads_are_those_of_numpy(scenes: list[list[float]]) -> None:
    rows = [
        dict.fromkeys(COLUMNS) | {"job": f"{s}-{k}", "scene": str(s), "recipe": "r", "seed": k, "psnr": value}
        for s, values in enumerate(scenes)
        for k, value in enumerate(values)
    ]
    found = compare(rows)
    for values, row in zip(scenes, found["scenes"], strict=True):
        assert row["psnr"]["mean"] == pytest.approx(np.mean(values)) and row["runs"] == len(values) and row["ssim"] is None
        assert ("sd" in row["psnr"]) == (len(values) > 1)
        if len(values) > 1:
            assert row["psnr"]["sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert found["recipes"][0]["psnr"] == pytest.approx(np.mean([np.mean(values) for values in scenes]))
    lines = table(found).splitlines()
    assert len(lines) == 2 + len(scenes) + (len(scenes) > 1) and len({line.count("|") for line in lines}) == 1


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--help"]) == 0
    text = capsys.readouterr().out
    assert "nerfit sweep data/lego data/chair --methods instant --seeds 3" in text and "--address" in text and list(MEASURES)


REAL = [
    *(*SMALL, "--scene.views", "8", "--model.samples", "1024", "--model.log2-entries", "10", "--model.levels", "4"),
    *("--steps", "300", "--log.save-every", "50"),
]


@contextlib.contextmanager
def started(out: Path) -> "Iterator[subprocess.Popen[bytes]]":
    """A sweep of 2 scenes x 2 methods x 2 seeds, two jobs at a time, in a session of its own; killed at the end if it still runs."""
    words = ["sweep", *SCENES, "--methods", "instant", "--recipes", str(out.parent / "short.yaml"), "--seeds", "2", "--out", str(out)]
    with (out.parent / "driver.txt").open("ab") as log:
        driver = subprocess.Popen([sys.executable, "-m", "nerfit", *words, *REAL], stdout=log, stderr=log, start_new_session=True)
    try:
        yield driver
    finally:
        kill(driver.pid)
        driver.wait()


def finished(out: Path) -> list[Path]:
    return [p.parent for p in out.glob("*-seed*/metrics.json") if "test" in json.loads(p.read_text())]


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="children are tied to their parents on Linux only")
def test_a_sweep_survives_the_death_of_everything(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("parent: instant\nmodel: {levels: 2}\n")
    out = tmp_path / "out"
    with started(out):
        until(lambda: len(finished(out)) >= 3)
    done = finished(out)
    before = {p: p.stat().st_mtime_ns for run in done for p in run.rglob("*") if p.is_file()}
    assert 3 <= len(done) < 8
    with started(out) as driver:
        assert driver.wait(1200) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(finished(out)) == 8
    found = json.loads((out / "sweep.json").read_text())
    for row in found["scenes"]:
        each = [json.loads((out / f"{row['scene']}-{row['recipe']}-seed{k}" / "metrics.json").read_text()) for k in (0, 1)]
        values = [m["test"]["psnr"] for m in each]
        assert row["psnr"] == pytest.approx({"mean": np.mean(values), "sd": np.std(values, ddof=1)})
        assert [m["train"]["steps"] for m in each] == [300, 300]


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_killed_training_is_tried_again_and_a_stopped_sweep_saves(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text("parent: instant\nmodel: {levels: 2}\n")
    out = tmp_path / "out"

    def trainings(driver: int) -> list[int]:
        with contextlib.suppress(OSError):
            return [p for p in descendants(driver) if b"nerfit.commands.cluster\0train" in Path(f"/proc/{p}/cmdline").read_bytes()]
        return []

    def steps(run: Path) -> int:
        return max((int(file.stem[5:]) for file in run.glob("checkpoints/step_*.safetensors")), default=0)

    with started(out) as driver:
        until(lambda: trainings(driver.pid) and list(out.glob("*/checkpoints/step_*50.safetensors")))
        victim = trainings(driver.pid)[0]
        run = next(folder for folder in out.glob("*-seed*") if f"{folder}\0".encode() in Path(f"/proc/{victim}/cmdline").read_bytes())
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in trainings(driver.pid))
        left_at = steps(run)
        until(lambda: len(finished(out)) >= 3 and steps(run) > left_at)
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(300) == 128 + signal.SIGTERM
    rows = json.loads((out / "sweep.json").read_text())["jobs"]
    assert {row["failed"] for row in rows} == {None, "not done yet."}
    for run in {file.parent for file in out.glob("*-seed*/checkpoints")}:  # whatever was begun has a checkpoint of where it stopped
        train = json.loads((run / "metrics.json").read_text())["train"]
        assert (run / "checkpoints" / f"step_{train['steps']:08d}.safetensors").exists()
