"""Random training pixels and their rays on CPUs."""

import numpy as np
import torch
from torch import Tensor

from nerfit.kernels.cpu.runtime import inlined, kernel, part_of_kernel, run_parallel
from nerfit.kernels.cpu.tensors import array, f32
from nerfit.kernels.layouts import ATTEMPTS, Optics, PixelTable

_GOLDEN, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@inlined
def _splitmix(key, number):
    z = np.uint64(number) * _GOLDEN + key
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@kernel
def _draw_pixels(part, parts, table, views, numbers, out):
    """``out``, (view, column, row, colour) of random pixels; see the public function.

    ``table`` is (pixels, starts, width, height), ``numbers`` (count, first, every, key, threshold, attempts).
    """
    pixels, starts, width, height = table
    count, first, every, key, threshold, attempts = numbers
    view, x, y, colors = out
    channels = pixels.shape[1]
    many = np.uint64(views.size)
    for i in range(view.size * part // parts, view.size * (part + 1) // parts):
        at = np.int64(0)
        for attempt in range(attempts):
            number = 2 * (attempt * count + first + i * every)
            one, two = _splitmix(np.uint64(key), number), _splitmix(np.uint64(key), number + 1)
            v = views[((one >> _32) * many) >> _32]
            column = np.int64(((two >> _32) * np.uint64(width[v])) >> _32)
            row = np.int64(((two & _LOW) * np.uint64(height[v])) >> _32)
            at = starts[v] + row * width[v] + column
            view[i], x[i], y[i] = v, column, row
            if channels == 3 or pixels[at, channels - 1] > 0 or (one & _LOW) < np.uint64(threshold):
                break
        for c in range(channels):
            colors[i, c] = pixels[at, c] / np.float32(255)


@part_of_kernel
def _undistort(ud, vd, k, iterations):
    """Newton steps from (ud, vd), halved where the lens folds; cameras/lenses.py defines it. Double precision."""
    k1, k2, k3, k4, p1, p2, d1, d2, d3, s1, s2, s3, s4 = k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7], k[8], k[9], k[10], k[11], k[12]
    good_u, good_v, u, v = 0.0, 0.0, ud, vd
    for _ in range(iterations + 1):
        r2 = u * u + v * v
        below = 1 + r2 * (d1 + r2 * (d2 + r2 * d3))
        fine = below > 1e-6
        eu = ev = a = b = c = d = det = 0.0
        if fine:
            radial = (1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))) / below
            slope = 2 * (k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4)) - radial * (d1 + r2 * (2 * d2 + r2 * 3 * d3))) / below
            prism_u, prism_v = 2 * (s1 + 2 * r2 * s2), 2 * (s3 + 2 * r2 * s4)
            mixed = u * v * slope + 2 * p1 * u + 2 * p2 * v
            eu = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) + r2 * (s1 + r2 * s2) - ud
            ev = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v + r2 * (s3 + r2 * s4) - vd
            a, b = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u + u * prism_u, mixed + v * prism_u
            c, d = mixed + u * prism_v, radial + v * v * slope + 6 * p1 * v + 2 * p2 * u + v * prism_v
            det = a * d - b * c
            fine = a + d > 0 and det > 1e-6
        if fine:
            good_u, good_v = u, v
            du, dv = (d * eu - b * ev) / det, (a * ev - c * eu) / det
            u, v = u - du, v - dv
            if abs(du) + abs(dv) < 1e-9:
                break
        else:
            u, v = (good_u + u) / 2, (good_v + v) / 2
    return good_u, good_v


@kernel
def _camera_rays(part, parts, cameras, offset, iterations, pixels, out):
    """World rays through pixels of cameras with any lens; `Cameras.directions` defines them.

    ``cameras`` is (c2w, fx, fy, cx, cy, lens, distortion), ``pixels`` (view, column, row), ``out`` (directions, viewdirs, origins).
    """
    c2w, fx, fy, cx, cy, lens, distortion = cameras
    views, x, y = pixels
    directions, viewdirs, origins = out
    n = views.size
    for i in range(n * part // parts, n * (part + 1) // parts):
        view = views[i]
        u = (np.float32(x[i]) + offset - cx[view]) / fx[view]
        v = (np.float32(y[i]) + offset - cy[view]) / fy[view]
        depth = np.float32(1)
        if distortion.shape[0] > 0:
            ideal = _undistort(np.float64(u), np.float64(v), distortion[view], iterations)
            u, v = np.float32(ideal[0]), np.float32(ideal[1])
        if lens.size > 0 and lens[view] > 0:
            if lens[view] == 1:
                angle = min(np.sqrt(u * u + v * v), np.float32(np.pi))
                sine = np.sin(angle) / angle if angle > 0 else np.float32(1)
                u, v, depth = u * sine, v * sine, np.cos(angle)
            else:
                u, v, depth = np.cos(v) * np.sin(u), np.sin(v), np.cos(v) * np.cos(u)
        square = np.float32(0)
        for axis in range(3):
            along = c2w[view, axis, 0] * u - c2w[view, axis, 1] * v - c2w[view, axis, 2] * depth
            directions[i, axis] = along
            origins[i, axis] = c2w[view, axis, 3]
            square += along * along
        norm = max(np.sqrt(square), np.float32(1e-12))
        for axis in range(3):
            viewdirs[i, axis] = directions[i, axis] / norm


def draw_pixels(
    table: PixelTable, views: Tensor, count: int, key: int, threshold: int, first: int, every: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """View, column, row and colour."""
    drawn = len(range(first, count, every))
    out = tuple(torch.empty(drawn, dtype=torch.long) for _ in range(3)) + (torch.empty(drawn, table.pixels.shape[1]),)
    stored = tuple(map(array, (table.pixels, table.starts, table.width, table.height)))
    run_parallel(_draw_pixels, stored, array(views), (count, first, every, key, threshold, ATTEMPTS), tuple(map(array, out)))
    return out[0], out[1], out[2], out[3]


def camera_rays(optics: Optics, views: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Directions, unit directions, origins."""
    o = optics
    lens = np.empty(0, np.int64) if o.lens is None else array(o.lens)
    distortion = np.empty((0, 13), f32) if o.distortion is None else array(o.distortion)
    out = torch.empty(len(views), 3), torch.empty(len(views), 3), torch.empty(len(views), 3)
    cameras = (*map(array, (o.c2w, o.fx, o.fy, o.cx, o.cy)), lens, distortion)
    run_parallel(_camera_rays, cameras, f32(o.offset), o.iterations, tuple(map(array, (views, x, y))), tuple(map(array, out)))
    return out
