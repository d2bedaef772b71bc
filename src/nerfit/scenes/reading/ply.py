"""Point clouds in PLY files: read for the points that a reconstruction knows of a scene, written beside exported cameras."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from nerfit.errors import SceneError
from nerfit.files import check_regular
from nerfit.scenes.images import replacing

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_WORDS = {"u1": "uchar", "<f4": "float", "<f8": "double"}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_LONGEST_HEADER = 65_536


def read_ply(path: Path) -> Float[Tensor, "n 3"]:
    """The finite points of a PLY file's vertices, which must be its first element, float64; raises SceneError for anything else."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            head = file.read(_LONGEST_HEADER)
            order, count, names, types = _header(head)
            start = head.index(b"end_header") + len(b"end_header")
            start += len(head[start:].split(b"\n")[0]) + 1
            if order:
                kind = np.dtype([(name, order + _TYPES[t]) for name, t in zip(names, types, strict=True)])
                if count * kind.itemsize > path.stat().st_size - start:
                    raise ValueError(f"it is cut short of its {count} vertices")
                file.seek(start)
                table = np.fromfile(file, kind, count)
                with np.errstate(invalid="ignore"):  # signalling NaN
                    xyz = np.stack([table[axis].astype(np.float64) for axis in "xyz"], -1)
            else:
                if 2 * count * len(names) > path.stat().st_size - start + 1:
                    raise ValueError(f"it is cut short of its {count} vertices")
                file.seek(start)
                columns = [names.index(axis) for axis in "xyz"]
                xyz = np.loadtxt(file, np.float64, usecols=columns, max_rows=count, ndmin=2) if count else np.empty((0, 3))
                if len(xyz) != count:
                    raise ValueError(f"it is cut short of its {count} vertices")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise SceneError(f"{path} can't be read as a PLY file of points: {getattr(error, 'strerror', None) or error}.") from error
    return torch.from_numpy(xyz[np.isfinite(xyz).all(-1)])


def _header(head: bytes) -> tuple[str, int, list[str], list[str]]:
    """Byte order (empty for text), number of vertices, and their properties' names and types; ValueError or KeyError for others."""
    lines = [line.decode("ascii", "replace").split() for line in head.partition(b"end_header")[0].splitlines()]
    if not lines or lines[0] != ["ply"] or b"end_header" not in head:
        raise ValueError("it has no PLY header")
    words = [line for line in lines[1:] if line and line[0] in ("format", "element", "property")]
    elements = [i for i, line in enumerate(words) if line[0] == "element"]
    if not elements or words[0][0] != "format" or words[elements[0]][1] != "vertex":
        raise ValueError("its first element is not 'vertex'")
    own = words[elements[0] + 1 : (elements[1:] or [len(words)])[0]]
    names, types = [line[-1] for line in own], [line[1] for line in own]
    if not {"x", "y", "z"} <= set(names) or len(set(names)) < len(names) or not set(types) <= set(_TYPES):
        raise ValueError("its vertices lack x, y or z, or have lists")
    count = int(words[elements[0]][2])
    if count < 0:
        raise ValueError("it counts fewer than 0 vertices")
    return _ORDERS[words[0][1]], count, names, types


def need_double(points: Float[Tensor, "n 3"]) -> bool:
    """Whether float32 would move some point by more than a millionth of the extent of all, as far from the origin (UTM coordinates)."""
    if not len(points):
        return False
    extent = (points.amax(0) - points.amin(0)).double().norm()
    return bool(points.abs().max().double() * 2.0**-24 > 1e-6 * extent)


def write_ply(
    path: Path,
    points: Float[Tensor, "n 3"],
    normals: Float[Tensor, "n 3"] | None = None,
    colors: UInt8[Tensor, "n 3"] | None = None,
    faces: Int[Tensor, "f 3"] | None = None,
) -> Path:
    """Write points, or a mesh, as a binary PLY file; raises RunError when that can't be done.

    Normals are float32, colours bytes, and positions float32 unless they `need_double`.
    """
    layout = [(axis, "<f8" if need_double(points) else "<f4") for axis in "xyz"]
    layout += [] if normals is None else [("n" + axis, "<f4") for axis in "xyz"]
    layout += [] if colors is None else [(name, "u1") for name in ("red", "green", "blue")]
    table = np.empty(len(points), layout)
    columns = torch.cat([part.double() for part in (points, normals, colors) if part is not None], 1)
    for (name, _), column in zip(layout, columns.T, strict=True):
        table[name] = column.numpy()
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n"
    head += "".join(f"property {_WORDS[kind]} {name}\n" for name, kind in layout)
    body = table.tobytes()
    if faces is not None:
        head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
        triangles = np.empty(len(faces), [("count", "u1"), ("corners", "<i4", 3)])
        triangles["count"], triangles["corners"] = 3, faces.numpy()
        body += triangles.tobytes()
    with replacing(path) as temporary:
        temporary.write_bytes(head.encode() + b"end_header\n" + body)
    return path
