"""What users of other systems meet: Windows and macOS as `other_system` plays them, and a machine without pycolmap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import ROOT
from nerfit.cli import main
from nerfit.commands import demo
from nerfit.files import LOCKS_FOLDERS
from nerfit.training.checkpoints import load_checkpoint

SMALL = ["--scene.size=16", "--scene.views=6", "--scene.samples=1", "--model.log2-entries=8", "--threads=1"]
LOGS = ["--log.save-every=1", "--log.image-every=2"]


def on_system(here: Path, system: str, encoding: str, *commands: list[str]) -> subprocess.CompletedProcess[bytes]:
    words = [word for command in commands for word in (*command, ",")][:-1]
    command = [sys.executable, str(ROOT / "tests" / "other_system.py"), system, encoding, *words]
    return subprocess.run(command, cwd=here, env=os.environ | {"PYTHONUTF8": "0"}, capture_output=True)


@pytest.mark.skipif(not LOCKS_FOLDERS or not Path("/proc/self/maps").exists(), reason="files in use are found in /proc")
@pytest.mark.parametrize("system, encoding", [("windows", "cp936"), ("mac", "utf-8")])
def test_training_and_pictures_on_other_systems(system: str, encoding: str, tmp_path: Path) -> None:
    """A name that the console has no letters for; checkpoints that are replaced by those of a resumed run; a video; help."""
    name = "run \u00fc \u56fe \u2764"
    done = on_system(
        tmp_path,
        system,
        encoding,
        ["train", "instant", "procedural", *SMALL, *LOGS, "--steps=4", "--out", name, "--no-evaluate"],
        ["train", "--resume", "--out", name, "--steps=8", "--no-evaluate"],
        ["eval", name, "--threads=1"],
        ["render", name, "--frames=2", "--threads=1"],
        ["doctor"],
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    found = load_checkpoint(tmp_path / name / "checkpoints")
    assert found is not None and found[0].step == 8
    assert len(list((tmp_path / name / "checkpoints").glob("*.safetensors"))) <= 3
    assert not list((tmp_path / name).rglob("*.part"))
    assert b"test: PSNR" in done.stdout and b"Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] == b"imported PyTorch's compiler: False"  # it takes 3 s and 140 MB


@pytest.mark.slow
@pytest.mark.parametrize("system, encoding", [("windows", "cp936"), ("windows", "cp1252"), ("mac", "utf-8")])
def test_the_demo_on_other_systems(system: str, encoding: str, tmp_path: Path) -> None:
    done = on_system(tmp_path, system, encoding, ["demo", "--seconds", "2", "--out", "demo"])
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    assert b"test PSNR" in done.stdout and list((tmp_path / "demo").rglob("*.mp4"))


def test_photographs_without_pycolmap_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("nerfit.scenes.posing.") and "registration" not in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    for i in range(3):
        Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    assert main(["poses", str(tmp_path)]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "estimated by pycolmap, which is not here" in said[0] and "--scene.format unposed" in said[0]


@pytest.mark.parametrize("encoding", ["cp936", "ascii"])
def test_every_help_can_be_printed_on_a_console_of_few_letters(encoding: str) -> None:
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    script = (
        "import sys; from nerfit.cli import main; sys.exit(main(['train', '--help']) or main(['--help']) or main(['render', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True)
    assert done.returncode == 0 and len(done.stdout.decode(encoding)) > 2000, done.stderr.decode(encoding, "replace")


def test_the_demo_ends_well_on_a_machine_too_slow_to_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nerfit.commands.train_run.train", lambda *_: {"exit_code": 0, "seconds": 25.0})
    monkeypatch.setattr("nerfit.commands.render.run", lambda options: {"videos": ["circle.mp4"]})
    answer = demo.run(demo.Options(out=tmp_path / "run"))
    assert demo.text(answer).splitlines()[1] == "video: circle.mp4" and demo.text(answer).startswith("no test view evaluated after 25 s")
