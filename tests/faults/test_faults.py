"""What runs and files survive: full and read-only disks, kills at any moment, broken clocks and numbers, a second training. docs/faults.md
names the test behind each promise. As a script this file is the half of its tests that is killed, or that lives on an odd disk.
"""

import functools
import gc
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forks import alive, child, import_all
from PIL import Image
from test_checkpoints import TINY, TRAIN, assert_same_end, equal, last

from nerfit.camera_search.history import PoseHistory
from nerfit.cameras import Cameras
from nerfit.cli import main
from nerfit.errors import NerfitError, RunError
from nerfit.files import atomic_write, write_json
from nerfit.methods.nerf import Nerf, NerfConfig
from nerfit.outputs.mesh.extract import Mesh
from nerfit.outputs.mesh.formats import write_mesh
from nerfit.outputs.mesh.point_cloud import PointCloud, write_points
from nerfit.outputs.pictures.video import write_video
from nerfit.runs import in_use
from nerfit.scenes.formats import procedural
from nerfit.scenes.images import write_depth_png, write_png
from nerfit.scenes.posing.registration import Report
from nerfit.scenes.reading import pixel_cache as pixels
from nerfit.scenes.scene import Scene
from nerfit.scenes.writing import write_colmap, write_poses_bounds, write_transforms
from nerfit.training import clock as clock_module
from nerfit.training.checkpoints import LoopState, checkpoints, load_checkpoint, save_checkpoint, update_metrics
from nerfit.training.clock import LONGEST_STEP
from nerfit.training.logs import LogConfig, RunLog
from nerfit.training.trainer import MAX_SKIPPED_IN_A_ROW, LoopConfig, Trainer

linux = pytest.mark.skipif(sys.platform != "linux", reason="locks, limits and mounts are those of Linux")
NETWORK = NerfConfig(depth=2, width=16, skips=[], samples=8, fine_samples=0, rays=64)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def scene() -> Scene:
    return procedural.load("procedural", procedural.Config(size=24, views=6, test_views=1, samples=1))


# --- Files: whole or not at all -------------------------------------------------------------------------------------


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def some_cameras(seed: int) -> Cameras:
    return Cameras.pinhole(torch.eye(4)[None].repeat(40, 1, 1) + seed, 30.0, 40, 40)


def some_mesh(seed: int) -> Mesh:
    points = torch.from_numpy(noise(seed, 90, 3)).double()
    return Mesh(points, torch.arange(90).reshape(30, 3), points / 255, points.byte())


def some_search(seed: int) -> PoseHistory:
    looks = [torch.full((20, 3, 4), float(seed + i)) for i in range(9)]
    return PoseHistory(steps=list(range(9)), progress=[0.1] * 9, psnr=[9.0] * 9, c2w=looks, focal=[1.0] * 9)


def save_scene(folder: Path, seed: int) -> None:
    Scene("s", "test", some_cameras(seed), 1.0, 2.0, {"train": list(range(40))}).save(folder)


def save_step(folder: Path, seed: int) -> None:
    """As a training does, whose newest checkpoint the next one follows."""
    model = torch.nn.Linear(50, 50)
    save_checkpoint(folder, LoopState(step=seed), model, torch.optim.SGD(model.parameters()))


def names(count: int) -> list[str]:
    return [f"{i:04d}.png" for i in range(count)]


WRITERS: dict[str, Callable[[Path, int], Any]] = {
    "json": lambda to, seed: write_json(to / "a.json", noise(seed, 3000).tolist()),
    "scene": save_scene,
    "metrics": lambda to, seed: update_metrics(to, "test", {"views": noise(seed, 3000).tolist()}),
    "poses of a search": lambda to, seed: some_search(seed).save(to),
    "report": lambda to, seed: Report("s", 9, names(500 + seed)).save(to / "report.json"),
    "checkpoint": save_step,
    "picture": lambda to, seed: write_png(to / "a.png", noise(seed, 64, 64, 3)),
    "depth": lambda to, seed: write_depth_png(to / "a.png", noise(seed, 64, 64) / 7.0, 1e-3),
    "video": lambda to, seed: write_video(to / "a.mp4", (noise(seed + i, 64, 64, 3) for i in range(9))),
    "gif": lambda to, seed: write_video(to / "a.gif", (noise(seed + i, 32, 32, 3) for i in range(9))),
    "webp": lambda to, seed: write_video(to / "a.webp", (noise(seed + i, 32, 32, 3) for i in range(9))),
    "mesh ply": lambda to, seed: write_mesh(to / "a.ply", some_mesh(seed)),
    "mesh obj": lambda to, seed: write_mesh(to / "a.obj", some_mesh(seed)),
    "points": lambda to, seed: write_points(to / "a.ply", PointCloud(*[(m := some_mesh(seed)).vertices, m.normals, m.colors])),
    "transforms": lambda to, seed: write_transforms(to, some_cameras(seed), names(40)),
    "colmap": lambda to, seed: write_colmap(to, some_cameras(seed), names(40)),
    "poses_bounds": lambda to, seed: write_poses_bounds(to, some_cameras(seed), names(40), torch.ones(40, 2)),
}
"""What nerfit writes: into a folder, something that depends on a seed."""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Every write beyond ``size`` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@linux
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_full_disk_leaves_the_old_file_and_no_rest(tmp_path: Path, writer: str, share: float) -> None:
    write = WRITERS[writer]
    write(tmp_path, 1)
    before = content(tmp_path)
    size = max(map(len, before.values()))
    assert before and size > 500
    with largest_file(int(share * size)), pytest.raises((OSError, NerfitError)):
        write(tmp_path, 2)
    assert content(tmp_path) == before
    write(tmp_path, 2)
    assert content(tmp_path) != before


@linux
def test_pictures_are_read_where_their_cache_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERFIT_CACHE", str(tmp_path / "cache"))
    Image.fromarray(noise(0, 40, 40, 3)).save(tmp_path / "a.png")
    with largest_file(300), pytest.warns(UserWarning, match="pictures are read again"):
        read = pixels.load_pixels([tmp_path / "a.png"], [(20, 20)])
    assert content(tmp_path / "cache") == {}
    assert torch.equal(read, pixels.load_pixels([tmp_path / "a.png"], [(20, 20)]))
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]


def test_processes_that_write_one_file_take_turns(tmp_path: Path) -> None:
    """Ten threads stand for processes: each file that others see is that of one of them, and nobody's change of metrics.json is lost."""

    def work(number: int) -> None:
        for i in range(20):
            write_json(tmp_path / "a.json", [number] * (1000 + 500 * number))
            update_metrics(tmp_path, f"{number}", {"i": i})

    writers = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        with suppress(FileNotFoundError):
            found = json.loads((tmp_path / "a.json").read_text())
            assert len(found) == 1000 + 500 * found[0] and len(set(found)) == 1
            seen.add(found[0])
    assert len(seen) > 1
    assert json.loads((tmp_path / "metrics.json").read_text()) == {f"{number}": {"i": 19} for number in range(10)}
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "metrics.json"}


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("replace"), replace(self, to)))
    write_json(tmp_path / "a.json", 1)
    assert done == ["fsync", "replace"]
    with atomic_write(tmp_path / "b"):
        pass
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob("*.part"))


# --- Numbers --------------------------------------------------------------------------------------------------------


def spoiled(method: Nerf, bad: range, value: float) -> Nerf:
    """A method whose gradients are not finite in some backward passes."""
    passes = iter(range(10_000))
    first = next(iter(method.parameters()))
    first.register_hook(lambda gradient: gradient * value if next(passes) in bad else gradient)
    return method


def short(scene: Scene, folder: Path, make: Callable[[], Nerf] | None = None, **settings: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = LoopConfig(**({"steps": 30, "log": LogConfig(image_every=0)} | settings))
    return Trainer(make or (lambda: Nerf(NETWORK, scene)), scene, config, folder, quiet=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_skipped_and_counted(scene: Scene, tmp_path: Path, value: float) -> None:
    trainer = short(scene, tmp_path / "run", lambda: spoiled(Nerf(NETWORK, scene), range(5, 9), value))
    trainer.train()
    assert trainer.state.skipped == 4 and trainer.state.step == 30
    assert all(bool(p.isfinite().all()) for p in trainer.method.parameters())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train"]["skipped_steps"] == 4


def test_twenty_in_a_row_are_reported_and_the_checkpoint_before_is_whole(scene: Scene, tmp_path: Path) -> None:
    trainer = short(scene, tmp_path / "run", lambda: spoiled(Nerf(NETWORK, scene), range(5, 99), float("nan")), log=LogConfig(save_every=5))
    with pytest.raises(RunError, match=f"the gradient was not finite {MAX_SKIPPED_IN_A_ROW} times in a row"):
        trainer.train()
    found = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and all(bool(t.isfinite().all()) for t in found[1].values())


def test_weights_that_are_not_finite_are_never_saved(scene: Scene, tmp_path: Path) -> None:
    short(scene, tmp_path / "run", steps=10).train()
    trainer = short(scene, tmp_path / "run", log=LogConfig(save_every=5))
    with torch.no_grad():
        next(iter(trainer.method.parameters()))[0] = float("nan")
    with pytest.raises(RunError, match="after step 15 some weights are not finite"):
        trainer.train()
    found = load_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and found[0].step == 10 and all(bool(t.isfinite().all()) for t in found[1].values())


def test_a_checkpoint_holds_the_counts_of_its_step(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill right after it was written loses no look at the held-out view."""
    real = Trainer._save

    def save_and_die(self: Trainer) -> None:
        real(self)
        raise KeyboardInterrupt

    log = LogConfig(save_every=5, image_every=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_save", save_and_die)
        short(scene, tmp_path / "run", steps=5, log=log).train()
    short(scene, tmp_path / "whole", steps=5, log=log).train()
    killed, whole = load_checkpoint(tmp_path / "run" / "checkpoints"), load_checkpoint(tmp_path / "whole" / "checkpoints")
    assert killed is not None and whole is not None and killed[0].holdout_psnr == whole[0].holdout_psnr is not None


# --- Clocks ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer's clock, a hundredth of a second later whenever it is read; the wall clock jumps by years meanwhile."""
    clock = SimpleNamespace(now=0.0)

    def perf_counter() -> float:
        clock.now += 0.01
        return clock.now

    jumps = random.Random(0)
    monkeypatch.setattr(clock_module, "time", SimpleNamespace(perf_counter=perf_counter))
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    return clock


def test_budgets_do_not_ask_the_wall_clock(scene: Scene, tmp_path: Path, clock: Any) -> None:
    trainer = short(scene, tmp_path / "run", steps=None, seconds=0.995)
    trainer.train()
    assert trainer.state.step == 100 and trainer.state.seconds == pytest.approx(1.0)


def test_the_wall_clock_is_read_nowhere() -> None:
    """But for the dates in results and logs."""
    sources = Path(clock_module.__file__).parents[1].rglob("*.py")
    assert [path.name for path in sources if re.search(r"\btime\.time\(|from time import time\b|time\.localtime", path.read_text())] == []


@pytest.mark.parametrize(("asleep", "counted"), [(3600.0, False), (LONGEST_STEP / 2, True)])
def test_sleep_does_not_eat_the_budget(scene: Scene, tmp_path: Path, clock: Any, asleep: float, counted: bool) -> None:
    """A closed lid, Ctrl-Z or a frozen machine, where the clock counts it; a long step, however, is one."""
    trainer = short(scene, tmp_path / "run", steps=None, seconds=0.505)
    real = trainer.step

    def step() -> Any:
        clock.now += asleep if trainer.state.step == 20 else 0.0
        return real()

    trainer.step = step
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train()
    assert trainer.state.step == (21 if counted else 51)
    assert any("as if the machine had slept" in str(warning.message) for warning in said) != counted


# --- Logs, locks, and what a killed process leaves ------------------------------------------------------------------


@linux
def test_training_goes_on_without_a_log_that_is_full(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = RunLog._events

    def full(self: RunLog, do: str, *arguments: Any, **keywords: Any) -> None:
        with largest_file(100):
            real(self, do, *arguments, **keywords)
            with suppress(OSError):
                self._writer.flush()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "_events", full)
        assert main([*TRAIN, "--steps", "30", "--log.print-every", "5"]) == 0
    said = capsys.readouterr().err
    assert said.count("the log for TensorBoard ends here: File too large") == 1 and "Traceback" not in said
    assert last(here / "run")[0]["step"] == 30


@linux
def test_a_second_training_in_a_folder_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "--steps", "5"]) == 0
    before = content(here / "run")
    with in_use(here / "run"):
        capsys.readouterr()
        assert main([*TRAIN, "--resume", "--steps", "9"]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("nerfit: another training is at work in run: ")
        assert content(here / "run") == before
        assert main(["eval", "run"]) == 0 and main(["render", "run", "--path", "test"]) == 0
    assert main([*TRAIN, "--resume", "--steps", "9"]) == 0
    (here / "new").mkdir()
    with in_use(here / "new"):
        assert main([*TRAIN[:-1], "new", "--steps", "5"]) == 1
    assert content(here / "new") == {}


@linux
def test_a_lock_ends_with_its_process(here: Path) -> None:
    holder = "import time; from pathlib import Path; from nerfit.runs import in_use\nwith in_use(Path()): print(flush=True); time.sleep(99)"
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        with pytest.raises(RunError, match="another training"), in_use(here):
            pass
        process.kill()
    with in_use(here):
        assert list(here.iterdir()) == []


@pytest.mark.parametrize("left", [[], ["config.yaml.part"], ["config.yaml"], ["config.yaml", "scene.json", "cameras.json.part"]])
def test_a_run_that_was_killed_as_it_began_begins_again(here: Path, left: list[str]) -> None:
    assert main([*TRAIN[:-1], "whole", "--steps", "6"]) == 0
    (here / "run").mkdir()
    for name in left:
        shutil.copy(here / "whole" / name.removesuffix(".part"), here / "run" / name)
    again = ["train", "--out", "run", "--resume"] if "config.yaml" in left else [*TRAIN, "--steps", "6"]
    assert main(again) == 0
    assert_same_end(here / "run", here / "whole", 6)
    assert not list((here / "run").rglob("*.part"))


@pytest.mark.parametrize("moved", [0, 1, 3, 99])
def test_seeds_that_were_killed_as_the_best_was_moved(here: Path, moved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    left, real = iter(range(moved)), Path.replace

    def replace(self: Path, to: Path) -> Any:
        if self.parent.parent.name == "seeds" and self.suffix != ".part" and next(left, None) is None:
            raise Killed
        return real(self, to)

    words = [*TRAIN, "--steps", "8", "--seeds", "2"]
    with monkeypatch.context() as patch, suppress(Killed):
        patch.setattr(Path, "replace", replace)
        main(words)
    kept = json.loads((here / "run" / "seeds.json").read_text())["kept"]
    assert main(["train", "--out", "run", "--resume", "--seeds", "2"]) == 0
    assert last(here / "run")[0]["step"] == 8 and last(here / "run")[0]["seed"] == kept
    assert [path.name for path in (here / "run" / "seeds").iterdir()] == [str(1 - kept)]


# --- Disks ----------------------------------------------------------------------------------------------------------


@linux
def test_disks_that_are_full_or_read_only(here: Path) -> None:
    """Real ones, in a mount namespace of their own."""
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here (unshare -Urm)")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(["unshare", "-Urm", sys.executable, __file__, "disks"], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def live_on_odd_disks() -> None:
    """The script's half of that test."""
    said = io.StringIO()

    def nerfit(*words: str) -> tuple[int, str]:
        said.truncate(said.seek(0))
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            code = main(list(words))
        assert "Traceback" not in said.getvalue(), said.getvalue()
        return code, (said.getvalue().splitlines() or [""])[-1]

    assert nerfit(*TRAIN[:-1], "whole", "--steps", "60") == (0, said.getvalue().splitlines()[-1])
    size = checkpoints(Path("whole") / "checkpoints")[0].stat().st_size
    Path("disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", "disk"], check=True)
    Path("disk/ballast").write_bytes(bytes((32 << 20) - 4 * size))  # leaves room for some checkpoints and part of the log
    code, sentence = nerfit(*TRAIN[:-1], "disk/run", "--steps", "60", "--log.save-every", "7")
    assert code == 1 and "No space left on device" in sentence, sentence
    before = last(Path("disk/run"))[0]["step"]
    assert before in range(7, 60, 7) and not list(Path("disk").rglob("*.part"))
    Path("disk/ballast").unlink()
    assert nerfit("train", "--out", "disk/run", "--resume")[0] == 0, said.getvalue()
    assert_same_end(Path("disk/run"), Path("whole"))

    gc.collect()  # of the training that had no room for its log
    subprocess.run(["mount", "-o", "remount,ro", "disk"], check=True)
    kept = content(Path("disk"))
    for words in (["train", "--resume", "--steps", "70", "--out"], ["eval"], ["render", "--path", "test"], ["export", "cameras"]):
        code, sentence = nerfit(*words, "disk/run")
        assert code == 1 and sentence.startswith("nerfit: ") and re.search("Read-only|write-protected", sentence), (words, sentence)
    assert nerfit(*TRAIN[:-1], "disk/new", "--steps", "2") == (1, "nerfit: the run folder disk/new can't be made: Read-only file system.")
    assert nerfit("render", "disk/run", "--path", "test", "--out", "pictures")[0] == 0
    assert content(Path("disk")) == kept


def test_names_of_views_lead_nothing_written_out_of_its_folder(here: Path, blender_folder: Path) -> None:
    for file in blender_folder.glob("transforms_*.json"):
        file.write_text(file.read_text().replace('"./', '"../ball/../ball/'))
    before = content(blender_folder)
    (here / "in" / "side").mkdir(parents=True)
    os.chdir(here / "in" / "side")
    words = [word for word in TINY if not word.startswith("--scene") and word != "--no-evaluate"]
    assert main(["train", "nerf", str(blender_folder), *words, "--scene.allow-outside", "--steps=3", "--out", "run"]) == 0
    assert "../" in (Path("run") / "scene.json").read_text() or "train/r_0" in (Path("run") / "scene.json").read_text()
    for kind in ("transforms", "colmap", "colmap-text", "poses_bounds"):
        assert main(["export", "cameras", "run", "--format", kind]) == 0
    assert main(["render", "run", "--path", "test"]) == 0
    assert main(["inspect", "scene", str(blender_folder), "--scene.allow-outside"]) == 0
    assert {path.name for path in Path().iterdir()} == {"run", "inspect-scene-ball.png"}
    assert [path.name for path in Path("..").iterdir()] == ["side"] and content(blender_folder) == before


# --- Kills at random moments ----------------------------------------------------------------------------------------

SMALL = ["--scene.size=24", "--scene.views=6", "--scene.samples=1", "--scene.test-views=1", "--threads=1", "--steps=40"]
KILLED = {
    "nerf": [*TINY[:-2], "--threads=1", "--steps=40", "--optim.average-from=0.5"],
    "instant": [
        *SMALL,
        "--model.levels=2",
        "--model.log2-entries=10",
        "--model.width=32",
        "--model.samples=1024",
        "--model.march-steps=64",
    ],
}
"""What is killed: `instant` with its default recipe, both evaluated at the end."""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("method", KILLED)
def test_kills_at_random_moments_lose_nothing(here: Path, method: str) -> None:
    """Each as many as $NERFIT_KILLS, else 100, with figures on stdout (pytest -s)."""
    kills = os.environ.get("NERFIT_KILLS", "100")
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, __file__, method, kills], cwd=here, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(method, done.stdout.strip())
    figures = json.loads(done.stdout)
    assert figures.pop("wrong") == []
    assert sum(figures["deaths"].values()) >= int(kills) and figures["finished"] > 3 and figures["leftovers"] <= 2


def spent(pid: int) -> float:
    """Seconds of the processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def jump_clocks(chance: random.Random) -> None:
    """Let this process's wall clock jump by up to years at every look."""
    true = time.time
    time.time = lambda: true() + chance.uniform(-1e8, 1e8)


class Killer:
    """Trains, kills, resumes and compares; ``figures`` are what it counted, among them what went wrong.

    ``first`` is its chance's seed. On ``disk``, a file system of its own, runs also meet a full disk and one that can't be written.
    """

    def __init__(self, method: str, kills: int, first: int = 0, disk: Path | None = None) -> None:
        self.method, self.kills, self.disk, self.chance = method, kills, disk, random.Random(f"{method} {first}")
        self.seeds = 3
        self.figures: dict[str, Any] = {
            "deaths": {},
            "finished": 0,
            "leftovers": 0,
            "before_a_checkpoint": 0,
            "after_training": 0,
            "clock_jumps": 0,
            "full_disks": 0,
            "read_only_disks": 0,
            "wrong": [],
        }

    def train(self, out: str, seed: int, resume: bool, prepare: Callable[[], None] = lambda: None) -> int:
        words = ["--resume"] if resume else [*KILLED[self.method], "--seed", str(seed), "--log.save-every=5", "--log.image-every=20"]
        return child(["train", self.method, "procedural", *words, "--out", out], prepare)

    def run(self) -> None:
        lasts = 0.0
        for seed in range(self.seeds):  # what nothing disturbs; the first fills caches
            _, status, used = os.wait4(self.train(f"whole{seed}", seed, False), 0)
            assert status == 0, Path("log.txt").read_text()
            lasts = used.ru_utime + used.ru_stime
        while sum(self.figures["deaths"].values()) < self.kills:
            self._one_run(self.figures["finished"] % self.seeds, lasts)

    def _one_run(self, seed: int, lasts: float) -> None:
        """A run from nothing to its end, killed again and again."""
        folder = (self.disk or Path()) / "run"
        shutil.rmtree(folder, ignore_errors=True)
        step, code = 0, -1
        while code != 0:
            trouble = self.chance.random()
            if self.disk and trouble < 0.1 and folder.exists():
                code = self._read_only(folder, seed)
            elif self.disk and trouble < 0.2:
                code = self._full(folder, seed, lasts)
            else:
                self.figures["clock_jumps"] += (jumps := trouble > 0.9)
                prepare = functools.partial(jump_clocks, self.chance) if jumps else lambda: None
                code = self._until_death(self.train(str(folder), seed, (folder / "config.yaml").exists(), prepare), lasts)
            if code > 0 and code != 143:
                self._wrong(f"it ended with {code}: {Path('log.txt').read_text()[-1500:]}")
                return
            step = self._look(folder, step)
        state, tensors = last(Path(f"whole{seed}"))
        own, found = last(folder)
        if own != state or found.keys() != tensors.keys() or not all(equal(found[name], tensors[name]) for name in tensors):
            self._wrong(f"seed {seed} ended otherwise: {own}, {state}")
        if list(folder.rglob("*.part")) or "train" not in json.loads((folder / "metrics.json").read_text()):
            self._wrong(f"it left {[str(path) for path in folder.rglob('*')]}")
        self.figures["finished"] += 1

    def _read_only(self, folder: Path, seed: int) -> int:
        """A start on a disk that can't be written: refused in a sentence, nothing changes. -1 if so."""
        before = content(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(self.disk)], check=True)
        code, sentence = self._end_of(self.train(str(folder), seed, (folder / "config.yaml").exists()))
        subprocess.run(["mount", "-o", "remount,rw", str(self.disk)], check=True)
        self.figures["read_only_disks"] += 1
        refused = code == 1 and re.search("Read-only|write-protected", sentence) and content(folder) == before
        return -1 if refused else code or 1

    def _full(self, folder: Path, seed: int, lasts: float) -> int:
        """The disk is full from a random moment on: training ends there in a sentence, or needs no more room. -1 or 0 if so."""
        assert self.disk is not None
        pid = self.train(str(folder), seed, (folder / "config.yaml").exists())
        end = lasts * self.chance.random()
        while alive(pid) and spent(pid) < end:
            time.sleep(0.001)
        with suppress(OSError), (self.disk / "ballast").open("wb", 0) as ballast:
            while True:
                ballast.write(bytes(1 << 12))
        code, sentence = self._end_of(pid)
        (self.disk / "ballast").unlink()
        self.figures["full_disks"] += 1
        return -1 if code == 1 and "No space left" in sentence else code

    @staticmethod
    def _end_of(pid: int) -> tuple[int, str]:
        """A process's exit code and the last line it said."""
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, (Path("log.txt").read_text().splitlines() or [""])[-1]

    def _until_death(self, pid: int, lasts: float) -> int:
        """The exit code of a process, negative for a signal, most often one that is sent to it after a random time of the processor."""
        end = 1.3 * lasts * self.chance.random()
        while alive(pid) and spent(pid) < end:
            time.sleep(0.001)
        if alive(pid):
            os.kill(pid, signal.SIGTERM if self.chance.random() < 0.15 else signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            name = "SIGTERM, saved" if code == 143 else signal.Signals(-code).name if code < 0 else f"exit {code}"
            self.figures["deaths"][name] = self.figures["deaths"].get(name, 0) + 1
            Path("figures.json").write_text(json.dumps(self.figures))
        return code

    def _look(self, folder: Path, before: int) -> int:
        """The step of the newest checkpoint, which never goes back."""
        self.figures["leftovers"] = max(self.figures["leftovers"], len(list(folder.rglob("*.part"))))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = load_checkpoint(folder / "checkpoints")
        step = 0 if found is None else found[0].step
        if said or step < before or len(checkpoints(folder / "checkpoints")) > 4:
            self._wrong(f"from step {before} to {step}: {[str(warning.message) for warning in said]}")
        self.figures["before_a_checkpoint"] += step == 0
        self.figures["after_training"] += step == 40
        return step

    def _wrong(self, what: str) -> None:
        self.figures["wrong"].append(what)


def main_of_killer(method: str, kills: str, first: str = "0", disks: str = "") -> None:
    """``METHOD KILLS [SEED [disks]]``, the last only in a mount namespace of its own (unshare -Urm)."""
    disk = None
    if disks:
        disk = Path("disk")
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", "disk"], check=True)  # six checkpoints of `instant`
    killer, start = Killer(method, int(kills), int(first), disk), time.monotonic()
    killer.run()
    print(json.dumps(killer.figures | {"seconds": round(time.monotonic() - start)}))


if __name__ == "__main__":
    import_all()
    live_on_odd_disks() if sys.argv[1] == "disks" else main_of_killer(*sys.argv[1:])
