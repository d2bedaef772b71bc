"""The history of a search for camera poses: kept in the run folder for pictures, and evaluated once for signs that it is hopeless."""

import math
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nerfit.cameras import Cameras
from nerfit.cameras.learned import LearnedCameras
from nerfit.scenes.images import replacing
from nerfit.scenes.scene import Scene, composite

FILE = "poses.safetensors"
"""The history's file in a run folder."""
_NUMBERS = ("steps", "progress", "psnr", "focal")
"""The numbers in a record beside the poses."""
MOST, FIRST_EVERY = 200, 5
"""Largest number of records, and steps between the first of them; beyond that number every second record is dropped."""
SHARE, EARLY, LATE = 0.1, 200, 400
"""Share of the budget after which a search is evaluated, but not before step 200 and at step 400 in any case."""
EXPLAINED, LITTLE = 0.7, 0.4
"""Shares of the pictures' variance that the field explains by then: a search is hopeless below 0.4, and below 0.7 if cameras diverge."""
DIVERGING, STRAIGHT = 0.15, 0.45
"""Cameras diverge if they are farther than this from their mean position on average, and have moved straight: the distance from their
first positions is more than this share of the length of their paths, which are measured in `LEGS` legs."""
LEGS = 10
LIKE = 0.25
"""Likeness of the pictures below which an adjustment has found no common surfaces."""
STUCK = 0.003
"""Mean distance from the mean position below which cameras have not moved."""


@dataclass
class PoseHistory:
    """Records of the training cameras at evenly spaced steps, fewer than ``MOST`` of them however long the training is."""

    every: int = FIRST_EVERY
    """Steps between records."""
    steps: list[int] = field(default_factory=list)
    progress: list[float] = field(default_factory=list)
    """Share of the budget spent at each record."""
    psnr: list[float] = field(default_factory=list)
    """PSNR of the training pixels, averaged over the latest steps, in dB."""
    c2w: list[Float[Tensor, "views 3 4"]] = field(default_factory=list)
    focal: list[float] = field(default_factory=list)
    """Mean focal length over the width."""

    @torch.no_grad()
    def record(self, cameras: LearnedCameras, scene: Scene, step: int, progress: float, psnr: float) -> None:
        """Record the cameras at every `every`-th step; warn once, early in the budget, if the search is hopeless."""
        if step % self.every:
            return
        now = cameras()
        self.steps.append(step)
        self.progress.append(progress)
        self.psnr.append(psnr)
        self.c2w.append(now.c2w[cameras.views].detach().float().cpu().clone())
        self.focal.append(float((now.fx / now.width).mean()))
        slow = cameras.config.warmup > 0  # cameras that hardly move at first can't be evaluated early
        search = cameras.config.start == "identity" and cameras.config.learn_from == 0
        if search and (why := self.hopeless(scene, math.inf if slow else LATE)):
            _warn_hopeless(why)
        if len(self.steps) >= MOST:
            self._thin()

    def check_likeness(self, likeness: float) -> None:
        """Warn that the search is hopeless if the first adjustment leaves the pictures unlike (`adjust_photometrically`)."""
        if likeness < LIKE:
            _warn_hopeless(f"seen from the cameras found by now, the photos agree to {likeness:.0%} only")

    def hopeless(self, scene: Scene, late: float = LATE) -> str | None:
        """Why the search is hopeless, returned once: at the first record after `SHARE` of the budget and `EARLY` steps, or at ``late``."""
        shared = [step >= EARLY and share >= SHARE for step, share in zip(self.steps, self.progress, strict=True)]
        due = [enough or step >= late for enough, step in zip(shared, self.steps, strict=True)]
        positions = torch.stack(self.c2w)[:, :, :, 3]
        spread = float((positions[-1] - positions[-1].mean(0)).norm(dim=-1).mean())
        if _now(shared) and spread < STUCK:
            return f"after {self.progress[-1]:.0%} of the run the cameras are no farther apart than {spread:.2g}"
        if not _now(due):
            return None
        explained = 1 - 10 ** (-self.psnr[-1] / 10) / _variance(scene)
        legs = positions[torch.linspace(0, len(positions) - 1, LEGS + 1).long()]
        path = legs.diff(dim=0).norm(dim=-1).sum(0).mean()
        straight = float((positions[-1] - positions[0]).norm(dim=-1).mean() / path.clamp(min=1e-9))
        diverging = spread > DIVERGING and straight > STRAIGHT
        if explained >= (EXPLAINED if diverging else LITTLE):
            return None
        what = f"after {self.steps[-1]} steps the field explains {max(explained, 0.0):.0%} of the pictures' variance only"
        return what + (f", and the cameras diverge ({spread:.2g} apart)" if diverging else "")

    def _thin(self) -> None:
        """Drop every second record."""
        self.every *= 2
        kept = [i for i, step in enumerate(self.steps) if step % self.every == 0]
        for name in (*_NUMBERS, "c2w"):
            setattr(self, name, [getattr(self, name)[i] for i in kept])

    def cameras(self, record: int, training: Cameras) -> Cameras:
        """The ``training`` cameras as they were at a record."""
        focal = self.focal[record] / float((training.fx / training.width).mean())
        return replace(training, c2w=self.c2w[record], fx=training.fx * focal, fy=training.fy * focal)

    def save(self, folder: Path) -> None:
        """Write the records into a run folder, whole or not at all."""
        if not self.steps:
            return
        tensors = {"c2w": torch.stack(self.c2w), "steps": torch.tensor(self.steps)}
        tensors |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in _NUMBERS[1:]}
        with replacing(folder / FILE) as temporary:
            temporary.write_bytes(save(tensors, {"every": str(self.every)}))

    @classmethod
    def load(cls, folder: Path, until: int) -> "PoseHistory":
        """The records in a run folder up to step ``until``; an empty history if there are none, with a warning if they are damaged."""
        try:
            with safe_open(folder / FILE, framework="pt") as file:
                about = file.metadata()
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - the file is replaced later
            count = len(tensors["steps"])
            size = tensors["c2w"].shape
            if size[:1] + size[2:] != (count, 3, 4) or any(tensors[name].shape != (count,) for name in _NUMBERS):
                raise ValueError("its shapes are wrong")
            kept = int((tensors["steps"] <= until).sum())
            lists = {name: tensors[name][:kept].tolist() for name in _NUMBERS}
            return cls(int(about["every"]), c2w=list(tensors["c2w"][:kept]), **lists)
        except FileNotFoundError:
            return cls()
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError, RuntimeError) as error:
            warnings.warn(f"{folder / FILE} is damaged ({error}): pictures of the search begin here.", stacklevel=2)
            return cls()


def _warn_hopeless(why: str) -> None:
    warnings.warn(
        f"the search for camera poses is probably hopeless: {why}. Photos must show one scene from positions side by side; try "
        "fewer or closer ones, --seeds 3, a lower --model.camera.lr, --recipe nerfmm-siren (of nerf), or nerfit poses (COLMAP).",
        stacklevel=2,
    )


def _now(due: list[bool]) -> bool:
    """Whether the newest record is the first that is due."""
    return due[-1] and not any(due[:-1])


def _variance(scene: Scene) -> float:
    """Variance of the training views' colours, from about ten thousand pixels of each view."""
    colors = []
    for view in scene.splits["train"]:
        start, size = int(scene.starts[view]), int(scene.cameras.width[view] * scene.cameras.height[view])
        pixels = scene.stored_pixels[start : start + size][:: -(-size // 10_000)].float() / 255
        colors.append(composite(pixels, scene.backdrop))
    return max(float(torch.cat(colors).var(0).mean()), 1e-9)
