"""A folder of photographs and nothing else: their poses are estimated, once, and kept in nerfit's cache."""

import json
import shutil
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from nerfit.errors import SceneError
from nerfit.files import write_json
from nerfit.scenes.formats import transforms
from nerfit.scenes.images import write_png
from nerfit.scenes.posing.registration import PoseConfig, Report
from nerfit.scenes.reading.masks import masks_of, visible_part
from nerfit.scenes.reading.picture_files import photographs, read_photographs, relative_names
from nerfit.scenes.scene import Scene


@dataclass
class Config(PoseConfig, transforms.Config):
    """How a folder of photographs is posed and read."""

    def unused(self) -> dict[str, str]:
        """Keys of files that list their pictures."""
        return {"allow_outside": "the photographs are those of the folder", "depths": "photographs come without depth maps"}


def detect(source: str) -> bool:
    """A folder with two pictures or more, or with a folder ``images`` of that kind."""
    return len(photographs(Path(source))) > 1


def load(source: str, config: Config) -> Scene:
    """The photographs that have a pose, as `transforms.load` reads them; those without are named in a warning.

    Raises SceneError where no poses are found.
    """
    return posed_scene(*estimate(source, config), config, Path(source).resolve().name, "photos")


def estimate(source: str, config: PoseConfig) -> tuple[Path, Report]:
    """Poses of the photographs in a folder: a transforms.json in nerfit's cache, and the report."""
    from nerfit.scenes.posing import sfm

    poses = PoseConfig(**{f.name: getattr(config, f.name) for f in fields(PoseConfig)})
    return sfm.estimate(source, read_photographs(Path(source)), poses, ordered=False)


def posed_scene(file: Path, report: Report, config: transforms.Config, name: str, form: str) -> Scene:
    """A scene of estimated poses; says which pictures have none."""
    if report.missing:
        warnings.warn(f"{name}: {report.missing_text()}", stacklevel=3)
    scene = transforms.load(str(file), config)
    scene.name, scene.format = name, form
    scene.view_names = relative_names([Path(file.parent, view) for view in scene.view_names])
    return scene


def export(file: Path, report: Report, out: Path) -> Path:
    """Copy an estimated scene, its pictures and their masks into ``out``, a folder for other programs; returns its transforms.json.

    Its transforms.json appears when all else is there. Raises SceneError when ``out`` holds anything or can't be written.
    """
    meta = json.loads(file.read_text(encoding="utf-8"))
    part = out / ".part"
    if out.exists() and (not out.is_dir() or any(path != part for path in out.iterdir())):
        raise SceneError(f"{out} exists already: choose another --out.")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        (part / "images").mkdir(parents=True)
        pictures = [Path(frame["file_path"]) for frame in meta["frames"]]
        for frame, picture, name, mask in zip(meta["frames"], pictures, relative_names(pictures), masks_of(pictures), strict=True):
            frame["file_path"] = f"images/{name}"
            (part / frame["file_path"]).parent.mkdir(exist_ok=True)
            shutil.copyfile(picture, part / frame["file_path"])
            if mask:
                write_png(part / "masks" / f"{name}.png", visible_part(mask).astype(np.uint8) * 255)
        shutil.copyfile(file.parent / meta["ply_file_path"], part / meta["ply_file_path"])
        write_json(part / "transforms.json", meta)
        report.save(part / "report.json")
        for path in sorted(part.iterdir()):
            path.replace(out / path.name)
        part.rmdir()
    except OSError as error:
        raise SceneError(f"{out} can't be written: {error.strerror}.") from error
    return out / "transforms.json"
