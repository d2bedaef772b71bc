"""Drawing camera paths and views: PNGs and videos of colour, depth, disparity, opacity and normals."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.ndc import from_ndc, to_ndc
from nerfit.cameras.poses import rays_meet
from nerfit.errors import ConfigError, nearest
from nerfit.methods.base import Method
from nerfit.methods.views import render_view
from nerfit.outputs.pictures.video import write_video
from nerfit.rendering.volume import Rendering
from nerfit.scenes.images import colorize, read_depth_png, read_image, to_bytes, write_depth_png, write_png
from nerfit.scenes.scene import Scene
from nerfit.training.distributed import collected, is_main, share

QUANTITIES = ("rgb", "depth", "disparity", "opacity", "normal")


def checked_quantities(names: str) -> list[str]:
    """The quantities of a comma-separated list."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in QUANTITIES:
            raise ConfigError(f"'{name}' can't be rendered{nearest(name, QUANTITIES)} (choose from {', '.join(QUANTITIES)}).")
    return chosen


def write_frame(name: str, rendering: Rendering, path: Path, normals: Callable[[], Tensor], scene: Scene) -> None:
    """Write one quantity of a view as a PNG; depth has 16 bits, in units of far/65535, and carries its scale in the file."""
    if name == "rgb":
        return write_png(path, rendering.rgb)
    if rendering.depth is None or rendering.disparity is None or rendering.opacity is None:
        raise ConfigError("this method renders colour only: use --what rgb.")
    if name == "depth":
        return write_depth_png(path, rendering.depth, scene.far / 65535, "NDC depth" if scene.ndc else "scene units")
    if name == "opacity":
        return write_png(path, rendering.opacity)
    if name == "normal":
        return write_png(path, normals() * 0.5 + 0.5)
    # NDC depth runs from 0 at the near plane to 1 at infinity: true disparity over the near plane's is 1 - depth.
    disparity = (1 - rendering.depth) * rendering.opacity if scene.ndc else rendering.disparity * rendering.opacity * scene.near
    return write_png(path, colorize(disparity, 0.0, 1.0))


def in_reach(scene: Scene, cameras: Cameras, view: int) -> Scene:
    """The scene with near and far for a camera that stands nearer to an object, or farther from it, than any training camera.

    They are moved by as much, so that the object lies between them as it did.
    """
    if scene.bounds != "object" or scene.ndc:
        return scene
    train = scene.cameras[scene.splits["train"]]
    point = rays_meet(train).point
    known = (train.centers.double() - point).norm(dim=-1)
    distance = float((cameras.centers[view].double() - point).norm())
    moved = distance - min(max(distance, float(known.min())), float(known.max()))
    if not moved:
        return scene
    near = max(scene.near + moved, 0.01 * (scene.far - scene.near))
    return replace(scene, near=near, far=max(scene.far + moved, 2 * near))


def view_normals(method: Method, scene: Scene, cameras: Cameras, index: int, rendering: Rendering, chunk: int) -> Tensor:
    """World-space unit normals [height, width, 3] at the expected depth, 0 on empty rays.

    Minus the density's gradient, averaged over the corners of a cube two pixels wide and computed in float32: a field's
    finest waves are shorter than a pixel, and their gradient is noise.
    """
    depth, opacity = rendering.depth, rendering.opacity
    assert depth is not None and opacity is not None
    camera = cameras[index].to(method.device)
    warp = scene.ndc_by(method.device) if scene.ndc else None
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).to(method.device)
    flat_depth = (depth / opacity.clamp(min=1e-6)).reshape(-1).to(method.device)
    out = []
    precision, method.precision = method.precision, torch.float32
    try:
        for pixels in torch.arange(flat_depth.numel()).split(max(1, chunk // len(corners))):
            rays = method.view_batch(scene, cameras, index, pixels).rays
            assert rays is not None
            t = flat_depth[pixels.to(method.device), None]
            points = rays.origins + rays.directions * t
            if warp is not None:
                points = from_ndc(points, *warp)
                t = -points[:, 2:]
            with torch.enable_grad():
                cube = (points[:, None] + t[..., None] / camera.fx * corners).reshape(-1, 3).detach().requires_grad_()
                density = method.density(cube if warp is None else to_ndc(cube, *warp))
                (gradient,) = torch.autograd.grad(density.sum(), cube)
            out.append(-torch.nn.functional.normalize(gradient.reshape(len(pixels), -1, 3).mean(1), dim=-1).cpu())
    finally:
        method.precision = precision
    normals = torch.cat(out).reshape(*depth.shape, 3)
    return normals * (opacity > 0.5)[..., None]


def frame_file(folder: Path, name: str, index: int) -> Path:
    """The file of a frame of a quantity."""
    return folder / name / f"{index:04d}.png"


@dataclass
class PathFrames:
    """The pictures of a camera path: quantities ``names`` (`QUANTITIES`) of a method's scene along ``cameras``.

    ``chunk`` is the most rays in one piece. ``look`` gives the cameras whose view directions are used instead, where they differ.
    """

    method: Method
    scene: Scene
    cameras: Cameras
    names: list[str]
    chunk: int
    look: Cameras | None = None

    def draw(self, folder: Path, frames: Iterable[int], report: Callable[[], None] = lambda: None) -> None:
        """Write some frames into ``folder`` as <quantity>/0000.png ...; ``report`` is called after each."""
        for index in frames:
            scene = in_reach(self.scene, self.cameras, index)
            rendering = render_view(self.method, scene, self.cameras, index, self.chunk, self.look)

            def normals(index: int = index, rendering: Rendering = rendering) -> Tensor:
                return view_normals(self.method, self.scene, self.cameras, index, rendering, self.chunk)

            for name in self.names:
                write_frame(name, rendering, frame_file(folder, name, index), normals, self.scene)
            report()

    def missing(self, folder: Path) -> list[int]:
        """The frames that ``folder`` lacks."""
        return [i for i in range(len(self.cameras)) if not all(frame_file(folder, name, i).exists() for name in self.names)]

    def write_videos(self, folder: Path, fps: float = 30.0, beside: bool = False, kind: str = "mp4") -> list[Path]:
        """A video of each quantity's frames in ``folder``, if they are several; ``beside`` makes one of all quantities side by side.

        ``kind`` is mp4, gif or webp. Returns the videos. Memory does not grow with the number of frames.
        """
        if len(self.cameras) < 2:
            return []
        videos = {name: self._read(folder, name) for name in self.names}
        if beside:
            rows = zip(*videos.values(), strict=True)
            videos = {"-".join(self.names): (np.concatenate([to_bytes(picture) for picture in row], 1) for row in rows)}
        return [write_video(folder / f"{name}.{kind}", pictures, fps) for name, pictures in videos.items()]

    def _read(self, folder: Path, name: str) -> Iterator[np.ndarray]:
        """The frames of a quantity, read back from their PNGs; depth in colour."""
        for index in range(len(self.cameras)):
            path = frame_file(folder, name, index)
            yield colorize(read_depth_png(path)[0], self.scene.near, self.scene.far) if name == "depth" else read_image(path)[..., :3]


def render_path(frames: PathFrames, folder: Path, fps: float = 30.0, report: Callable[[int, int], None] = lambda *_: None) -> list[Path]:
    """Draw a camera path into ``folder``/<quantity>/0000.png ..., and a video of each quantity, which are returned.

    ``report(done, of)`` is called after each frame. Processes that train together share the frames, and the first writes the videos.
    """
    draw_share(frames, folder, report)
    return frames.write_videos(folder, fps) if is_main() else []


def draw_share(frames: PathFrames, folder: Path, report: Callable[[int, int], None]) -> None:
    """Draw this process's share of a path's frames; all of them are in ``folder`` afterwards."""
    count, together = len(frames.cameras), share()
    done = iter(range(1, count + 1))
    with collected(folder) as into:
        frames.draw(into, together.indices(count).tolist(), lambda: report(min(next(done) * together.world_size, count), count))
