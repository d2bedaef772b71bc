"""Random training pixels on CPUs."""

import numpy as np

from nerfit.kernels.cpu.runtime import inlined, kernel

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
def draw_pixels(part, parts, pixels, starts, width, height, views, key, threshold, attempts, view, x, y, colors):
    """View, column, row and colour of random pixels; see the public function."""
    count, channels = view.size, pixels.shape[1]
    many = np.uint64(views.size)
    for i in range(count * part // parts, count * (part + 1) // parts):
        at = np.int64(0)
        for attempt in range(attempts):
            number = 2 * (attempt * count + i)
            first, second = _splitmix(np.uint64(key), number), _splitmix(np.uint64(key), number + 1)
            v = views[((first >> _32) * many) >> _32]
            column = np.int64(((second >> _32) * np.uint64(width[v])) >> _32)
            row = np.int64(((second & _LOW) * np.uint64(height[v])) >> _32)
            at = starts[v] + row * width[v] + column
            view[i], x[i], y[i] = v, column, row
            if channels == 3 or pixels[at, channels - 1] > 0 or (first & _LOW) < np.uint64(threshold):
                break
        for c in range(channels):
            colors[i, c] = pixels[at, c] / np.float32(255)


@kernel
def camera_rays(part, parts, c2w, fx, fy, cx, cy, distortion, offset, iterations, views, x, y, directions, viewdirs, origins):
    """World rays through pixels of pinhole cameras, Brown's distortion undone by Newton steps (cameras/lenses.py)."""
    n = views.size
    for i in range(n * part // parts, n * (part + 1) // parts):
        view = views[i]
        ud = (np.float32(x[i]) + offset - cx[view]) / fx[view]
        vd = (np.float32(y[i]) + offset - cy[view]) / fy[view]
        u, v = ud, vd
        if distortion.shape[0] > 0:
            k1, k2, p1, p2, k3 = (
                distortion[view, 0],
                distortion[view, 1],
                distortion[view, 2],
                distortion[view, 3],
                distortion[view, 4],
            )
            for _ in range(iterations):
                r2 = u * u + v * v
                radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
                slope = 2 * (k1 + r2 * (2 * k2 + r2 * 3 * k3))
                eu = u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u) - ud
                ev = v * radial + p1 * (r2 + 2 * v * v) + 2 * p2 * u * v - vd
                a = radial + u * u * slope + 2 * p1 * v + 6 * p2 * u
                b = u * v * slope + 2 * p1 * u + 2 * p2 * v
                d = radial + v * v * slope + 6 * p1 * v + 2 * p2 * u
                det = a * d - b * b
                if abs(det) < 1e-9:
                    det = 1e-9
                u, v = u - (d * eu - b * ev) / det, v - (a * ev - b * eu) / det
        square = np.float32(0)
        for axis in range(3):
            along = c2w[view, axis, 0] * u - c2w[view, axis, 1] * v - c2w[view, axis, 2]
            directions[i, axis] = along
            origins[i, axis] = c2w[view, axis, 3]
            square += along * along
        norm = max(np.sqrt(square), np.float32(1e-12))
        for axis in range(3):
            viewdirs[i, axis] = directions[i, axis] / norm
