"""Every reader on damaged scenes: it reads them or says in one sentence why not, in bounded time and memory.

As a script, ``test_fuzz_readers.py FIRST COUNT FOLDER READER...``, it loads scenes damaged by the seeds FIRST, FIRST + 1, … and
prints what went wrong, as JSON lines that begin with reader and seed; those in hand are in FOLDER/now when the process dies.
"""

import contextlib
import copy
import faulthandler
import itertools
import json
import math
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FOV, HEIGHT, WIDTH, around, ball_picture
from layouts import LAYOUTS
from nerfit.cameras.rotations import matrix_to_quaternion
from nerfit.errors import NerfitError
from nerfit.plugins import available
from nerfit.scenes import scene_format
from nerfit.scenes.scene import Scene

SECONDS, PATIENCE, BYTES = 10, 60, 2 << 30
"""What one scene may take: of the processor, of time waited, and of memory above what the process has before."""
FORMATS = {name: scene_format(name) for name in available("nerfit.scenes")}
QUICK, FEW, THOROUGH = 50, 8, 10_000
"""Damaged scenes of each format, and of each layout of other programs, in the fast test, and in the slow one."""


class Reader(NamedTuple):
    """How a tiny valid scene of a format (a key's first word) is written into a folder, what there is its source, how it is read."""

    write: Callable[[Path], object]
    source: str = "."
    options: dict[str, Any] = {}
    readable: bool = True
    """Whether the whole scene can be read; photographs of some pixels can't be posed."""


POSES = [around(2 * math.pi * i / 5, 0.3 + 0.1 * i) for i in range(5)]


def save(file: Path, view: int, channels: int = 4) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ball_picture(POSES[view])[..., :channels]).save(file)


def write_blender(folder: Path, **frame: Any) -> None:
    for split, views in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,))):
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": POSES[i].tolist(), **frame} for i in views]
        for i in views:
            save(folder / split / f"r_{i}.png", i)
        meta = {"camera_angle_x": FOV, "near": 2.5, "far": 5.5, "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(meta))


def write_linemod(folder: Path) -> None:
    write_blender(folder, intrinsic_matrix=[[12.0, 0, 4.5], [0, 12.0, 3.5], [0, 0, 1]])
    for file in folder.glob("*.json"):
        file.write_text(file.read_text().replace("r_", "r_").replace('", "transform', '.png", "transform'))


def write_llff(folder: Path) -> None:
    for i in range(5):
        save(folder / "images" / f"{i}.jpg", i, 3)
    matrix = [np.concatenate([-p[:3, 1:2], p[:3, :1], p[:3, 2:], [[HEIGHT], [WIDTH], [12.0]]], 1) for p in POSES]
    np.save(folder / "poses_bounds.npy", np.stack([np.append(m.ravel(), (2.0, 6.0)) for m in matrix]))


def write_transforms(folder: Path) -> None:
    frames = []
    for i, c2w in enumerate(POSES):
        save(folder / "images" / f"{i}.png", i, 3)
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": c2w.tolist(), "k1": 0.01})
        depth = np.random.default_rng(i).integers(0, 9000, (HEIGHT, WIDTH), dtype=np.uint16)
        if i % 2:
            Image.fromarray(depth).save(folder / f"depth{i}.png")
        else:
            np.save(folder / f"depth{i}.npy", depth / 1000)
        frames[i]["depth_file_path"] = f"depth{i}.{'png' if i % 2 else 'npy'}"
    meta = {
        "fl_x": 12.0,
        "fl_y": 12.5,
        "cx": 5.0,
        "cy": 4.0,
        "w": WIDTH,
        "h": HEIGHT,
        "k2": 0.02,
        "p1": 0.001,
        "aabb_scale": 4,
        "ply_file_path": "points.ply",
    }
    write_points(folder / "points.ply")
    names = [frame["file_path"] for frame in frames]
    lists = {"train_filenames": names[:3], "test_filenames": names[3:]}
    (folder / "transforms.json").write_text(json.dumps({**meta, **lists, "camera_model": "OPENCV", "frames": frames}))


def write_deepvoxels(folder: Path) -> None:
    for split, views in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4,))):
        place = folder / split / "vase"
        (place / "pose").mkdir(parents=True)
        for i in views:
            save(place / "rgb" / f"{i:06d}.png", i, 3)
            (place / "pose" / f"{i:06d}.txt").write_text(" ".join(map(repr, (POSES[i] @ np.diag([1.0, -1, -1, 1])).ravel().tolist())))
        (place / "intrinsics.txt").write_text("720. 319.5 239.5 0.\n0. 0. 0.\n0.5\n1.\n480 640\n0\n")


def write_nsvf(folder: Path) -> None:
    for i, c2w in enumerate(POSES):
        save(folder / "rgb" / f"{i // 2}_{i}.png", i, 3)
        write_matrix(folder / "pose" / f"{i // 2}_{i}.txt", c2w @ np.diag([1.0, -1, -1, 1]), "\n")
    write_matrix(folder / "intrinsics.txt", lens_matrix(), "\n")
    (folder / "bbox.txt").write_text("-1.1 -1.2 -1.3 1.1 1.2 1.3 0.4\n")


def write_nerfpp(folder: Path) -> None:
    for split, views in (("train", (0, 1, 2)), ("validation", (3,)), ("test", (4,))):
        for i in views:
            save(folder / split / "rgb" / f"{i:05d}.jpg", i, 3)
            write_matrix(folder / split / "pose" / f"{i:05d}.txt", POSES[i] @ np.diag([1.0, -1, -1, 1]), " ")
            write_matrix(folder / split / "intrinsics" / f"{i:05d}.txt", lens_matrix(), " ")


def lens_matrix() -> np.ndarray:
    return np.array([[12.0, 0, WIDTH / 2, 0], [0, 12.5, HEIGHT / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def write_matrix(file: Path, matrix: np.ndarray, between: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(between.join(" ".join(map(repr, row)) for row in matrix.tolist()) + "\n")


def write_tiny(folder: Path) -> None:
    images = np.stack([ball_picture(c2w)[..., :3] for c2w in POSES])
    np.savez(folder / "tiny.npz", images=(images / 255).astype(np.float32), poses=np.stack(POSES), focal=np.array(12.0))


def write_multiscale(folder: Path) -> None:
    meta: dict[str, Any] = {}
    for split, views in (("train", (0, 1, 2)), ("val", (3,)), ("test", (4,))):
        rows = []
        for i in views:
            save(folder / f"images_{split}" / f"{i:03d}_d0.png", i)
            pix2cam = [[1 / 12, 0, -5 / 12], [0, -1 / 12, 4 / 12], [0, 0, -1]]
            rows.append((f"images_{split}/{i:03d}_d0.png", POSES[i].tolist(), WIDTH, HEIGHT, pix2cam, 2.0, 6.0))
        names = ("file_path", "cam2world", "width", "height", "pix2cam", "near", "far")
        meta[split] = {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    (folder / "metadata.json").write_text(json.dumps(meta))


def write_points(file: Path) -> None:
    points = np.random.default_rng(0).normal(size=(40, 3)).astype("<f4")
    head = "ply\nformat binary_little_endian 1.0\nelement vertex 40\n" + "".join(f"property float {axis}\n" for axis in "xyz")
    file.write_bytes(f"{head}end_header\n".encode() + points.tobytes())


def write_colmap(folder: Path) -> None:
    """COLMAP's binary model: an OPENCV camera, five pictures with two points each, forty points."""
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    lens = (12.0, 12.5, 5.0, 4.0, 0.01, 0.0, 0.001, 0.0)
    (model / "cameras.bin").write_bytes(struct.pack("<QIiQQ8d", 1, 7, 4, WIDTH, HEIGHT, *lens))
    images = [struct.pack("<Q", len(POSES))]
    for i, pose in enumerate(colmap_poses()):
        save(folder / "images" / f"{i}.png", i, 3)
        points = struct.pack("<Qddqddq", 2, 1.0, 2.0, 3, 4.0, 5.0, -1)
        images.append(struct.pack("<I7dI", i + 1, *pose, 7) + f"{i}.png\0".encode() + points)
    (model / "images.bin").write_bytes(b"".join(images))
    xyz = np.random.default_rng(0).normal(size=(40, 3))
    rows = (struct.pack("<Q3d3BdQ2i", i, *point, 1, 2, 3, 0.5, 1, 1, 0) for i, point in enumerate(xyz))
    (model / "points3D.bin").write_bytes(struct.pack("<Q", 40) + b"".join(rows))


def write_colmap_text(folder: Path) -> None:
    model = folder / "sparse"
    model.mkdir(parents=True)
    (model / "cameras.txt").write_text(f"# camera\n7 SIMPLE_RADIAL {WIDTH} {HEIGHT} 12 5 4 0.01\n")
    lines = []
    for i, pose in enumerate(colmap_poses()):
        save(folder / "images" / f"{i}.png", i, 3)
        lines += [f"{i + 1} {' '.join(map(str, pose))} 7 {i}.png", "1.0 2.0 3 4.0 5.0 -1"]
    (model / "images.txt").write_text("\n".join(["# pictures", *lines]) + "\n")
    points = np.random.default_rng(0).normal(size=(40, 3)).tolist()
    (model / "points3D.txt").write_text("".join(f"{i} {x} {y} {z} 1 2 3 0.5 1 0\n" for i, (x, y, z) in enumerate(points)))


def colmap_poses() -> list[list[float]]:
    """World-to-camera quaternions and translations in OpenCV's axes."""
    inverses = [np.linalg.inv(c2w @ np.diag([1.0, -1, -1, 1])) for c2w in POSES]
    return [[*matrix_to_quaternion(torch.from_numpy(w2c[:3, :3])).tolist(), *w2c[:3, 3].tolist()] for w2c in inverses]


def write_photos(folder: Path) -> None:
    for i in range(3):
        save(folder / f"{i}.png", i, 3)


def write_unposed(folder: Path) -> None:
    for view in range(4):
        save(folder / f"photo_{view}.png", view, 3)


def write_video(folder: Path) -> None:
    with av.open(str(folder / "film.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(4):
            picture = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        film.mux(stream.encode())


READERS = {
    "colmap": Reader(write_colmap),
    "colmap text": Reader(write_colmap_text, options={"factor": 2}),
    "blender": Reader(write_blender, options={"factor": 2}),
    "linemod": Reader(write_linemod),
    "llff": Reader(write_llff, options={"factor": 1}),
    "transforms": Reader(write_transforms, options={"depths": True}),
    "deepvoxels": Reader(write_deepvoxels),
    "nsvf": Reader(write_nsvf),
    "nsvf nerf++": Reader(write_nerfpp, options={"factor": 2}),
    "tiny": Reader(write_tiny, "tiny.npz"),
    "multiscale": Reader(write_multiscale),
    "unposed": Reader(write_unposed, options={"holdout": 2}),
    "photos": Reader(write_photos, readable=False),
    "video": Reader(write_video, "film.mp4", readable=False),
    "image": Reader(lambda folder: save(folder / "photo.png", 0), "photo.png"),
}
OTHERS = {
    name: Reader(LAYOUTS[name].write, options={"depths": True} if name == "polycam" else {})
    for name in (
        "bundler", "nvm", "nvm of matrices", "mvsnet", "neus", "kapture", "openmvg", "openmvg brown", "opensfm", "opensfm fisheye62",
        "realitycapture", "realitycapture xmp", "metashape component", "metashape fisheye", "record3d of each frame", "polycam",
    )
}  # fmt: skip
READERS |= OTHERS


# --- Damage ---------------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3, 0.5, 1e-300, 1e300, -1e300, 10**18, 10**400, math.nan, math.inf, -math.inf,
    "", "x", "1", "\0", "a\nb", "\ud800", "é ü.png", "../../etc/passwd", "/etc/passwd", "..", ".", "/", "./" * 5000, "x" * 100_000,
    [], {}, [[]], [None], [1, 2], {"frames": 3}, [[0] * 4] * 4, [[math.nan] * 4] * 4, [[1, 0, 0, 0], [0, 1, 0, 0]], list(range(1000)),
]  # fmt: skip
WORDS = ["nan", "inf", "-inf", "1e999", "1e300", "-1", "0", "0x10", "x", "", "1,5", "٣", "9" * 5000, "1_0", "\0", "\n"]


def damaged_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flips, cuts, repetitions, runs of zeros, insertions."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at = rng.randrange(len(out) + 1)
        span = min(rng.choice((1, 1, 4, 30, 1000)), len(out) - at)
        match rng.randrange(8):
            case 0 | 1 | 2 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 3 if at < len(out):
                out[at] = rng.randrange(256)
            case 4:
                del out[at : rng.choice((at + span, len(out)))]
            case 5:
                out[at:at] = out[at : at + span] * rng.choice((1, 3, 1000))
            case 6:
                out[at : at + span] = bytes([rng.choice((0, 255))]) * span
            case 7:
                out[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
    return bytes(out)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON tree with every key or index of it."""
    for key in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, key
        if isinstance(node[key], dict | list):
            yield from places(node[key])


def damaged_json(rng: random.Random, data: bytes) -> bytes:
    """Values removed, doubled, exchanged, wrapped or replaced by odd ones; or nesting without end."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return damaged_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        found = list(places(tree)) if isinstance(tree, dict | list) else []
        if not found:
            break
        # A matrix has many numbers: half of the time something near the root is taken.
        node, key = rng.choice(found[: rng.choice((8, 40, len(found)))] if rng.random() < 0.5 else found)
        other, place = rng.choice(found)
        match rng.randrange(7):
            case 0:
                del node[key]
            case 1 if isinstance(node, list):
                node.insert(key, copy.deepcopy(node[key]))
            case 1:
                node[f"{key}_"] = node.pop(key)
            case 2:
                node[key] = copy.deepcopy(other[place])
            case 3:
                node[key] = rng.choice(([node[key]], {"x": node[key]}, str(node[key])))
            case _:
                node[key] = copy.deepcopy(rng.choice(ODD))
    text = json.dumps(tree)
    if rng.random() < 0.05:
        depth = rng.choice((900, 5000, 200_000))
        text = text.replace(rng.choice(("1", "0", '"')), rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)), 1)
    return text.encode()


def damaged_text(rng: random.Random, data: bytes, between: str = " ") -> bytes:
    """Words and lines removed, repeated or replaced."""
    lines = [line.split(between) for line in data.decode(errors="replace").split("\n")]
    for _ in range(rng.choice((1, 1, 2, 5))):
        line = rng.choice(lines)
        at = rng.randrange(len(line) or 1)
        match rng.randrange(5):
            case 0:
                line[at : at + 1] = []
            case 1:
                lines.insert(rng.randrange(len(lines)), list(rng.choice(lines)))
            case 2 if len(lines) > 1:
                lines.remove(line)
            case _:
                line[at : at + 1] = [rng.choice(WORDS)]
    return "\n".join(between.join(line) for line in lines).encode()


def damaged_array(rng: random.Random, array: np.ndarray) -> np.ndarray:
    """Odd numbers in it, or another shape or type."""
    array = array.copy()
    match rng.randrange(6):
        case 0 | 1 if array.dtype.kind == "f" and array.size:
            array.flat[rng.randrange(array.size)] = rng.choice((math.nan, math.inf, -math.inf, 1e300, -1e300, 0, -1, 1e-300))
        case 2:
            array = array.astype(rng.choice((np.float16, np.int8, np.uint64, np.complex64, np.bool_, "U3", "S2", object, np.longdouble)))
        case 3:
            array = rng.choice((array.T, array[None], array.ravel(), array[:0], array[..., :1], np.asfortranarray(array), array * 0))
        case 4:
            array = np.broadcast_to(array, (*[1] * rng.choice((0, 5, 20)), *array.shape))
        case _:
            array = array.astype(array.dtype.newbyteorder(">"))
    return array


def damage(rng: random.Random, folder: Path) -> None:
    """Change one file of a folder, or its place among the others."""
    files = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 10**7 and path.resolve().is_relative_to(folder)
    )
    if not files:
        return
    kinds = (".json", ".npy", ".npz", ".txt", ".bin", ".ply", ".xml", ".xmp", ".csv", ".out", ".nvm", "")
    meta = [path for path in files if path.suffix in kinds]
    file = rng.choice(meta if meta and rng.random() < 0.7 else files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if rng.random() < 0.25:
            misplace(rng, file, rng.choice(files))
        elif rng.random() < 0.25 or file.suffix not in DAMAGES:
            file.write_bytes(damaged_bytes(rng, file.read_bytes()))
        else:
            DAMAGES[file.suffix](rng, file)


def damage_npy(rng: random.Random, file: Path) -> None:
    try:
        np.save(file, damaged_array(rng, np.load(file)), allow_pickle=True)
    except Exception:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))


def damage_npz(rng: random.Random, file: Path) -> None:
    try:
        arrays = dict(np.load(file))
        name = rng.choice(sorted(arrays))
        match rng.randrange(6):
            case 0:
                del arrays[name]
            case 1:
                arrays[name] = arrays[rng.choice(sorted(arrays))]
            case _:
                arrays[name] = damaged_array(rng, arrays[name])
        rng.choice((np.savez, np.savez_compressed))(file, **arrays)
    except Exception:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))


def damage_picture(rng: random.Random, file: Path) -> None:
    """Its bytes as they are or in another of the formats that their content distinguishes, or a header that promises too much."""
    if rng.random() < 0.1:
        size = rng.choice(((10_000, 60_000), (2**31 - 1, 2**31 - 1), (40_000, 40_000), (2**31 - 1, 1), (1, 0)))
        data = zlib.compress(bytes(1000))
        chunks = ((b"IHDR", struct.pack(">2I5B", *size, rng.choice((1, 8, 16)), 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
        parts = (struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks)
        file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
        return
    with contextlib.suppress(Exception), Image.open(file) as image:
        image.load()
        mode = rng.choice((image.mode, "L", "LA", "P", "CMYK", "1", "I", "F", "RGBA"))
        form = rng.choice(("PNG", "JPEG", "BMP", "TIFF", "WEBP", "AVIF", "GIF", "PPM", "TGA", "ICO", "JPEG2000"))
        image.convert(mode).save(file, format=form)
    if rng.random() < 0.8:
        file.write_bytes(damaged_bytes(rng, file.read_bytes()))


def rewritten(change: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random, Path], None]:
    def write(rng: random.Random, file: Path) -> None:
        file.write_bytes(change(rng, file.read_bytes()))

    return write


DAMAGES: dict[str, Callable[[random.Random, Path], None]] = {
    ".json": rewritten(damaged_json),
    "": rewritten(damaged_json),
    **dict.fromkeys((".txt", ".out", ".nvm"), rewritten(damaged_text)),
    **dict.fromkeys((".xml", ".xmp"), rewritten(lambda rng, data: damaged_text(rng, data, rng.choice((" ", "<"))))),
    ".csv": rewritten(lambda rng, data: damaged_text(rng, data, ",")),
    ".npy": damage_npy,
    ".npz": damage_npz,
    ".png": damage_picture,
    ".jpg": damage_picture,
}


def misplace(rng: random.Random, file: Path, other: Path) -> None:
    """Remove, rename or exchange files, or put something in their place that is none, or has no end."""
    content = file.read_bytes()
    match rng.randrange(12):
        case 0:
            file.unlink()
        case 1:
            file.rename(file.with_name(rng.choice(("x", "é ü" + file.suffix, "x" * 200, file.name.upper(), file.stem + ".txt"))))
        case 2:
            file.write_bytes(other.read_bytes())
            other.write_bytes(content)
        case 3:
            with contextlib.suppress(shutil.SameFileError):
                shutil.copy(other, file.with_name(f"{file.stem}_{file.suffix}"))
        case 4:
            file.write_bytes(b"")
        case 5:
            os.truncate(file, rng.choice((100_000_000, 5 << 30)))
        case 6 if file.parent != file.anchor:
            shutil.rmtree(file.parent, ignore_errors=True)
        case kind:
            file.unlink()
            match kind:
                case 7:
                    file.mkdir()
                case 8:
                    os.mkfifo(file)
                case 9:
                    file.symlink_to(
                        rng.choice((file, Path("/dev/zero"), Path("/dev/null"), Path("/proc/self/mem"), file.parent, Path("no/where")))
                    )
                case 10:
                    file.write_bytes(b"[" * 10_000_000)
                case _:
                    file.symlink_to(other)


# --- Reading --------------------------------------------------------------------------------------------------------


def check_sentence(text: str) -> None:
    assert text.isprintable() and len(text) < 2000, f"not a sentence on one line: {text[:300]!r}"
    assert text.endswith((".", "?")), f"does not end as a sentence: {text[-300:]!r}"


def check_scene(scene: Scene) -> None:
    cameras = scene.cameras
    for name in ("c2w", "fx", "fy", "cx", "cy"):
        assert getattr(cameras, name).isfinite().all(), f"{name} is not finite"
    assert (cameras.fx > 0).all() and (cameras.fy > 0).all() and math.isfinite(scene.near) and math.isfinite(scene.far)
    assert scene.to_original.isfinite().all() and scene.splits["train"] and len(scene.view_names) == len(cameras)
    assert max(max(views, default=0) for views in scene.splits.values()) < len(cameras)


def read(form: str, source: str, whole: bool = False) -> None:
    """Load a scene, which may be refused unless it is ``whole``; raises where a reader does what it must not."""
    module = FORMATS[form.split()[0]]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for other in FORMATS.values():
            other.detect(source)
        try:
            check_scene(module.load(source, module.Config(**READERS[form].options)))
        except NerfitError as error:
            check_sentence(str(error))
            assert not whole, error
    for warning in said:
        assert warning.category is UserWarning, f"{warning.category.__name__}: {warning.message}"


def watch(folder: Path) -> None:
    """End the process where it sleeps in one scene; time in which it is stopped itself doesn't count."""
    seen, waited = "", 0
    while waited < PATIENCE:
        time.sleep(1)
        now = (folder / "now").read_text()
        seen, waited = now, waited + 1 if now == seen else 0
    faulthandler.dump_traceback()
    os._exit(1)


def main(first: int, count: int, folder: Path, forms: list[str]) -> None:
    """Read ``count`` damaged scenes of each form, in a process of its own."""
    os.environ["NERFIT_CACHE"] = str(folder / "cache")

    def damage_some(form: str, rng: random.Random, scene: Path) -> None:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            damage(rng, scene)

    survive(
        first,
        count,
        folder,
        forms,
        lambda form, scene: READERS[form].write(scene),
        damage_some,
        lambda form, scene, whole: read(form, str(scene / READERS[form].source), whole and READERS[form].readable),
    )


def survive(
    first: int,
    count: int,
    folder: Path,
    names: list[str],
    write: Callable[[str, Path], object],
    damage: Callable[[str, random.Random, Path], None],
    use: Callable[[str, Path, bool], None],
) -> None:
    """Write what has each name, damage copies by ``count`` seeds and use them within the limits, in this process; print what goes wrong.

    ``use`` gets whether its input is undamaged.
    """
    torch.set_num_threads(1)
    for name in names:
        (folder / name).mkdir(parents=True)
        write(name, folder / name)
        use(name, folder / name, True)
    space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (space + BYTES, space + BYTES))
    copy_ = folder / "scene"
    (folder / "now").touch()
    threading.Thread(target=watch, args=(folder,), daemon=True).start()
    for name, seed in itertools.product(names, range(first, first + count)):
        (folder / "now").write_text(f"{name} {seed}")
        shutil.copytree(folder / name, copy_)
        damage(name, random.Random(f"{name} {seed}"), copy_)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS, resource.RLIM_INFINITY))
        try:
            use(name, copy_, False)
        except BaseException as error:
            print(json.dumps([name, seed, "".join(traceback.format_exception(error))[-2000:]]), flush=True)
        shutil.rmtree(copy_, ignore_errors=True)


class Subject(NamedTuple):
    """What is written into a folder, how it is damaged there, and how it is used."""

    write: Callable[[Path], None]
    damage: Callable[[random.Random, Path], None]
    use: Callable[[Path], Any]


def survive_as_asked(subjects: dict[str, Subject], use: Callable[[str, Path, bool], None]) -> None:
    """`survive` as the script's words say: FIRST COUNT FOLDER SUBJECT..."""
    first, count, folder, *names = sys.argv[1:]
    survive(
        int(first),
        int(count),
        Path(folder),
        names,
        lambda name, folder: subjects[name].write(folder),
        lambda name, rng, folder: subjects[name].damage(rng, folder),
        use,
    )


def environment() -> dict[str, str]:
    """Of a script of these tests: one thread, little memory held back, this process's modules."""
    return os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONPATH": os.pathsep.join(sys.path)}


def fuzz(first: int, count: int, folder: Path, forms: list[str], script: str = __file__) -> None:
    words = [sys.executable, script, str(first), str(count), str(folder), *forms]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    now = (folder / "now").read_text() if (folder / "now").exists() else "what is undamaged"
    assert done.returncode == 0, f"the process died with {now}: {done.stderr[-3000:]}"
    failures = [json.loads(line) for line in done.stdout.splitlines()]
    assert not failures, f"{len(failures)} went wrong; {failures[0][0]} {failures[0][1]}: {failures[0][2]}"


linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited and measured as on Linux")


@linux
def test_damaged_scenes_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    fuzz(0, QUICK, tmp_path / "fuzz", [name for name in READERS if name not in OTHERS])


@linux
def test_damaged_layouts_of_other_programs_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    fuzz(0, FEW, tmp_path / "fuzz", list(OTHERS))


@linux
@pytest.mark.slow
@pytest.mark.parametrize("form", READERS)
def test_many_damaged_scenes(form: str, tmp_path: Path) -> None:
    fuzz(QUICK, THOROUGH, tmp_path / "fuzz", [form])


def test_every_reader_is_fuzzed() -> None:
    assert {form.split()[0] for form in READERS} == FORMATS.keys() - {"procedural"}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
