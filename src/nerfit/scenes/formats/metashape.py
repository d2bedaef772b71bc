"""Agisoft Metashape's camera file: ``.xml``, written by Export Cameras."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import peek_text, read_xml
from nerfit.scenes.reading.layouts import PHOTOS, Layout, PosedConfig, Shot, check_skew, layout_scene, numbers, pose, refuse_lens, sphere
from nerfit.scenes.reading.picture_files import matching
from nerfit.scenes.scene import Scene

_MODELS = {"frame": "OPENCV", "fisheye": "OPENCV_FISHEYE"}
_UNDISTORT = "export undistorted pictures with their cameras (Export > Undistort Photos)"


@dataclass
class Config(PosedConfig):
    """How Metashape's camera files are read."""


def detect(source: str) -> bool:
    """A folder with an .xml file of Metashape's cameras, or such a file."""
    return _file(source) is not None


def load(source: str, config: Config) -> Scene:
    """The cameras with a transform, in the coordinates of their component (or chunk), which are geocentric where it is georeferenced.

    Metashape Pro's manual, appendix "Camera models": a camera's transform (rows) takes camera to chunk coordinates with OpenCV's axes;
    pixel centres lie at +0.5; cx and cy count from the middle; u = w/2 + cx + x'(f + b1) + y'b2 and v = h/2 + cy + y'f; the terms are
    OpenCV's but for the names of p1 and p2, which are exchanged. Labels are the pictures' names, with or without ending.
    """
    file = _file(source)
    if file is None:
        raise SceneError(f"{source} has no .xml file of Metashape's cameras.")
    chunks = [chunk for chunk in read_xml(file).iter("chunk") if chunk.find("cameras") is not None]
    if not chunks:
        raise SceneError(f"{file} has no cameras; export them from Metashape with File > Export > Export Cameras.")
    chunk = max(chunks, key=lambda chunk: sum(1 for camera in chunk.iter("camera") if camera.find("transform") is not None))
    sensors = {sensor.get("id"): sensor for sensor in chunk.iter("sensor")}
    whole = _similarity(file, chunk.find("transform"))
    parts = {part.get("id"): _similarity(file, part.find("transform")) for part in chunk.iter("component")}
    shots = []
    for camera in chunk.iter("camera"):
        label = camera.get("label") or ""
        transform = camera.find("transform")
        if transform is None:
            continue
        what = f"{file}, {label}"
        sensor = sensors.get(camera.get("sensor_id"))
        if sensor is None:
            raise SceneError(f"{what}: its sensor is not in the file; export the cameras again.")
        matrix = numbers(f"{what}: transform", (transform.text or "").split(), 16).reshape(4, 4)
        to_world = parts.get(camera.get("component_id"), whole)
        moved = to_world @ matrix
        turn = moved[:3, :3] / max(np.abs(np.linalg.det(to_world[:3, :3])) ** (1 / 3), 1e-300)
        shots.append(Shot(label, pose(what, turn.T, moved[:3, 3]), _lens(what, sensor)))
    return layout_scene(Layout("metashape", file, file.parent, shots), config)


def _file(source: str) -> Path | None:
    path = Path(source)
    files = [path] if path.suffix.lower() == ".xml" else matching(path, "*.xml")[:20]
    for file in files:
        text = peek_text(file)
        if "<document" in text and "<chunk" in text:
            return file
    return None


def _similarity(file: Path, node: Element | None) -> np.ndarray:
    """The 4x4 matrix of a chunk's or component's rotation, translation and scale; the identity without them."""
    matrix = np.eye(4)
    if node is not None:
        given = {key: (node.findtext(key) or "").split() for key in ("rotation", "translation", "scale")}
        turn = numbers(f"{file}: rotation", given["rotation"], 9) if given["rotation"] else np.eye(3)
        scale = numbers(f"{file}: scale", given["scale"], 1)[0] if given["scale"] else 1.0
        if not scale > 0:
            raise SceneError(f"{file}: the scale of its chunk or component must be larger than 0, not {scale:g}.")
        matrix[:3, :3] = scale * turn.reshape(3, 3)
        matrix[:3, 3] = numbers(f"{file}: translation", given["translation"], 3) if given["translation"] else 0.0
    return matrix


def _lens(what: str, sensor: Element) -> dict[str, Any]:
    """A sensor's adjusted calibration in the words of transforms.json."""
    calibrations = sensor.findall("calibration")
    adjusted = [c for c in calibrations if c.get("class") == "adjusted"] or calibrations
    kind = (adjusted[-1].get("type") if adjusted else None) or sensor.get("type") or "frame"
    if kind not in (*_MODELS, "spherical"):
        raise refuse_lens(what, kind, _UNDISTORT)
    if not adjusted and kind != "spherical":
        raise SceneError(f"{what}: its sensor has no calibration; align the photos first, or {PHOTOS}.")
    node = adjusted[-1] if adjusted else sensor
    resolution = node.find("resolution")
    size = sensor.find("resolution") if resolution is None else resolution
    width, height = numbers(f"{what}: resolution", [size.get("width"), size.get("height")] if size is not None else None, 2).tolist()
    if kind == "spherical":
        return sphere(what, width, height)
    names = ("f", "cx", "cy", "b1", "b2", "k1", "k2", "k3", "k4", "p1", "p2", "p3", "p4")
    values = numbers(f"{what}: calibration", [node.findtext(name) or "0" for name in names], len(names))
    c = dict(zip(names, values.tolist(), strict=True))
    if c["p3"] or c["p4"]:
        raise refuse_lens(what, f"{kind} with p3 or p4", _UNDISTORT)
    check_skew(what, c["b2"], c["f"], height)
    lens = {"camera_model": _MODELS[kind], "w": width, "h": height, "fl_x": c["f"] + c["b1"], "fl_y": c["f"]}
    lens |= {"cx": width / 2 + c["cx"], "cy": height / 2 + c["cy"]}
    return lens | {name: c[name] for name in ("k1", "k2", "k3", "k4")} | {"p1": c["p2"], "p2": c["p1"]}
