"""Structure from motion by COLMAP (Schönberger and Frahm 2016), in this process: poses for photographs that have none.

Everything is done on upright copies of at most `PoseConfig.feature_size` pixels in a folder of nerfit's cache, never in the
user's. Features and matches lie in a database there, so an estimation that was stopped goes on where it was.
"""

import copy
import logging
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nerfit.errors import PoseError, SceneError
from nerfit.files import atomic_write, cache_folder, file_lock, fingerprint
from nerfit.progress import tick
from nerfit.scenes.posing.colmap import pycolmap
from nerfit.scenes.posing.copies import mask_folder, prepare
from nerfit.scenes.posing.mapping import map_pictures, parallax
from nerfit.scenes.posing.registration import (
    Links,
    PoseConfig,
    Report,
    View,
    advice,
    all_pairs,
    check_count,
    check_share,
    chosen_lens,
    reasons,
    sequence_pairs,
    why_missing,
)
from nerfit.scenes.posing.retrieval import similar_pairs
from nerfit.scenes.reading.colmap_model import poses, read_cameras, read_images
from nerfit.scenes.reading.intrinsics import cameras_of
from nerfit.scenes.reading.masks import Mask, masks_of
from nerfit.scenes.reading.picture_files import relative_names
from nerfit.scenes.writing import write_transforms

EXHAUSTIVE = 200
"""Photographs up to which all pairs are matched, unless the configuration says otherwise."""

MODELS = {
    "radial": ("SIMPLE_RADIAL", "RADIAL"),
    "opencv": ("SIMPLE_RADIAL", "OPENCV"),
    "fisheye": ("SIMPLE_RADIAL_FISHEYE", "OPENCV_FISHEYE"),
    "equirectangular": ("EQUIRECTANGULAR", "EQUIRECTANGULAR"),
}
"""COLMAP's camera models: one with few parameters, with which poses are found, and one that the last adjustment refines."""

_VERSION, _CENTRED, _CHUNK, _SEARCHERS = 2, 10, 100, 8
"""Of the cached results; photographs of a camera from which on its principal point is refined; pairs matched at a time; most
threads that look for features, each of which takes half a gigabyte."""


def estimate(what: str, pictures: Sequence[Path], config: PoseConfig, ordered: bool) -> tuple[Path, Report]:
    """The transforms.json of ``pictures`` of one folder in nerfit's cache, and the report; from the cache where it was made before.

    ``what`` is what messages call the whole; ``ordered`` pictures follow one another as a video's do.
    Raises SceneError for too few pictures, or where no poses are found.
    """
    start = time.perf_counter()
    check_count(what, len(pictures))
    masks = masks_of(pictures)
    files, sides = [*pictures, *(mask.file for mask in masks if mask)], [mask and mask.white_hides for mask in masks]
    folder = cache_folder() / "poses" / fingerprint(files, _VERSION, pycolmap.__version__, config, ordered, sides)
    with file_lock(folder):
        report = Report.load(folder / "report.json")
        if report is None or not (folder / "transforms.json").exists():
            with _colmap(what, folder):
                report = _estimate(what, folder, list(zip(pictures, masks, strict=True)), config, ordered, start)
    return folder / "transforms.json", report


@contextmanager
def _colmap(what: str, folder: Path) -> Iterator[None]:
    """COLMAP's log silenced unless debugging, and its exceptions as SceneErrors."""
    verbose = logging.getLogger("nerfit").isEnabledFor(logging.DEBUG)
    pycolmap.logging.minloglevel = 0 if verbose else 3
    try:
        yield
    except OSError as error:
        raise SceneError(f"{what}: {error.filename or folder} can't be read or written: {error.strerror or error}.") from error
    except (RuntimeError, ValueError, sqlite3.Error) as error:
        raise SceneError(f"{what}: COLMAP failed ({' '.join(str(error).split())[:200]}); remove {folder} and try again.") from error


def _estimate(
    what: str, folder: Path, pictures: Sequence[tuple[Path, Mask | None]], config: PoseConfig, ordered: bool, start: float
) -> Report:
    views, unused = prepare(folder / "pictures", pictures, config)
    check_count(what, len(views))
    config = replace(config, lens=chosen_lens(what, views, config.lens))
    database = folder / "database.db"
    _extract(database, folder / "pictures", views, config)
    _match(database, views, _pairs(database, views, config, ordered))
    links = _links(database, views)
    models = map_pictures(what, database, folder / "pictures", config.mapper, links)
    index = {view.key: i for i, view in enumerate(views)}
    groups = [{index[image.name] for image in model.images.values() if image.has_pose} for model in models]
    if not models:
        why = reasons({view.name: why_missing(i, views, links, []) for i, view in enumerate(views)})
        raise PoseError(
            f"{what}: no two of its {len(views)} pictures could be posed ({why}); take sharp pictures of a still, textured "
            "scene from positions side by side, each sharing two thirds of its content with the next."
        )
    missing = {view.name: why_missing(i, views, links, groups) for i, view in enumerate(views) if i not in groups[0]} | unused
    check_share(what, len(groups[0]), len(views), config, reasons(missing))
    model = _refined(models[0], config.lens)
    report = Report(
        scene=str(folder),
        photographs=len(pictures),
        registered=[views[i].name for i in sorted(groups[0])],
        missing={name: missing[name] for name in relative_names([path for path, _ in pictures]) if name in missing},
        masked=sum(view.hidden > 0 for view in views),
        cameras=len({image.camera_id for image in model.images.values() if image.has_pose}),
        points=model.num_points3D(),
        error=model.compute_mean_reprojection_error(),
        parallax=parallax(model),
        seconds=time.perf_counter() - start,
    )
    report.advice = advice(report)
    _write_scene(folder, model, {view.key: view for view in views})
    report.save(folder / "report.json")
    for copies in ("pictures", "masks"):
        shutil.rmtree(folder / copies, ignore_errors=True)
    database.unlink(missing_ok=True)
    return report


def _extract(database: Path, pictures: Path, views: Sequence[View], config: PoseConfig) -> None:
    """Cameras and images of all views in the database, and the features of those that have none yet."""
    cameras: dict[Any, list[View]] = {}
    for i, view in enumerate(views):
        cameras.setdefault((view.width, view.height, view.focal, view.path.parent) if config.shared_camera else i, []).append(view)
    if database.exists():
        with _opened(database) as db:
            if (db.num_cameras(), db.num_images()) != (len(cameras), len(views)):
                db.clear_all_tables()
    with _opened(database) as db:
        fresh = db.num_images() == 0
        numbers = [db.write_camera(_camera(group[0], config)) for group in cameras.values()] if fresh else []
    for number, group in zip(numbers, cameras.values(), strict=False):
        reader = pycolmap.ImageReaderOptions(existing_camera_id=number)
        pycolmap.import_images(database, pictures, image_names=[view.key for view in group], options=reader)
    with _opened(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        todo = [view.key for view in views if not db.exists_descriptors(ids[view.key])]
    threads = min(torch.get_num_threads(), _SEARCHERS)
    options, step = pycolmap.FeatureExtractionOptions(num_threads=threads), 2 * threads
    reader = pycolmap.ImageReaderOptions(mask_path=mask_folder(pictures))
    for i in range(0, len(todo), step):
        pycolmap.extract_features(database, pictures, image_names=todo[i : i + step], reader_options=reader, extraction_options=options)
        tick(len(views) - len(todo) + min(i + step, len(todo)), len(views), "pictures searched for features")


@contextmanager
def _opened(database: Path) -> Iterator[Any]:
    db = pycolmap.Database.open(database)
    try:
        yield db
    finally:
        db.close()


def _camera(view: View, config: PoseConfig) -> Any:
    """The lens to begin with: the EXIF data's focal length, or 1.2 times the longer side."""
    width, height = round(view.width / view.scale), round(view.height / view.scale)
    focal = 1.2 * max(width, height) if view.focal is None else view.focal / view.scale
    return pycolmap.Camera(
        model=MODELS[config.lens][0],
        width=width,
        height=height,
        params=[width, height] if config.lens == "equirectangular" else [focal, width / 2, height / 2, 0.0],
        has_prior_focal_length=view.focal is not None,
    )


def _pairs(database: Path, views: Sequence[View], config: PoseConfig, ordered: bool) -> list[tuple[int, int]]:
    """The pairs of views to be matched."""
    count, how = len(views), config.matching
    if how == "auto":
        how = "exhaustive" if count <= (60 if ordered else EXHAUSTIVE) else "sequential" if ordered else "retrieval"
    if how != "retrieval":
        return all_pairs(count) if how == "exhaustive" else sequence_pairs(count)
    with _opened(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        return similar_pairs(lambda view: db.read_descriptors(ids[views[view].key]).data, count)


def _match(database: Path, views: Sequence[View], pairs: Sequence[tuple[int, int]]) -> None:
    """Match the features of those pairs of views that were not matched yet, and keep what one motion of the camera explains."""
    with _opened(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        known, _ = db.read_two_view_geometry_num_inliers()
        done = {frozenset(pycolmap.pair_id_to_image_pair(pair)) for pair in known}
    number = [ids[view.key] for view in views]
    todo = [(i, j) for i, j in pairs if frozenset((number[i], number[j])) not in done]
    options = pycolmap.FeatureMatchingOptions(num_threads=torch.get_num_threads())
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = 0
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "pairs.txt"
        for start in range(0, len(todo), _CHUNK):
            chunk = todo[start : start + _CHUNK]
            listed.write_text("".join(f"{views[i].key} {views[j].key}\n" for i, j in chunk), "utf-8")
            pairing = pycolmap.ImportedPairingOptions(match_list_path=listed)
            pycolmap.match_image_pairs(database, options, pairing, geometry)
            tick(len(pairs) - len(todo) + start + len(chunk), len(pairs), "pairs matched")


def _links(database: Path, views: Sequence[View]) -> Links:
    with _opened(database) as db:
        ids = {image.name: image.image_id for image in db.read_all_images()}
        index = {ids[view.key]: i for i, view in enumerate(views)}
        features = [db.num_keypoints_for_image(ids[view.key]) for view in views]
        pairs, counts = db.read_two_view_geometry_num_inliers()
    ends = [sorted(index[image] for image in pycolmap.pair_id_to_image_pair(pair)) for pair in pairs]
    return Links(features, {(a, b): count for (a, b), count in zip(ends, counts, strict=True) if count > 0})


def _refined(model: Any, lens: str) -> Any:
    """The model after a last adjustment with more terms of the lens.

    The principal point is one of them where every camera took enough pictures, unless that takes it out of the middle fifth;
    the tangential terms of an opencv lens stand in for it. Panoramas have no terms.
    """
    if lens == "equirectangular":
        return model
    uses = [image.camera_id for image in model.images.values() if image.has_pose]
    centre = lens != "opencv" and min(uses.count(camera) for camera in set(uses)) >= _CENTRED
    refined = _adjusted(model, lens, centre)
    if any(
        abs(c.principal_point_x / c.width - 0.5) > 0.1 or abs(c.principal_point_y / c.height - 0.5) > 0.1 for c in refined.cameras.values()
    ):
        return _adjusted(model, lens, False)
    return refined


def _adjusted(model: Any, lens: str, centre: bool) -> Any:
    model = copy.deepcopy(model)
    for camera in model.cameras.values():
        f, cx, cy, k = camera.params
        camera.model = getattr(pycolmap.CameraModelId, MODELS[lens][1])
        camera.params = [f, cx, cy, k, 0] if lens == "radial" else [f, f, cx, cy, k, 0, 0, 0]
    options = pycolmap.BundleAdjustmentOptions(refine_principal_point=centre, print_summary=False)
    options.ceres.solver_options.num_threads = torch.get_num_threads()
    images = pycolmap.BundleAdjustmentConfig()
    for image in model.reg_image_ids():
        images.add_image(image)
    images.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, images, model).solve()
    model.update_point_3d_errors()
    return model


def _write_scene(folder: Path, model: Any, views: dict[str, View]) -> None:
    """Write transforms.json, with lenses in pixels of the user's pictures, and the points; ``views`` are known by their keys."""
    with tempfile.TemporaryDirectory() as binary:
        model.write_binary(binary)
        cameras, images = read_cameras(Path(binary)), read_images(Path(binary))
    used = [cameras[image.camera] for image in images]
    posed = [views[image.name] for image in images]
    small = cameras_of(poses(images), [camera.lens for camera in used], [(camera.width, camera.height) for camera in used], 0.5)
    width, height = (torch.tensor([getattr(view, side) for view in posed]) for side in ("width", "height"))
    sx, sy = width / small.width, height / small.height
    full = replace(small, fx=small.fx * sx, fy=small.fy * sy, cx=small.cx * sx, cy=small.cy * sy, width=width, height=height)
    with atomic_write(folder / "points3d.ply") as part:
        model.export_PLY(part)
    write_transforms(folder, full, [str(view.path.resolve()) for view in posed], points=folder / "points3d.ply")
