"""The viewer in a real browser without a screen: the page loads, and its canvas shows the field as it is drawn directly, and frusta."""

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nerfit.scenes.images import resize_area
from nerfit.viewer.server import Viewer
from viewer_ball import Ball, ball_scene

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--use-angle=swiftshader", "--disable-background-networking")
PATIENCE = 300.0


def wait(what: Callable[[], object], words: str) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, words
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_a_browser_shows_the_field_and_the_training_cameras(tmp_path: Path) -> None:
    with contextlib.closing(Viewer(ball_scene(), port=17_300)) as viewer:
        viewer.watch(Ball(), 4096)
        threading.Thread(target=viewer.serve, daemon=True).start()
        size = "--window-size=640,480"
        command = [str(CHROMIUM), *FLAGS, size, f"--user-data-dir={tmp_path}", viewer.url]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                wait(lambda: viewer.panels, "no browser came")
                panel = next(iter(viewer.panels.values()))
                wait(lambda: panel.sight.frame and panel.sight.next_size(viewer.paces["rgb"]) is None, "no sharp picture was drawn")
                time.sleep(5)
                width, height = panel.client.camera.image_width, panel.client.camera.image_height
                with_frusta = panel.client.get_render(height, width, transport_format="png")[..., :3]
                panel.cameras.shown.value = False
                panel.cameras.show_frusta()
                time.sleep(5)
                alone = panel.client.get_render(height, width, transport_format="png")[..., :3]
            finally:
                browser.terminate()
        assert panel.sight.frame is not None
        direct = panel.sight.frame.image
        shown = resize_area(alone, direct.shape[1], direct.shape[0]).astype(int)
        assert np.abs(shown - direct).mean() < 5 and direct.std() > 20
        assert (np.abs(with_frusta.astype(int) - alone).max(-1) > 30).mean() > 0.002
