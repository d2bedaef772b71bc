"""The commands as a user types them: answers on stdout, sentences on stderr, exit codes, and files."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import ROOT
from nerfit import __version__
from nerfit.cli import COMMANDS, main
from nerfit.errors import BLANK, ConfigError
from nerfit.evaluation.evaluate import why_blank
from nerfit.recipes.loading import shipped_recipes
from nerfit.scenes.reading.colmap_model import read_images
from nerfit.training.checkpoints import load_checkpoint

TINY = [
    *("--scene.size=24", "--scene.views=6", "--scene.samples=1", "--scene.test-views=2", "--scene.val-views=1", "--model.depth=2"),
    *("--model.width=16", "--model.skips", "--model.samples=8", "--model.fine-samples=8", "--model.rays=64", "--threads=1"),
    "--log.image-every=0",
]


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def refusal(self) -> str:
        """The one sentence of a command that failed as it should."""
        assert self.code == 1 and self.out == "", self
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("nerfit:")] == lines[-1:], self.err
        assert "Traceback" not in self.err and lines[-1].endswith((".", "?", ")")), self.err
        return lines[-1].removeprefix("nerfit: ")


def nerfit(*argv: Any) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in argv])
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A finished run, and what training it answered."""
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, nerfit("train", "nerf", "procedural", *TINY, "--steps", 40, "--out", run, "--json")


@pytest.fixture
def run(trained: tuple[Path, Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained[0], tmp_path / "run")
    return Path("run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares inspect its seconds of large matrix products."""
    monkeypatch.setattr("nerfit.commands.inspect_parts.matrix_peak", lambda *_: 1e9)


@pytest.fixture
def picture(here: Path) -> Path:
    rows, columns = np.mgrid[:9, :12]
    Image.fromarray(np.stack([rows * 20, columns * 20, rows * columns], -1).astype(np.uint8)).save("photo.png")
    return Path("photo.png")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def frame_count(video: str) -> int:
    with av.open(video) as container:
        return sum(1 for _ in container.decode(video=0))


def test_training_answers_in_json_and_leaves_a_run(trained: tuple[Path, Answer]) -> None:
    folder, answer = trained
    detected, placed = answer.err.splitlines()
    assert answer.code == 0 and detected == "procedural: procedural scene"
    assert re.fullmatch(r"procedural-object: \d+ views, \d+ of them to train on; object, from 2 to 6", placed)
    found = answer.data
    assert (found["run"], found["method"], found["source"], found["steps"], found["exit_code"]) == (
        str(folder),
        "nerf",
        "procedural",
        40,
        0,
    )
    assert 5 < found["test"]["psnr"] < 40 and len(found["test"]["views"]) == 2
    assert {p.name for p in folder.iterdir()} > {"config.yaml", "scene.json", "cameras.json", "metrics.json", "checkpoints", "renders"}
    assert any(p.name.startswith("events.out.tfevents") for p in folder.iterdir())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test"] == found["test"] and metrics["train"]["steps"] == 40
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["method"], config["format"], config["model"]["width"], config["nerfit"]) == ("nerf", "procedural", 16, __version__)


def test_a_blank_field_is_said_and_has_an_exit_code_of_its_own(here: Path) -> None:
    """Without learning the field stays a fog; the shortest trainings may have no more than begun."""
    words = ("train", "nerf", "procedural", *TINY, "--optim.lr", 1e-9)
    answer = nerfit(*words, "--steps", 250, "--out", "run", "--json")
    assert answer.code == answer.data["exit_code"] == BLANK == 3
    assert (
        "no more than pictures of one colour would" in answer.data["blank"]
        and "the field is empty or of one colour" in answer.data["blank"]
    )
    assert nerfit("eval", "run").code == 0
    assert nerfit(*words, "--steps", 5, "--out", "short").code == 0


def test_what_is_learned_by_heart_is_told_from_what_is_empty() -> None:
    test = {"split": "test", "psnr": 12.4, "psnr_one_colour": 12.0}
    assert "matter stands right before each camera, or the poses are wrong" in (why_blank(test, 33.9) or "")
    assert "the field is empty or of one colour" in (why_blank(test, 12.1) or "")
    assert why_blank(test | {"psnr": 12.6}, 33.9) is None
    assert why_blank({"psnr": 57.0, "psnr_one_colour": 100.0, "split": "test"}, 57.0) is None  # the truth is of one colour


def test_training_tells_a_person_the_same(here: Path) -> None:
    answer = nerfit("train", "nerf", "procedural", *TINY, "--steps", 3)
    assert answer.code == 0
    assert re.search(r"^3 steps in \d+ s of training -> runs/procedural-nerf\ntest: PSNR \d+\.\d\d dB, SSIM ", answer.out)
    assert "2 views; full-size test views" in answer.out and "not evaluated: lpips_vgg" in answer.out


@pytest.mark.parametrize(
    ("kind", "written"),
    [("transforms", "transforms.json"), ("colmap", "sparse/0"), ("colmap-text", "sparse/0"), ("poses_bounds", "poses_bounds.npy")],
)
def test_cameras_are_exported(run: Path, kind: str, written: str) -> None:
    answer = nerfit("export", "cameras", run, "--format", kind, "--json")
    assert (answer.code, answer.data) == (0, {"written": str(run / "exports" / kind / written)})
    assert nerfit("export", "cameras", run, "--format", kind, "--out", "here").out == f"{Path('here') / written}\n"
    cameras = json.loads((run / "cameras.json").read_text())
    if kind == "transforms":
        frames = json.loads(Path("here/transforms.json").read_text())["frames"]
        assert [frame["transform_matrix"][:3] for frame in frames] == cameras["original_c2w"]
    elif kind == "poses_bounds":
        assert np.load("here/poses_bounds.npy").shape == (len(cameras["original_c2w"]), 17)
    else:
        assert len(read_images(Path("here/sparse/0"))) == len(cameras["original_c2w"])


def test_exports_of_nothing_are_refused(here: Path) -> None:
    assert nerfit("export", "cameras", "nowhere").refusal.startswith("nowhere is not a run folder")
    assert "did you mean 'cameras'?" in nerfit("export", "camera", "run").refusal
    assert nerfit("export", "--help").code == 0 == nerfit("export", "cameras", "--help").code


def test_runs_without_a_name_are_numbered(here: Path) -> None:
    short = [*TINY, "--steps", 1, "--no-evaluate", "--json"]
    made = [nerfit("train", "nerf", "procedural", *short).data["run"] for _ in range(3)]
    assert made == ["runs/procedural-nerf", "runs/procedural-nerf-2", "runs/procedural-nerf-3"]
    forward = nerfit("train", "nerf", "procedural:forward-facing", "--scene.test-views", *short)
    assert forward.code == 1  # the flag lost its value: nothing was made
    forward = nerfit("train", "nerf", "procedural:forward-facing", "--recipe", "nerf-small", *short)
    assert forward.data["run"] == "runs/procedural-forward-facing-nerf"
    assert nerfit("train", "nerf", "procedural", "--resume", "--steps", 2, "--json").data["run"] == made[-1]


@pytest.mark.parametrize(
    "words",
    [
        [*TINY, "--steps", "1", "nerf", "procedural"],
        ["--model.batching", "image", *TINY, "nerf", "procedural", "--steps", "1"],
        ["nerf", "procedural", *TINY, "--steps", "1", "--model.batching", "image"],
        ["--json", "nerf", "procedural", *TINY, "--steps=1"],
        ["--recipe", "nerf", "nerf", "procedural", *TINY, "--steps", "1"],
        ["--recipe", "mine.yaml", "nerf", *TINY, "--steps", "1", "--model.batching", "image"],
    ],
)
def test_method_and_scene_stand_anywhere(here: Path, words: list[str]) -> None:
    if "mine.yaml" in words:
        Path("mine.yaml").write_text("method: nerf\nmodel: {jitter: false}\n")
        words = [*words[:3], "procedural", *words[3:]]
    assert nerfit("train", *words, "--no-evaluate", "--out", "run").code == 0
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["method"], config["source"], config["model"]["batching"]) == ("nerf", "procedural", "image")


def test_training_goes_on_and_starts_from_another(run: Path) -> None:
    more = nerfit("train", "nerf", "procedural", "--out", run, "--resume", "--steps", 45, "--json", "--no-evaluate")
    assert more.data["steps"] == 45
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["width"] == 16
    enough = nerfit("train", "--out", run, "--resume", "--no-evaluate")
    assert enough.code == 0 and "has had its 45 steps already" in enough.err
    start = nerfit(
        "train", "nerf", "procedural", *TINY, "--init", run, "--steps", 1, "--optim.lr", "1e-12", "--out", "new", "--no-evaluate"
    )
    assert start.code == 0
    (_, old), (_, new) = (load_checkpoint(Path(f) / "checkpoints") or (None, {}) for f in ("run", "new"))
    assert all(np.allclose(old[k], new[k], atol=1e-6) for k in old if k.startswith("model."))


def test_judging_rewrites_its_own_part_only(run: Path) -> None:
    before = json.loads((run / "metrics.json").read_text())
    answer = nerfit("eval", run, "--split", "val", "--json")
    assert answer.code == 0 and answer.data["split"] == "val" and "1/1" in answer.err
    after = json.loads((run / "metrics.json").read_text())
    assert after == before | {"val": answer.data}
    assert {p.name for p in (run / "renders" / "eval_val").iterdir()} == {"000.png", "strips"}
    assert Image.open(run / "renders" / "eval_val" / "000.png").size == (24, 24)
    assert Image.open(run / "renders" / "eval_val" / "strips" / "000.png").size[0] >= 72
    again = nerfit("eval", run)
    assert again.code == 0 and again.out.startswith("test: PSNR ")
    test = json.loads((run / "metrics.json").read_text())["test"]
    assert (test["psnr"], test["ssim"]) == pytest.approx((before["test"]["psnr"], before["test"]["ssim"]))


@pytest.mark.parametrize("path", ["circle", "spiral"])
def test_a_path_is_drawn_in_every_quantity(run: Path, path: str) -> None:
    names = ["rgb", "depth", "disparity", "opacity", "normal"]
    answer = nerfit("render", run, "--path", path, "--what", ",".join(names), "--frames", 3, "--factor", 2, "--json")
    assert answer.code == 0, answer.err
    assert answer.data["folder"] == f"run/renders/{path}" and answer.data["frames"] == 3
    for name, video in zip(names, answer.data["videos"], strict=True):
        frames = [np.asarray(Image.open(run / "renders" / path / name / f"{i:04d}.png")) for i in range(3)]
        assert all(frame.shape[:2] == (12, 12) for frame in frames)
        assert Path(video).stem == name and frame_count(video) == 3
    rgb = [np.asarray(Image.open(run / "renders" / path / "rgb" / f"{i:04d}.png")).astype(int) for i in range(3)]
    assert np.abs(rgb[0] - rgb[1]).max() > 0


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_video_may_hold_all_quantities_side_by_side(run: Path, kind: str) -> None:
    words = ("--path", "circle", "--what", "rgb,depth,disparity", "--frames", 3, "--side-by-side", "--video", kind, "--json")
    answer = nerfit("render", run, *words, "--out", f"film-{kind}")
    assert answer.code == 0 and [Path(video).name for video in answer.data["videos"]] == [f"rgb-depth-disparity.{kind}"]
    with Image.open(answer.data["videos"][0]) as video:
        assert (video.format, video.size, getattr(video, "n_frames", 1)) == (kind.upper(), (72, 24), 3)
        picture = np.asarray(video.convert("RGB")).astype(int)
    rgb = np.asarray(Image.open(f"film-{kind}/rgb/0000.png")).astype(int)
    assert np.abs(picture[:, :24] - rgb).mean() < 10


def test_a_path_of_ones_own_and_a_folder_of_ones_own(run: Path) -> None:
    cameras = json.loads((run / "cameras.json").read_text())["normalised"]
    poses = [[*row, [0, 0, 0, 1]] for row in cameras["c2w"][:2]]
    Path("mine.json").write_text(json.dumps({"c2w": poses, "width": 16, "height": 8, "focal": 20}))
    answer = nerfit("render", run, "--path", "mine.json", "--what", "rgb", "--out", "drawn")
    assert answer.code == 0 and answer.out.startswith("drawn/rgb.")
    assert Image.open("drawn/rgb/0001.png").size == (16, 8)
    one = nerfit("render", run, "--path", "test", "--frames", 1, "--what", "rgb", "--out", "one")
    assert one.out == "one\n" and [p.name for p in Path("one").rglob("*.*")] == ["0000.png"]


def test_a_picture_is_fitted_evaluated_and_drawn_from_anywhere(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--model.depth=1", "--model.width=8", "--model.pixels=64", "--steps=5", "--threads=1", "--json"]
    trained = nerfit("train", "image", picture, *words)
    assert trained.code == 0 and trained.data["run"] == "runs/photo-image" and trained.data["test"]["psnr"] > 3
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert nerfit("eval", "../runs/photo-image", "--json").data["views"][0]["view"] == "photo.png"
    assert nerfit("render", "../runs/photo-image", "--what", "rgb").code == 0
    assert "renders colour only" in nerfit("render", "../runs/photo-image", "--what", "depth").refusal
    (tmp_path / "photo.png").unlink()
    assert "photo.png" in nerfit("eval", "../runs/photo-image").refusal
    Image.new("RGB", (12, 9)).save("other.png")
    assert nerfit("eval", "../runs/photo-image", "--scene", "other.png", "--json").data["views"][0]["view"] == "other.png"


@pytest.mark.parametrize("source", ["procedural", "procedural:forward-facing"])
@pytest.mark.parametrize(("part", "expected"), [("scene", "views"), ("rays", "directions"), ("field", "density"), ("nerf", "loss rgb")])
def test_each_part_alone(here: Path, no_peak: None, part: str, expected: str, source: str) -> None:
    answer = nerfit("inspect", part, source, *TINY, "--json", "--out", "part.png")
    assert answer.code == 0, answer.err
    assert expected in answer.data and answer.data["picture"] == "part.png"
    assert np.asarray(Image.open("part.png")).std() > 0
    assert {p.name for p in here.iterdir()} == {"part.png"}


def test_a_picture_alone(picture: Path, no_peak: None) -> None:
    answer = nerfit("inspect", "image", picture, "--model.pixels", 20, "--model.width", 8)
    assert answer.code == 0 and "parameters" in answer.out and Path("inspect-image-photo.png").exists()
    answer = nerfit("inspect", "scene", picture)
    assert answer.code == 0 and "12x9" in answer.out
    assert "no density" in nerfit("inspect", "field", picture).refusal
    assert "not on rays" in nerfit("inspect", "rays", picture).refusal


def test_what_there_is() -> None:
    methods = nerfit("methods", "--json").data
    assert set(methods) >= {"nerf", "image"} and methods["nerf"].startswith("Coarse and fine networks")
    assert nerfit("recipes", "--json").data == shipped_recipes()
    listed = nerfit("recipes").out.splitlines()
    assert len(listed) == len(shipped_recipes()) and any(line.split()[0] == "lego" for line in listed)
    doctor = nerfit("doctor", "--json").data
    assert doctor["nerfit"] == __version__ and "GiB free" in doctor["device in use"] and "video" in doctor
    assert all(line.split()[0] for line in nerfit("doctor").out.splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split("[<>=]", package)[0] for package in project["dependencies"]}
    extras = {f"extra {name}" for name in project["optional-dependencies"] if name not in ("dev", "docs", "all")}
    assert doctor.keys() >= needed | extras, (needed | extras) - doctor.keys()
    assert nerfit("--version").out == nerfit("-V").out == f"nerfit {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [
        [], ["--help"], ["-h"], ["help"], ["export", "--help"], *([*command.split(), "--help"] for command in COMMANDS),
        ["train", "nerf", "--help"], ["train", "-h"],
        ["train", "image", "--help"], ["train", "nerf", "procedural", "--help"], ["train", "nerf", "/nowhere", "--help"],
        ["train", "nerf", "--recipe", "lego", "--help"], ["inspect", "scene", "--help"], ["inspect", "nerf", "procedural", "--help"],
        ["train", "nerf", "--resume", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_help_helps(here: Path, words: list[str]) -> None:
    answer = nerfit(*words)
    assert answer.code == 0 and answer.err == "" and len(answer.out) > 80
    if words[:1] == ["train"] and "lego" not in words:
        assert "--model." in answer.out and "--optim.lr" in answer.out and "Learning rate at the start" in " ".join(answer.out.split())
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], "there is no command 'trian', did you mean 'train'?"),
        (["train"], "a METHOD and a SCENE are needed"),
        (["train", "nerf"], "a METHOD and a SCENE are needed"),
        (["train", "nrf", "procedural"], "there is no method 'nrf', did you mean 'nerf'?"),
        (["train", "nerf", "/no/where"], "no known scene at '/no/where'"),
        (["train", "nerf", "procedural:objct"], "procedural:object"),
        (["train", "nerf", "procedural", *TINY, "--scene.near", "6"], "near (6) must be smaller than far (6)"),
        (
            ["train", "nerf", "procedural", *TINY, "--scene.near", "7", "--scene.far", "5", "--out", "new"],
            "near (7) must be smaller than far (5)",
        ),
        (["train", "nerf", "procedural", *TINY, "--model.samples", "2", "--out", "new"], "model.samples must be at least 3"),
        (["train", "nerf", "procedural", *TINY, "--precision", "fp16", "--device", "cpu", "--out", "new"], "fp16 needs a GPU"),
        (["train", "nerf", "procedural", *TINY, "--init", "nothing", "--out", "new"], "--init nothing"),
        (["train", "nerf", "procedural", "--resume"], "no run of nerf on procedural under runs/"),
        (["train", "nerf", "procedural", "--resume", "--out", "nothing"], "nothing is not a run folder"),
        (["train", "--resume"], "--resume needs --out RUN"),
        (["train", "nerf", "procedural", *TINY, "--out", "/dev/null/run"], "/dev/null/run"),
        (["train", "nerf", "procedural", "--modle.width", "3"], "--model.width"),
        (["eval"], "is not a run folder"),
        (["eval", "nothing"], "nothing is not a run folder"),
        (["eval", "nothing", "--splt", "val"], "there is no option --splt here, did you mean '--split'?"),
        (["eval", "nothing", "more"], "'more' is one value or argument too many"),
        (["render", "nothing"], "nothing is not a run folder"),
        (["render", "nothing", "--frames", "few"], "--frames"),
        (["inspect"], "inspect what? One of scene, rays, field"),
        (["inspect", "feild", "procedural"], "did you mean 'field'?"),
        (["inspect", "scene"], "SCENE"),
        (["inspect", "scene", "/no/where"], "no known scene at '/no/where'"),
        (["methods", "all"], "'all' is one value or argument too many"),
        (["doctor", "--jsn"], "did you mean '--json'?"),
        (["demo", "--second", "1"], "did you mean '--seconds'?"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_mistakes_are_reported_in_one_sentence(here: Path, words: list[str], expected: str) -> None:
    assert expected in nerfit(*words).refusal
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "nerf", "procedural", *TINY, "--out", "run"], "run exists already: choose another --out, or add --resume"),
        (["train", "nerf", "procedural", "--out", "run/config.yaml"], "run/config.yaml exists already"),
        (["train", "image", "procedural", "--out", "run", "--resume"], "run is a run of nerf, not of image"),
        (["train", "nerf", "procedural", "--out", "run", "--resume", "--model.width", "17"], "the checkpoint does not fit"),
        (["train", "nerf", "procedural", "--out", "run", "--resume", "--optim.optimizer", "sgd"], "the optimiser it began with, adam"),
        (["train", "nerf", "procedural", "--out", "run", "--resume", "--steps", "0"], "steps must be above 0"),
        (["train", "nerf", "procedural", "--out", "run", "--resume", "--scene.far", "1"], "must be smaller than far"),
        (["eval", "run", "--split", "tst"], "has no tst views"),
        (["eval", "run", "--scene", "procedural:nothing"], "procedural:nothing"),
        (["eval", "run", "--device", "tpu"], "device 'tpu' can't be used here"),
        (["render", "run", "--path", "circel"], "did you mean 'circle'?"),
        (["render", "run", "--path", "missing.json"], "missing.json can't be read"),
        (["render", "run", "--frames", "0"], "at least 1 frame"),
        (["render", "run", "--factor", "0"], "--factor must be above 0"),
        (["render", "run", "--what", "rgb,dpth"], "'dpth' can't be rendered, did you mean 'depth'?"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_a_refused_command_leaves_a_run_as_it_was(run: Path, words: list[str], expected: str) -> None:
    before = contents(run)
    assert expected in nerfit(*words).refusal
    assert contents(run) == before and {p.name for p in Path().iterdir()} == {"run"}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda text: text[: len(text) // 2 - 3],
    "not yaml": lambda _: b"a: [1\nb: }",
    "bytes": lambda _: bytes(range(256)),
    "a list": lambda _: b"- 1\n- 2\n",
    "no method": lambda text: text.replace(b"method: nerf\n", b""),
    "unknown method": lambda text: text.replace(b"method: nerf", b"method: nrff"),
    "null method": lambda text: text.replace(b"method: nerf", b"method:"),
    "unknown key": lambda text: text.replace(b"  depth: 2", b"  dept: 2"),
    "wrong type": lambda text: text.replace(b"  depth: 2", b"  depth: two"),
    "a scalar for a section": lambda text: re.sub(rb"model:\n(  .*\n)+", b"model: 3\n", text),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_configuration_is_named(run: Path, damage: str) -> None:
    path = run / "config.yaml"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for words in (["eval", run], ["render", run], ["train", "--out", run, "--resume"]):
        answer = nerfit(*words)
        if damage == "half" and answer.code == 0:
            continue  # what is left may still be a whole configuration
        assert "run/config.yaml" in answer.refusal


@pytest.mark.parametrize(("name", "text"), [("scene.json", "{"), ("scene.json", "{}"), ("cameras.json", "[]"), ("cameras.json", "\0")])
def test_other_damaged_files_are_named(run: Path, name: str, text: str) -> None:
    (run / name).write_text(text)
    assert "run" in nerfit("render", run).refusal


def test_a_run_without_checkpoints_is_named(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert "run has no checkpoint yet" in nerfit("eval", run).refusal


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(ConfigError, match="there is no method"):
        main(["train", "nrf", "procedural", "--debug"])


def process(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=600, **options)


def test_as_a_program_of_its_own(here: Path) -> None:
    done = process(sys.executable, "-m", "nerfit", "train", "nerf", "/no/where")
    assert (done.returncode, done.stdout) == (1, "") and re.fullmatch(r"nerfit: no known scene .*\n", done.stderr)
    program = shutil.which("nerfit", path=str(Path(sys.executable).parent))
    if program is not None:
        done = process(program, "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"nerfit {__version__}\n", "")


def test_what_needs_no_tensors_starts_without_pytorch() -> None:
    """Importing it takes seconds, which a question about options should not."""
    asked = ["methods", "recipes", *(f"{words} --help" for words in ("", "eval", "render", "view", "bench memory", "export", "inspect"))]
    program = "import sys; from nerfit.cli import main; print([main(w.split()) for w in sys.argv[1:]], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *asked], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{[0] * len(asked)} False", done.stderr


def test_a_reader_who_stops_early_is_no_error(here: Path) -> None:
    done = process("sh", "-c", f"PYTHONUNBUFFERED=1 {sys.executable} -m nerfit recipes | head -n 1")
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.slow
def test_the_demo(here: Path) -> None:
    answer = nerfit("demo", "--seconds", 10, "--json")
    assert answer.code == 0 and answer.data["run"] == "runs/demo" and answer.data["psnr"] > 12
    assert frame_count(answer.data["video"]) >= 24


def test_a_run_goes_on_only_on_its_own_scene_and_terms(run: Path) -> None:
    go_on = ("train", "nerf", "--out", run, "--resume", "--steps", 41)
    before = contents(run)
    assert "cameras differ" in nerfit("train", "nerf", "procedural:forward-facing", *go_on[2:]).refusal
    assert "leave out --recipe" in nerfit(*go_on, "--recipe", "nerf-small").refusal
    assert "leave out --init" in nerfit(*go_on, "--init", run).refusal
    assert contents(run) == before


def test_pictures_drawn_before_are_never_overwritten(run: Path) -> None:
    folders = [nerfit("render", run, "--frames", 2, "--what", "rgb", "--json").data["folder"] for _ in range(2)]
    assert folders == ["run/renders/circle", "run/renders/circle-2"]
    assert "exists already" in nerfit("render", run, "--frames", 2, "--out", "run/renders/circle").refusal


def test_metrics_that_a_small_picture_has_not_are_reported_as_missing(picture: Path) -> None:
    train = nerfit("train", "image", picture, "--model.width=8", "--steps=2", "--json")
    assert "ssim" not in train.data["test"] and "too small" in train.data["test"]["missing"][-1]
