"""nerfit render with workers: the pixels of the plain command, in pieces, nothing drawn twice."""

import contextlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from many_jobs import in_turn, kill, needs_ray, until
from nerfit.cli import main
from nerfit.commands import render, render_film
from nerfit.commands.cluster import Needs, Stop
from nerfit.commands.render_options import Options as RenderOptions
from nerfit.errors import RunError

TINY = [
    *("--scene.size=24", "--scene.views=6", "--scene.samples=1", "--scene.test-views=2", "--scene.val-views=1", "--model.samples=256"),
    *("--model.log2-entries=10", "--model.levels=2", "--threads=1", "--log.image-every=0", "--steps=30", "--no-evaluate"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "instant", "procedural", *TINY, "--out", str(run)]) == 0
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "run")
    render_film._opened.cache_clear()
    return Path("run")


def film(run: Path, **more: Any) -> RenderOptions:
    return RenderOptions(**({"run": run, "frames": 7, "what": "rgb,depth", "threads": 1, "workers": 2} | more))


def pictures(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.png")}


def stopped_after(pieces: int) -> Any:
    def spread(work: Any, items: Sequence[Any], needs: Needs, stop: Stop) -> Iterator[tuple[int, Any]]:
        yield from in_turn(work, items[:pieces], needs, stop)
        stop.interrupted = signal.SIGTERM

    return spread


def test_workers_draw_what_one_process_draws(run: Path) -> None:
    plain, farmed = render.run(film(run, workers=0)), render.run(film(run), in_turn)
    assert (plain["folder"], farmed["folder"]) == ("run/renders/circle", "run/renders/circle-2")
    expected = pictures(Path(plain["folder"]))
    assert len(expected) == 14 and pictures(Path(farmed["folder"])) == expected
    assert [Path(v).name for v in farmed["videos"]] == ["rgb.mp4", "depth.mp4"]
    assert all(Path(a).read_bytes() == Path(b).read_bytes() for a, b in zip(plain["videos"], farmed["videos"], strict=True))


@pytest.mark.parametrize("out", [None, Path("film")])
def test_what_was_left_undone_is_done(run: Path, out: Path | None, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = render.run(film(run, out=out), stopped_after(3))
    folder = Path(stopped["folder"])
    assert (stopped["exit_code"], stopped["videos"]) == (143, []) and "3 of 7 frames" in capsys.readouterr().err
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    (folder / "depth" / "0001.png").unlink()
    done = render.run(film(run, out=out), in_turn)
    assert done["folder"] == str(folder) and len(pictures(folder)) == 14 and len(done["videos"]) == 2
    assert [p.name for p in before if p.stat().st_mtime_ns != before[p]] == ["0001.png"] * 2
    if out is None:
        assert render.run(film(run), in_turn)["folder"] == "run/renders/circle-2"  # a finished film is never touched
    else:
        with pytest.raises(RunError, match="film exists already and holds another film, or a finished one"):
            render.run(film(run, out=out), in_turn)


def test_another_film_has_another_folder(run: Path) -> None:
    render.run(film(run), stopped_after(1))
    for more in ({"frames": 8}, {"what": "rgb"}, {"factor": 2.0}):
        assert render.run(film(run, **more), stopped_after(1))["folder"] != "run/renders/circle"
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["train", "--out", "run", "--resume", "--steps", "31", "--no-evaluate"]) == 0
    assert render.run(film(run), stopped_after(1))["folder"] == "run/renders/circle-5"
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    with pytest.raises(RunError, match="mine exists already"):
        render.run(film(run, out=Path("mine")), in_turn)


def test_a_run_that_goes_on_while_it_is_filmed_is_noticed(run: Path) -> None:
    def trained_meanwhile(work: Any, items: Sequence[Any], needs: Needs, stop: Stop) -> Iterator[tuple[int, Any]]:
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["train", "--out", "run", "--resume", "--steps", "31", "--no-evaluate"]) == 0
        yield from in_turn(work, items, needs, stop)

    with pytest.raises(RunError, match="was trained on while it was filmed"):
        render.run(film(run), trained_meanwhile)


def test_no_workers_less_than_none(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "run", "--workers", "-1"]) == 1 and "--workers must not be negative" in capsys.readouterr().err


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_killed_film_goes_on(run: Path) -> None:
    flags = [*("--frames", "24", "--what", "rgb", "--threads", "1")]
    words = [sys.executable, "-m", "nerfit", "render", "run", *flags, "--workers", "2", "--out", "film"]
    driver = subprocess.Popen(words, start_new_session=True)
    try:
        until(lambda: len(list(Path("film").glob("rgb/*.png"))) >= 6)
    finally:
        kill(driver.pid)
        driver.wait()
    before = {p: p.stat().st_mtime_ns for p in Path("film").glob("rgb/*.png")}
    assert 6 <= len(before) < 24
    assert subprocess.run(words).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before and Path("film/rgb.mp4").exists()
    assert main(["render", "run", *flags, "--out", "plain"]) == 0
    assert pictures(Path("film")) == pictures(Path("plain"))
    assert json.loads(Path("film/film.json").read_text())["what"] == ["rgb"]
