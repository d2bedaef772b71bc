"""How fast the viewer's pictures come while somebody moves, and what a browser that stands still costs a training.

    pytest -m slow -s tests/browser/test_viewer_speed.py

takes some six minutes on a machine that does nothing else, and prints what it measures.
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_viewer_browser import CHROMIUM, FLAGS

from nerfit.commands.train_options import request
from nerfit.commands.train_plan import plan_of
from nerfit.training.trainer import Callback, Trainer
from nerfit.viewer.drawing import Viewpoint
from nerfit.viewer.server import Viewer

BLOCK, PAIRS = float(os.environ.get("NERFIT_BLOCK", 40)), 3
"""Seconds of training alone, then watched, in turn; a still browser gets a picture of a second at most every 20."""
WARM = 400
"""Steps before anything is measured."""


@contextlib.contextmanager
def browser(url: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(CHROMIUM), *FLAGS, "--window-size=960,720", f"--user-data-dir={folder}", url]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGCONT)
            os.killpg(process.pid, signal.SIGTERM)


def fly_around(viewer: Viewer, seconds: float) -> tuple[list[int], float]:
    """Pixels of the pictures drawn while the first browser moves all the time, and seconds until it has a sharp one afterwards."""
    panel = next(iter(viewer.panels.values()))
    sizes: list[int] = []
    start = time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        view = int(now * 20) % len(viewer.scene.cameras)
        here = Viewpoint.of(viewer.scene.cameras, view)
        panel.sight.change(viewpoint=Viewpoint(here.position, here.wxyz, here.fov, 4 / 3))
        viewer.draw_next()
        assert panel.sight.frame is not None
        sizes.append(panel.sight.frame.depth.size)
    start = time.perf_counter()
    while viewer.draw_next():
        pass
    return sizes, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.skipif(sys.platform == "win32", reason="browsers are stopped by signals")
def test_a_still_browser_leaves_training_its_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--scene.size=200", "--seconds=100000", "--threads=1", "--log.image-every=0"]
    plan = plan_of(request("instant", "procedural", words))
    scene = plan.load_scene()
    rates: dict[bool, list[float]] = {False: [], True: []}
    with contextlib.closing(Viewer(scene, port=17_400)) as viewer, contextlib.ExitStack() as open_ones:
        viewer.add_training_controls()
        watcher: list[subprocess.Popen[bytes]] = []
        began, first, watched = 0.0, 0, False

        def after_step(trainer: Trainer) -> None:
            nonlocal began, first, watched
            step, now = trainer.state.step, time.perf_counter()
            if step < WARM:
                return
            if not watcher:
                watcher.append(open_ones.enter_context(browser(viewer.url, tmp_path / "profile")))
                end = now + 300
                while not viewer.panels and time.perf_counter() < end:
                    time.sleep(0.2)
                assert viewer.panels, "no browser came"
                viewer.watch(trainer.method, 4 * trainer.state.chunk)
                fly_around(viewer, 3)
                sizes, sharp = fly_around(viewer, 10)
                with capsys.disabled():
                    print(f"\n{len(sizes) / 10:.1f} pictures a second of {statistics.median(sizes):,.0f} pixels while moving, ", end="")
                    print(f"one of {next(iter(viewer.panels.values())).sight.drawn:,} after {sharp:.1f} s of rest")
                os.killpg(watcher[0].pid, signal.SIGSTOP)
                began, first = time.perf_counter(), step
                return
            if watched:
                viewer.between_steps(trainer.method, 4 * trainer.state.chunk, f"step {step}")
                now = time.perf_counter()
            if now - began >= BLOCK:
                rates[watched].append((step - first) / (now - began))
                watched = not watched
                os.killpg(watcher[0].pid, signal.SIGCONT if watched else signal.SIGSTOP)
                began, first = time.perf_counter(), step
                if len(rates[True]) == PAIRS:
                    trainer.interrupted = signal.SIGINT

        trainer = Trainer(lambda: plan.make_method(scene), scene, plan.config, tmp_path, [Callback(1, after_step)], quiet=True)
        trainer.train()
    shares = [w / a for a, w in zip(rates[False], rates[True], strict=True)]
    with capsys.disabled():
        alone, with_it = (np.round(rates[k], 2).tolist() for k in (False, True))
        print(f"steps a second alone {alone}, watched {with_it}: {100 * (1 - statistics.median(shares)):.1f} % slower")
    assert statistics.median(shares) >= 0.9
