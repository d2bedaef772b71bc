"""What is released: a source archive, the wheel that it builds, and a demo from that wheel in an environment without the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT


def run(*command: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "NERFIT"))}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_runs_the_demo_where_there_is_no_checkout(tmp_path: Path) -> None:
    """The wheel comes from the source archive; twine accepts both. Installing PyTorch takes a minute, and needs the package index."""
    dist, bare = tmp_path / "dist", tmp_path / "bare"
    run(sys.executable, "-m", "uv", "build", "--out-dir", dist, ROOT, cwd=tmp_path)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    run(sys.executable, "-m", "uv", "tool", "run", "twine", "check", "--strict", wheel, archive, cwd=tmp_path)
    names = zipfile.ZipFile(wheel).namelist()
    assert {"nerfit/py.typed", "nerfit/recipes/demo.yaml", "nerfit/outputs/web/page.html"} <= set(names)
    assert not [name for name in names if not name.startswith(("nerfit/", "nerfit-"))]
    with tarfile.open(archive) as sources:
        assert "CITATION.cff" in {Path(name).name for name in sources.getnames()}
    venv.create(bare, with_pip=True)
    scripts = bare / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--quiet", "torch==2.13.0", wheel, cwd=tmp_path)
    here = run(scripts / "python", "-c", "import nerfit; print(nerfit.__file__)", cwd=tmp_path)
    assert Path(here.strip()).is_relative_to(bare)
    assert "test PSNR" in run(
        shutil.which("nerfit", path=str(scripts)) or "nerfit", "demo", "--seconds", "2", "--out", "demo", cwd=tmp_path
    )
    assert list((tmp_path / "demo").rglob("*.mp4"))
