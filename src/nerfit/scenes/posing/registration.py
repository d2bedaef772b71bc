"""Registration of photographs without poses: its options, and the report on which pictures have a pose and why others have none."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from nerfit.errors import PoseError, SceneError
from nerfit.files import write_json
from nerfit.progress import say
from nerfit.scenes.reading.picture_files import few

FEW_FEATURES, FEW_MATCHES = 150, 30
"""Fewer features in a picture, or matches with its best partner, seldom give a pose (COLMAP asks for 30 matches)."""

DARK, BLURRED, HIDDEN = 25, 0.2, 0.9
"""Mean grey level of a picture too dark, sharpness, as a share of the median of all, of one too blurred, and hidden share of one too
much masked."""


Mapper = Literal["auto", "incremental", "global"]
Lens = Literal["auto", "radial", "opencv", "fisheye", "equirectangular"]

LITTLE_PARALLAX = 2.0
"""Median angle in degrees between the rays of a point below which depths are doubtful."""


@dataclass
class PoseConfig:
    """How camera poses are estimated."""

    shared_camera: bool = True
    """Pictures of one folder with the same size and focal length share one camera; otherwise each picture has its own."""
    lens: Lens = "auto"
    """radial = two terms of distortion; opencv = tangential terms and a second focal length too; fisheye = very wide lenses;
    equirectangular = panoramas. auto = equirectangular where all pictures are twice as wide as high, else radial."""
    matching: Literal["auto", "exhaustive", "sequential", "retrieval"] = "auto"
    """Pairs of pictures to match: exhaustive = all; sequential = neighbours in the order of names and some far pairs; retrieval = pictures
    that look alike. auto = exhaustive up to 200 photographs, retrieval beyond that, sequential for videos."""
    mapper: Mapper = "auto"
    """incremental = add one picture after the other, from starts with less and less parallax; global = solve for all poses at once
    (GLOMAP). auto = incremental, and global where that leaves out more than a tenth."""
    least_share: float = 0.25
    """Smallest share of the pictures with a pose that makes a scene; fewer are an error."""
    feature_size: int = 1600
    """Longest side in pixels of the copies in which features are searched."""


@dataclass
class View:
    """A picture before it has a pose: ``name`` is the user's, ``key`` that of its copy for matching."""

    name: str
    path: Path
    key: str
    width: int
    height: int
    scale: float
    """Size of the picture over that of its copy."""
    focal: float | None
    """Focal length from the EXIF data, in pixels of the picture."""
    brightness: float
    sharpness: float
    digest: str
    thumbnail: list[int]
    hidden: float = 0.0
    """Share of the picture that a mask or transparency hides, where no features are searched."""


@dataclass
class Links:
    """Features of each view, and numbers of verified matches of pairs of views (pairs without a match are left out)."""

    features: list[int]
    matches: dict[tuple[int, int], int]

    def partners(self, view: int) -> dict[int, int]:
        """Matches of a view with each other one."""
        return {a + b - view: count for (a, b), count in self.matches.items() if view in (a, b)}


@dataclass
class Report:
    """The result of an estimation: ``scene`` is its path, ``missing`` gives the reason for each photograph without a pose."""

    scene: str
    photographs: int
    registered: list[str]
    missing: dict[str, str] = field(default_factory=dict)
    masked: int = 0
    """Photographs with a part that a mask or transparency hides."""
    cameras: int = 1
    points: int = 0
    error: float = 0.0
    """Mean reprojection error in pixels of the copies."""
    parallax: float = 0.0
    """Median over the points of the largest angle between two rays to it, degrees."""
    seconds: float = 0.0
    advice: list[str] = field(default_factory=list)

    def save(self, file: Path) -> None:
        """Write the report as JSON."""
        write_json(file, asdict(self))

    @classmethod
    def load(cls, file: Path) -> "Report | None":
        """A report that `save` wrote; None where there is none that can be read."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def text(self) -> str:
        """The report for a reader."""
        lenses = "one lens" if self.cameras == 1 else f"{self.cameras} lenses"
        lines = [
            f"{len(self.registered)} of {self.photographs} pictures have a pose ({lenses}, {self.points} points, "
            f"mean error {self.error:.2f} pixels, {self.seconds:.0f} s)"
        ]
        if self.masked:
            lines.append(f"  masked and transparent parts of {self.masked} pictures were ignored")
        lines += [f"  without: {name}: {why}" for name, why in self.missing.items()]
        return "\n".join([*lines, *self.advice])

    def missing_text(self) -> str:
        """One sentence about the photographs without a pose, or nothing."""
        what = f"{len(self.missing)} of {self.photographs} pictures have no pose and are left out"
        return f"{what} ({reasons(self.missing)})." if self.missing else ""


def reasons(missing: dict[str, str]) -> str:
    """The first of the pictures without a pose, each with its reason."""
    return few([f"{name}: {why}" for name, why in missing.items()], "; ")


def why_missing(view: int, views: Sequence[View], links: Links, groups: Sequence[set[int]]) -> str:
    """Why a view has no pose; ``groups`` are the views that were registered together, the largest group first."""
    features, partners = links.features[view], links.partners(view)
    if features < FEW_FEATURES:
        return f"only {features} features; it {_weakness(view, views)}"
    main = groups[0] if groups else set()
    if (twin := next((other for other in sorted(main) if _alike(views[view], views[other])), None)) is not None:
        return f"nearly the same picture as {views[twin].name}"
    best = max(partners, key=lambda other: partners[other], default=None)
    if best is None or partners[best] < FEW_MATCHES:
        found = "none" if best is None else f"at most {partners[best]}, with {views[best].name}"
        return f"too few features that other pictures have too ({found}); it {_weakness(view, views)}"
    if group := next((group for group in groups[1:] if view in group), None):
        return f"one of {len(group)} pictures that hang together but not with the rest"
    if not main & partners.keys():
        return f"matches only {views[best].name} and others without a pose"
    return f"{partners[best]} matches with {views[best].name}, but no pose explains them (the camera only turned, or things moved)"


def _weakness(view: int, views: Sequence[View]) -> str:
    """The likely weakness of a picture, as the end of a sentence."""
    median = sorted(v.sharpness for v in views)[len(views) // 2]
    if views[view].hidden > HIDDEN:
        return "is all but hidden by its mask"
    if views[view].brightness < DARK:
        return "is very dark"
    if views[view].sharpness < BLURRED * median:
        return "is blurred, or shows little texture"
    return "shows little texture or a place that no other picture shows"


def _alike(a: View, b: View) -> bool:
    """Whether two thumbnails differ by less than two grey levels on average."""
    return sum(abs(x - y) for x, y in zip(a.thumbnail, b.thumbnail, strict=True)) < 2 * len(a.thumbnail)


def advice(report: Report) -> list[str]:
    """Sentences on how to improve a result that is not as good as it should be."""
    out = []
    if len(report.registered) < report.photographs / 2:
        out.append("less than half of the pictures have a pose: they may show separate places; read the reasons above before you train.")
    if any("no other picture" in why or "other pictures have too" in why for why in report.missing.values()):
        out.append(
            "take sharp pictures of a still scene from positions side by side, each sharing two thirds of its content with the next."
        )
    if report.parallax < LITTLE_PARALLAX and report.points:
        out.append(
            f"the poses are doubtful: half of the points are seen under less than {report.parallax:.1f} degrees, as when a camera turns in "
            "place or looks far away; take pictures from positions farther apart."
        )
    if report.error > 1.5:
        out.append("the error is large: try --lens opencv (--lens fisheye for very wide lenses), or leave out moving things.")
    return out


def chosen_lens(what: str, views: Sequence[View], lens: Lens) -> Lens:
    """The lens that ``auto`` stands for; panoramas are named in a message."""
    if lens != "auto":
        return lens
    if all(view.width == 2 * view.height for view in views):
        say(f"{what}: all pictures are twice as wide as high, so they are read as panoramas (--scene.lens radial overrides)")
        return "equirectangular"
    return "radial"


def check_share(what: str, posed: int, count: int, config: PoseConfig, why: str) -> None:
    """Raise PoseError where fewer pictures have a pose than make a scene; ``why`` are reasons of some."""
    if posed < config.least_share * count:
        raise PoseError(
            f"{what}: only {posed} of {count} pictures could be posed together ({why}); --scene.least-share {posed / count:.2f} trains on "
            "them, and --scene.format unposed learns cameras that look one way with the scene."
        )


def sequence_pairs(count: int, overlap: int = 10, every: int = 60) -> list[tuple[int, int]]:
    """Pairs i < j of a sequence: up to ``overlap`` or a power of two apart, and, so that loops close, all of ``every`` spread views."""
    steps = {*range(1, overlap + 1), *(2**k for k in range(count.bit_length()))}
    stride = max(1, -(-count // every))
    spread = range(0, count, stride)
    near = {(i, i + step) for step in steps for i in range(count - step)}
    return sorted(near | {(i, j) for i in spread for j in spread if i < j})


def sharpness(grey: Float[np.ndarray, "height width"]) -> float:
    """Variance of the Laplacian of grey levels [height, width]: small where a picture is blurred (Pech-Pacheco et al. 2000)."""
    if min(grey.shape) < 3:
        return 0.0
    centre = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * centre).var())


def all_pairs(count: int) -> list[tuple[int, int]]:
    """All pairs i < j."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def check_count(what: str, count: int) -> None:
    """Raise SceneError for fewer pictures than a pose needs."""
    if count < 3:
        raise SceneError(f"{what} holds {count} pictures that can be used; poses need at least 3, and good ones 20 or more.")
