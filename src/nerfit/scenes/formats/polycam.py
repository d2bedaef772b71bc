"""Polycam's raw data: ``keyframes`` with pictures, cameras and, where the phone measures them, depths."""

from dataclasses import dataclass
from pathlib import Path

from nerfit.errors import SceneError
from nerfit.files import read_json
from nerfit.scenes.reading.layouts import Layout, PosedConfig, Shot, layout_scene, numbers
from nerfit.scenes.reading.picture_files import matching, picture_files
from nerfit.scenes.scene import Scene

_CORRECTED = (("corrected_images", "images"), "corrected_cameras")
_CAPTURED = (("images",), "cameras")


@dataclass
class Config(PosedConfig):
    """How Polycam's raw data is read."""

    depths: bool = False
    """Read the depth maps in keyframes/depth."""


def detect(source: str) -> bool:
    """A folder with keyframes that hold corrected_cameras or cameras, or that folder itself."""
    return _choice(Path(source)) is not None


def load(source: str, config: Config) -> Scene:
    """The key frames that have a camera; the corrected cameras, where there are any, with the corrected pictures.

    Polycam's documentation of raw data: t_00 to t_23 are the rows of the camera's pose in the world with ARKit's (OpenGL's) axes; fx fy
    cx cy are in pixels of the width x height picture; depth maps are millimetres.
    """
    chosen = _choice(Path(source))
    if chosen is None:
        raise SceneError(f"{source} has no keyframes/corrected_cameras or keyframes/cameras; export raw data from Polycam.")
    pictures, cameras = chosen
    keyframes = cameras.parent
    named = {file.stem: file for file in picture_files(pictures)}
    depths = {file.stem: file for file in picture_files(keyframes / "depth")} if config.depths else {}
    shots = []
    for file in matching(cameras, "*.json"):
        camera = read_json(file)
        if not isinstance(camera, dict):
            raise SceneError(f"{file} is no camera: it should be an object with fx, fy, cx, cy and t_00 to t_23.")
        rows = [[camera.get(f"t_{i}{j}") for j in range(4)] for i in range(3)]
        lens = {"fl_x": camera.get("fx"), "fl_y": camera.get("fy"), "cx": camera.get("cx"), "cy": camera.get("cy")}
        lens |= {"w": camera.get("width"), "h": camera.get("height")}
        path = named.get(file.stem, pictures / f"{file.stem}.jpg")
        shots.append(Shot(path.name, numbers(f"{file}: t_00 to t_23", rows, 3, 4), lens, path, depth=depths.get(file.stem)))
    root = keyframes.parent if keyframes.name == "keyframes" else keyframes
    return layout_scene(Layout("polycam", cameras, root, shots), config, config.depths)


def _choice(source: Path) -> tuple[Path, Path] | None:
    """The folders of pictures and of cameras, corrected ones first."""
    for keyframes in (source / "keyframes", source):
        for names, cameras in (_CORRECTED, _CAPTURED):
            pictures = next((keyframes / name for name in names if (keyframes / name).is_dir()), None)
            if pictures is not None and matching(keyframes / cameras, "*.json"):
                return pictures, keyframes / cameras
    return None
