"""Captures as other programs write them, from known cameras, with each program's own formulas for where a point appears.

Nothing here comes from the package: every writer and every formula is spelled out as the program's documentation has it.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from conftest import around

VIEWS, WIDTH, HEIGHT = 6, 64, 48
POINTS = np.random.default_rng(0).uniform(-0.7, 0.7, (40, 3))
FOCAL, MIDDLE = (70.0, 68.5), (31.2, 25.1)
"""Focal lengths and principal point in pixels from the corner, for programs that can hold them."""

Project = Callable[[int, np.ndarray], np.ndarray]
"""Pixels [n, 2] from the corner of a view's picture in which points [n, 3] appear."""


class Written(NamedTuple):
    """How a layout is written into a folder, which of its files tells the cameras, and where points appear."""

    write: Callable[[Path], Project]
    """Writes the pictures too, and returns the program's projection."""
    points: bool = False
    """Whether the file holds POINTS."""


def pose(view: int) -> np.ndarray:
    """Camera to world in OpenGL axes."""
    c2w = around(2 * math.pi * view / VIEWS, 0.2 + 0.05 * view)
    c2w[:3, 3] += [0.05 * view, -0.1, 0.2]
    return c2w


def world_to_camera(view: int) -> tuple[np.ndarray, np.ndarray]:
    """R and t in OpenCV's axes: x right, y down, z forwards."""
    c2w = pose(view) @ np.diag([1.0, -1, -1, 1])
    rotation = c2w[:3, :3].T
    return rotation, -rotation @ c2w[:3, 3]


def seen(view: int, points: np.ndarray) -> np.ndarray:
    """Points in OpenCV's camera coordinates."""
    rotation, translation = world_to_camera(view)
    return points @ rotation.T + translation


def flat(view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x/z and y/z."""
    local = seen(view, points)
    return local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]


def save_pictures(folder: Path, names: list[str], height: int = HEIGHT) -> None:
    for view, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(view).integers(0, 256, (height, WIDTH, 3), dtype=np.uint8)).save(path)


def named(pattern: str) -> list[str]:
    return [pattern.format(view) for view in range(VIEWS)]


def brown(x: np.ndarray, y: np.ndarray, k: tuple[float, ...] = (), p: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """Brown's distortion as OpenCV writes it, of radial terms ``k`` and tangential terms p1 p2."""
    r2 = x * x + y * y
    radial = 1 + sum(c * r2**n for n, c in enumerate(k, 1))
    return x * radial + 2 * p[0] * x * y + p[1] * (r2 + 2 * x * x), y * radial + p[0] * (r2 + 2 * y * y) + 2 * p[1] * x * y


def fisheye(view: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The angle from the axis, along x and y."""
    local = seen(view, points)
    across = np.hypot(local[:, 0], local[:, 1])
    angle = np.arctan2(across, local[:, 2])
    return angle * local[:, 0] / across, angle * local[:, 1] / across


def pinhole(x: np.ndarray, y: np.ndarray, offset: float = 0.0) -> np.ndarray:
    return np.stack([FOCAL[0] * x + MIDDLE[0] + offset, FOCAL[1] * y + MIDDLE[1] + offset], -1)


# --- Bundler and VisualSFM ---------------------------------------------------------------------------------------------


def write_bundler(folder: Path) -> Project:
    """Bundler's manual: P = R X + t, p = -P/P.z, p' = f r(p) p, from the middle, y up."""
    flip = np.diag([1.0, -1, -1])
    lines = ["# Bundle file v0.3", f"{VIEWS + 1} {len(POINTS)}", *["0 0 0"] * 5]
    for view in range(VIEWS):
        rotation, translation = world_to_camera(view)
        lines += [f"70.5 -0.08 0.02 {''}", *(" ".join(map(repr, row)) for row in (flip @ rotation).tolist())]
        lines.append(" ".join(map(repr, (flip @ translation).tolist())))
    for x, y, z in POINTS.tolist():
        lines += [f"{x!r} {y!r} {z!r}", "1 2 3", "2 0 17 1.5 -2.5 1 3 4.0 5.0"]
    names = named("pictures/img_{:02}.png")
    save_pictures(folder, names)
    (folder / "bundle.out").write_text("\n".join(lines) + "\n")
    (folder / "list.txt").write_text("\n".join(["pictures/lost.png", *(f"./{name} 0 70.5" for name in names)]) + "\n")

    def project(view: int, points: np.ndarray) -> np.ndarray:
        rotation, translation = world_to_camera(view)
        p = points @ (flip @ rotation).T + flip @ translation
        p = -p[:, :2] / p[:, 2:]
        r2 = (p * p).sum(-1, keepdims=True)
        p = 70.5 * (1 - 0.08 * r2 + 0.02 * r2**2) * p
        return np.stack([WIDTH / 2 + p[:, 0], HEIGHT / 2 - p[:, 1]], -1)

    return project


def nvm_writer(radial: float, matrices: bool = False) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        """VisualSFM: name, f, quaternion w x y z, centre, radial distortion of the measurement, 0."""
        names = named("my photo {}.png")
        save_pictures(folder, names)
        lines = ["NVM_V3_R9T" if matrices else "NVM_V3", "", str(VIEWS)]
        for view, name in enumerate(names):
            rotation, translation = world_to_camera(view)
            x, y, z, w = Rotation.from_matrix(rotation).as_quat().tolist()
            turn = rotation.ravel().tolist() if matrices else [w, x, y, z]
            where = translation if matrices else -rotation.T @ translation
            lines.append(f"C:\\photos\\{name.replace(' ', chr(34))}\t" + " ".join(map(repr, [70.5, *turn, *where.tolist(), radial, 0])))
        lines += ["", str(len(POINTS)), *(f"{x!r} {y!r} {z!r} 1 2 3 1 0 5 1.0 2.0" for x, y, z in POINTS.tolist()), "", "0"]
        (folder / "model.nvm").write_text("\n".join(lines) + "\n")

        def project(view: int, points: np.ndarray) -> np.ndarray:
            u = np.stack(flat(view, points), -1)
            m = u.copy()
            for _ in range(200):  # m(1 + k|m|²) = u, by Newton's steps on the length
                length, wanted = np.linalg.norm(m, axis=-1), np.linalg.norm(u, axis=-1)
                length -= (length * (1 + radial * length**2) - wanted) / (1 + 3 * radial * length**2)
                m = u / wanted[:, None] * length[:, None]
            return 70.5 * m + [WIDTH / 2, HEIGHT / 2]

        return project

    return write


# --- MVSNet and NeuS ---------------------------------------------------------------------------------------------------


def write_mvsnet(folder: Path) -> Project:
    save_pictures(folder, named("blended_images/{:08}.png"))
    save_pictures(folder, named("blended_images/{:08}_masked.png"))
    (folder / "cams").mkdir()
    (folder / "cams" / "pair.txt").write_text("0\n")
    for view in range(VIEWS):
        rotation, translation = world_to_camera(view)
        extrinsic = np.vstack([np.c_[rotation, translation], [0, 0, 0, 1]])
        k = np.array([[FOCAL[0], 0, MIDDLE[0]], [0, FOCAL[1], MIDDLE[1]], [0, 0, 1]])
        rows = ["extrinsic", *(" ".join(map(repr, row)) for row in extrinsic.tolist()), ""]
        rows += ["intrinsic", *(" ".join(map(repr, row)) for row in k.tolist()), "", "2.0 0.01 128 5.0"]
        (folder / "cams" / f"{view:08}_cam.txt").write_text("\n".join(rows) + "\n")
    return lambda view, points: pinhole(*flat(view, points))


def write_neus(folder: Path) -> Project:
    """IDR's world_mat = K [R | t]; pixels at whole numbers."""
    save_pictures(folder, named("image/{:03}.png"))
    save_pictures(folder, named("mask/{:03}.png"))
    arrays = {}
    for view in range(VIEWS):
        rotation, translation = world_to_camera(view)
        k = np.array([[FOCAL[0], 0, MIDDLE[0]], [0, FOCAL[1], MIDDLE[1]], [0, 0, 1]])
        arrays[f"world_mat_{view}"] = np.vstack([-2.5 * k @ np.c_[rotation, translation], [0, 0, 0, 1]])
        arrays[f"scale_mat_{view}"] = np.diag([2.0, 2, 2, 1])
    np.savez(folder / "cameras_sphere.npz", **arrays)
    return lambda view, points: pinhole(*flat(view, points), offset=0.5)


# --- Kapture -----------------------------------------------------------------------------------------------------------


def write_kapture(folder: Path) -> Project:
    """Views 0 to 2 have poses of their own, the others those of a rig; OPENCV's lens."""
    k, p = (0.05, -0.02), (0.003, -0.004)
    sensors = folder / "sensors"
    save_pictures(sensors / "records_data", named("map/cam_01/{:05}.png"))
    head = "# kapture format: 1.1\n"
    lens = [WIDTH, HEIGHT, *FOCAL, *MIDDLE, *k, *p]
    rows = [["cam01", "Hero7", "camera", "OPENCV", *lens], ["gps", "", "gnss", "EPSG:4326"]]
    (sensors / "sensors.txt").write_text(head + "".join(", ".join(map(str, row)) + "\n" for row in rows))
    rig = Rotation.from_rotvec([0.1, -0.2, 0.3]), np.array([0.3, -0.1, 0.2])
    (sensors / "rigs.txt").write_text(head + "rig, cam01, " + ", ".join(map(repr, quaternion(rig[0]) + rig[1].tolist())) + "\n")
    lines = []
    for view in range(VIEWS):
        rotation, translation = world_to_camera(view)
        if view > 2:  # sensor = rig -> sensor after world -> rig
            rotation, translation = rig[0].inv().as_matrix() @ rotation, rig[0].inv().as_matrix() @ (translation - rig[1])
        values = quaternion(Rotation.from_matrix(rotation)) + translation.tolist()
        lines.append(f"{view:04}, {'rig' if view > 2 else 'cam01'}, " + ", ".join(map(repr, values)))
    (sensors / "trajectories.txt").write_text(head + "\n".join(lines) + "\n9, cam01, , , , , , , \n")
    records = [f"{view:04}, cam01, map/cam_01/{view:05}.png" for view in range(VIEWS)]
    (sensors / "records_camera.txt").write_text(head + "\n".join(records) + "\n")
    (folder / "reconstruction").mkdir()
    points = "".join(f"{x!r}, {y!r}, {z!r}, 1, 2, 3\n" for x, y, z in POINTS.tolist())
    (folder / "reconstruction" / "points3d.txt").write_text(head + points)
    return lambda view, points: pinhole(*brown(*flat(view, points), k, p))


def quaternion(rotation: Rotation) -> list[float]:
    x, y, z, w = rotation.as_quat().tolist()
    return [w, x, y, z]


# --- openMVG and OpenSfM -----------------------------------------------------------------------------------------------


def openmvg_writer(
    key: str, k: tuple[float, ...] = (), p: tuple[float, float] | None = None, nested: bool = False
) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        """Pixel = focal length · distorted point + principal point, pixel centres at whole numbers."""
        save_pictures(folder, named("photos/view_{}.png"))
        base: dict[str, Any] = {"width": WIDTH, "height": HEIGHT, "focal_length": 70.5, "principal_point": list(MIDDLE)}
        lens = {"value0": base} if nested else base
        if key:
            lens = lens | {key: [*k, *(p or ())]}
        views, extrinsics = [], []
        for view in range(VIEWS):
            rotation, translation = world_to_camera(view)
            data = {"local_path": "/", "filename": f"view_{view}.png", "id_view": view, "id_intrinsic": 0, "id_pose": 100 + view}
            views.append({"key": view, "value": {"polymorphic_id": 1073741824, "ptr_wrapper": {"id": 1, "data": data}}})
            extrinsics.append({"key": 100 + view, "value": {"rotation": rotation.tolist(), "center": (-rotation.T @ translation).tolist()}})
        views.append({"key": 99, "value": {"ptr_wrapper": {"data": {"filename": "unposed.png", "id_intrinsic": 0, "id_pose": 7}}}})
        structure = [{"key": i, "value": {"X": x, "observations": []}} for i, x in enumerate(POINTS.tolist())]
        scene = {"sfm_data_version": "0.3", "root_path": "/home/someone/photos", "views": views}
        scene |= {"intrinsics": [{"key": 0, "value": {"polymorphic_id": 1, "ptr_wrapper": {"id": 2, "data": lens}}}]}
        empty = json.dumps(scene | {"extrinsics": [], "structure": []})
        (folder / "matches").mkdir()
        (folder / "matches" / "sfm_data.json").write_text(empty)
        (folder / "reconstruction").mkdir()
        (folder / "reconstruction" / "sfm_data.json").write_text(json.dumps(scene | {"extrinsics": extrinsics, "structure": structure}))

        def project(view: int, points: np.ndarray) -> np.ndarray:
            x, y = brown(*(fisheye if key == "fisheye" else flat)(view, points), k, p or (0.0, 0.0))
            return 70.5 * np.stack([x, y], -1) + MIDDLE + 0.5

        return project

    return write


def opensfm_writer(kind: str, place: str = "reconstruction.json", **lens: float) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        """Normalised coordinates: from the middle, the larger side is 1; pixel centres are (w - 1)/2 away at whole numbers."""
        height = WIDTH // 2 if kind == "spherical" else HEIGHT
        save_pictures(folder, named("images/DJI_{}.JPG.png"), height)
        camera = {"projection_type": kind, "width": 10 * WIDTH, "height": 10 * height, **lens}
        shots = {}
        for view in range(VIEWS):
            rotation, translation = world_to_camera(view)
            turn = Rotation.from_matrix(rotation).as_rotvec().tolist()
            shots[f"DJI_{view}.JPG.png"] = {"rotation": turn, "translation": translation.tolist(), "camera": "v2 dji"}
        points = {str(i): {"coordinates": x, "color": [1, 2, 3]} for i, x in enumerate(POINTS.tolist())}
        small = {"cameras": {}, "shots": {}, "points": {}}
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps([small, {"cameras": {"v2 dji": camera}, "shots": shots, "points": points}]))

        def project(view: int, points: np.ndarray) -> np.ndarray:
            if kind == "spherical":
                x, y, z = seen(view, points).T
                u, v = np.arctan2(x, z) / (2 * math.pi), -np.arctan2(-y, np.hypot(x, z)) / (2 * math.pi)
            else:
                k = tuple(lens.get(f"k{n}", 0.0) for n in range(1, 5))
                x, y = brown(*(fisheye if "fisheye" in kind else flat)(view, points), k, (lens.get("p1", 0.0), lens.get("p2", 0.0)))
                fx, fy = (lens.get(f"focal_{axis}", lens.get("focal", 0.0)) for axis in "xy")
                u, v = fx * x + lens.get("c_x", 0.0), fy * y + lens.get("c_y", 0.0)
            size = max(WIDTH, height)
            return np.stack([size * u + (WIDTH - 1) / 2, size * v + (height - 1) / 2], -1) + 0.5

        return project

    return write


# --- RealityCapture and Metashape --------------------------------------------------------------------------------------

FILM = {"f": 38.0, "px": 0.013, "py": -0.021}
K, T = (0.05, -0.02, 0.01, -0.004), (0.003, -0.002)


def film_pixels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """36 mm along the larger side; the principal point in units of that side."""
    size = max(WIDTH, HEIGHT)
    f = FILM["f"] / 36 * size
    return np.stack([f * x + WIDTH / 2 + FILM["px"] * size, f * y + HEIGHT / 2 + FILM["py"] * size], -1)


def write_realitycapture_table(folder: Path) -> Project:
    """Heading, pitch and roll, and the rotation that camorph documents for them."""
    save_pictures(folder, named("frame_{:05}.png"))
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(["#name", "x", "y", "alt", "heading", "pitch", "roll", "f", "px", "py", "k1", "k2", "k3", "k4", "t1", "t2"])
    rotations = []
    for view, name in enumerate(named("frame_{:05}.png")):
        c2w = pose(view)
        yaw, pitch, roll = Rotation.from_matrix(c2w[:3, :3]).as_euler("ZXY").tolist()
        heading = -yaw
        rows.writerow([name, *c2w[:3, 3].tolist(), *(math.degrees(angle) for angle in (heading, pitch, roll)), *FILM.values(), *K, *T])
        (cx, sx), (cy, sy), (cz, sz) = ((math.cos(a), math.sin(a)) for a in (roll, pitch, heading))
        turn = [
            [cx * cz + sx * sy * sz, -cx * sz + cz * sx * sy, -cy * sx],
            [-cy * sz, -cy * cz, -sy],
            [cx * sy * sz - cz * sx, cx * cz * sy + sx * sz, -cx * cy],
        ]
        rotations.append(np.array(turn))
    (folder / "cameras.csv").write_text(file.getvalue())

    def project(view: int, points: np.ndarray) -> np.ndarray:
        x, y, z = rotations[view] @ (points - pose(view)[:3, 3]).T
        return film_pixels(*brown(x / z, y / z, K, (T[1], T[0])))

    return project


def write_realitycapture_xmp(folder: Path) -> Project:
    """R by rows, and the position C: a point is R (X - C)."""
    save_pictures(folder, named("images/frame {}.png"))
    for view in range(VIEWS):
        rotation, translation = world_to_camera(view)
        words = {"Rotation": rotation.ravel().tolist(), "Position": (-rotation.T @ translation).tolist(), "DistortionCoeficients": [*K, *T]}
        inner = "".join(f"<xcr:{key}>{' '.join(map(repr, value))}</xcr:{key}>" for key, value in words.items())
        (folder / f"images/frame {view}.xmp").write_text(
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description xcr:Version="3" xcr:PosePrior="exact" xcr:Coordinates="absolute" xcr:DistortionModel="brown4t2" '
            f'xcr:FocalLength35mm="{FILM["f"]}" xcr:Skew="0" xcr:AspectRatio="1" xcr:PrincipalPointU="{FILM["px"]}" '
            f'xcr:PrincipalPointV="{FILM["py"]}" xmlns:xcr="http://www.capturingreality.com/ns/xcr/1.1#">'
            f"{inner}</rdf:Description></rdf:RDF></x:xmpmeta>"
        )
    return lambda view, points: film_pixels(*brown(*flat(view, points), K, (T[1], T[0])))


def metashape_writer(kind: str = "frame", component: bool = False) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        """u = w/2 + cx + x'(f + b1) + y'b2, v = h/2 + cy + y'f; x' has p1(r² + 2x²) + 2p2xy."""
        height = WIDTH // 2 if kind == "spherical" else HEIGHT
        save_pictures(folder, named("images/IMG_{:04}.png"), height)
        c = {"f": 70.5, "cx": 1.3, "cy": -0.7, "b1": 0.9, "k1": 0.05, "k2": -0.02, "k3": 0.01, "k4": -0.003, "p1": 0.003, "p2": -0.002}
        inner = "" if kind == "spherical" else "".join(f"<{key}>{value!r}</{key}>" for key, value in c.items())
        size = f'<resolution width="{WIDTH}" height="{height}"/>'
        turn, shift, scale = Rotation.from_rotvec([0.4, -0.3, 0.9]).as_matrix(), np.array([3.0, -1.0, 2.0]), 2.5
        cameras = '<camera id="90" sensor_id="0" label="lost"/>'
        for view in range(VIEWS):
            chunk = pose(view) @ np.diag([1.0, -1, -1, 1])
            if component:  # world = scale·turn·chunk + shift
                chunk[:3, :3], chunk[:3, 3] = turn.T @ chunk[:3, :3], turn.T @ (chunk[:3, 3] - shift) / scale
            label = f"IMG_{view:04}" + (".png" if view % 2 else "")
            part = ' component_id="0"' if component else ""
            words = " ".join(map(repr, chunk.ravel().tolist()))
            cameras += f'<camera id="{view}" sensor_id="0"{part} label="{label}"><transform>{words}</transform></camera>'
        rows, place = (" ".join(map(repr, value.ravel().tolist())) for value in (turn, shift))
        parts = f'<rotation locked="true">{rows}</rotation><translation>{place}</translation><scale>{scale}</scale>'
        components = f'<components><component id="0"><transform>{parts}</transform></component></components>' if component else ""
        (folder / "cameras.xml").write_text(
            '<?xml version="1.0" encoding="UTF-8"?>\n<document version="2.0.0"><chunk label="Chunk 1" enabled="true"><sensors next_id="1">'
            f'<sensor id="0" label="unknown" type="{kind}">{size}<calibration type="{kind}" class="initial">{size}<f>1</f></calibration>'
            f'<calibration type="{kind}" class="adjusted">{size}{inner}</calibration></sensor></sensors>'
            f"{components}<cameras next_id='9'><group>{cameras}</group></cameras></chunk></document>"
        )

        def project(view: int, points: np.ndarray) -> np.ndarray:
            if kind == "spherical":
                x, y, z = seen(view, points).T
                f = WIDTH / (2 * math.pi)
                return np.stack([WIDTH / 2 + f * np.arctan2(x, z), height / 2 + f * np.arctan2(y, np.hypot(x, z))], -1)
            x, y = (fisheye if kind == "fisheye" else flat)(view, points)
            r2 = x * x + y * y
            radial = 1 + c["k1"] * r2 + c["k2"] * r2**2 + c["k3"] * r2**3 + c["k4"] * r2**4
            u = x * radial + c["p1"] * (r2 + 2 * x * x) + 2 * c["p2"] * x * y
            v = y * radial + c["p2"] * (r2 + 2 * y * y) + 2 * c["p1"] * x * y
            return np.stack([WIDTH / 2 + c["cx"] + u * (c["f"] + c["b1"]), HEIGHT / 2 + c["cy"] + v * c["f"]], -1)

        return project

    return write


# --- Phones ------------------------------------------------------------------------------------------------------------


def arkit(view: int, points: np.ndarray) -> np.ndarray:
    """ARKit: x right, y up, looking along -z; the principal point from the picture's corner."""
    x, y, z = (np.linalg.inv(pose(view)) @ np.c_[points, np.ones(len(points))].T)[:3]
    return np.stack([MIDDLE[0] + FOCAL[0] * x / -z, MIDDLE[1] - FOCAL[1] * y / -z], -1)


def record3d_writer(each: bool) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        save_pictures(folder, named("rgbd/{}.png"))
        poses = [Rotation.from_matrix(pose(i)[:3, :3]).as_quat().tolist() + pose(i)[:3, 3].tolist() for i in range(VIEWS)]
        k = np.array([[FOCAL[0], 0, MIDDLE[0]], [0, FOCAL[1], MIDDLE[1]], [0, 0, 1]])
        meta: dict[str, Any] = {"w": WIDTH, "h": HEIGHT, "fps": 60, "poses": poses}
        meta |= {"perFrameIntrinsicCoeffs": [[*FOCAL, *MIDDLE]] * VIEWS} if each else {}
        meta |= {"K": (2 * k if each else k).T.ravel().tolist()}
        (folder / "metadata").write_text(json.dumps(meta))
        return arkit

    return write


def polycam_writer(corrected: bool) -> Callable[[Path], Project]:
    def write(folder: Path) -> Project:
        """Both kinds of cameras are there where ``corrected``; those of the capture are wrong."""
        for images, cameras, wrong in (("images", "cameras", corrected), *([("corrected_images", "corrected_cameras", False)] * corrected)):
            save_pictures(folder / "keyframes", named(f"{images}/{{:04}}.png"))
            (folder / "keyframes" / cameras).mkdir()
            for view in range(VIEWS):
                c2w = pose(0 if wrong else view)
                meta: dict[str, Any] = {"fx": FOCAL[0], "fy": FOCAL[1], "cx": MIDDLE[0], "cy": MIDDLE[1], "width": WIDTH, "height": HEIGHT}
                meta |= {f"t_{i}{j}": c2w[i, j] for i in range(3) for j in range(4)} | {"blur_score": 90.0, "timestamp": view}
                (folder / "keyframes" / cameras / f"{view:04}.json").write_text(json.dumps(meta))
        (folder / "keyframes" / "depth").mkdir()
        for view in range(VIEWS):
            Image.fromarray(np.full((HEIGHT // 2, WIDTH // 2), 1500 + view, np.uint16)).save(folder / f"keyframes/depth/{view:04}.png")
        return arkit

    return write


LAYOUTS: dict[str, Written] = {
    "bundler": Written(write_bundler, points=True),
    "nvm": Written(nvm_writer(-0.06), points=True),
    "nvm without distortion": Written(nvm_writer(0.0), points=True),
    "nvm of matrices": Written(nvm_writer(0.08, matrices=True), points=True),
    "mvsnet": Written(write_mvsnet),
    "neus": Written(write_neus),
    "kapture": Written(write_kapture, points=True),
    "openmvg": Written(openmvg_writer("disto_k3", (0.05, -0.02, 0.01)), points=True),
    "openmvg pinhole": Written(openmvg_writer(""), points=True),
    "openmvg brown": Written(openmvg_writer("disto_t2", (0.05, -0.02, 0.01), (0.003, -0.002), nested=True), points=True),
    "openmvg fisheye": Written(openmvg_writer("fisheye", (0.05, -0.02, 0.01, -0.004)), points=True),
    "opensfm": Written(opensfm_writer("perspective", focal=1.1, k1=0.05, k2=-0.02), points=True),
    "opensfm brown": Written(
        opensfm_writer(
            "brown", "opensfm/reconstruction.json",
            focal_x=1.1, focal_y=1.08, c_x=0.02, c_y=-0.01, k1=0.05, k2=-0.02, k3=0.01, p1=0.003, p2=-0.002,
        ),
        points=True,
    ),
    "opensfm fisheye": Written(opensfm_writer("fisheye", focal=1.1, k1=0.05, k2=-0.02), points=True),
    "opensfm fisheye_opencv": Written(
        opensfm_writer("fisheye_opencv", focal_x=1.1, focal_y=1.08, c_x=0.02, c_y=-0.01, k1=0.05, k2=-0.02, k3=0.01, k4=-0.002), points=True
    ),
    "opensfm fisheye62": Written(
        opensfm_writer("fisheye62", focal_x=1.1, focal_y=1.08, k1=0.05, k4=-0.002, p1=0.003, p2=-0.002), points=True
    ),
    "opensfm spherical": Written(opensfm_writer("spherical"), points=True),
    "realitycapture": Written(write_realitycapture_table),
    "realitycapture xmp": Written(write_realitycapture_xmp),
    "metashape": Written(metashape_writer()),
    "metashape component": Written(metashape_writer(component=True)),
    "metashape fisheye": Written(metashape_writer("fisheye")),
    "metashape spherical": Written(metashape_writer("spherical")),
    "record3d": Written(record3d_writer(each=False)),
    "record3d of each frame": Written(record3d_writer(each=True)),
    "polycam": Written(polycam_writer(corrected=True)),
    "polycam as captured": Written(polycam_writer(corrected=False)),
}  # fmt: skip
"""By the format's name (a key's first word)."""
