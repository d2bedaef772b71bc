"""A video of a still scene: its sharpest frames, evenly spread, posed as photographs are."""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import UInt8
from PIL import Image

from nerfit.errors import ConfigError, SceneError
from nerfit.files import atomic_write, cache_folder, file_lock, fingerprint
from nerfit.progress import tick
from nerfit.scenes.colour import is_wide, video_srgb
from nerfit.scenes.formats import photos
from nerfit.scenes.posing.registration import PoseConfig, Report, sharpness
from nerfit.scenes.reading.picture_files import picture_files
from nerfit.scenes.scene import Scene

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".gif")
"""Endings of the names of videos, in small letters."""

RATE, FEWEST = 2.0, 60
"""Default number of frames taken per second of video, and the least number of all frames taken."""

_COPY, _MOST_PIXELS, _VERSION = 480, 100_000_000, 2
"""Longest side of the copies whose sharpness is measured; frames with more pixels are refused; of the cached frames."""


@dataclass
class VideoConfig(PoseConfig):
    """How frames of a video are chosen, and posed."""

    fps: float | None = None
    """Frames taken per second of video, the sharpest of each time span; none = 2, and more from a short video."""
    most_frames: int = 300
    """Largest number of frames taken from a video."""


@dataclass
class Config(VideoConfig, photos.Config):
    """How a video is taken apart, posed and read."""


def detect(source: str) -> bool:
    """A video file."""
    return Path(source).suffix.lower() in SUFFIXES and Path(source).is_file()


def load(source: str, config: Config) -> Scene:
    """The frames that have a pose, as `transforms.load` reads them; raises SceneError for a file without frames, or without poses."""
    return photos.posed_scene(*estimate(source, config), config, Path(source).resolve().stem, "video")


def estimate(source: str, config: VideoConfig) -> tuple[Path, Report]:
    """Poses of a video's frames: a transforms.json in nerfit's cache, and the report."""
    from nerfit.scenes.posing import sfm

    frames = extract(Path(source), config)
    return sfm.estimate(source, frames, PoseConfig(**{f.name: getattr(config, f.name) for f in fields(PoseConfig)}), ordered=True)


def extract(video: Path, config: VideoConfig) -> list[Path]:
    """Frames of a video as JPEGs in nerfit's cache, made unless they are there, upright as the video's metadata say.

    Raises SceneError for a file that can't be decoded and ConfigError for settings without sense.
    """
    if config.most_frames < 3 or not (config.fps is None or 0 < config.fps < math.inf):
        raise ConfigError("fps must be above 0 and most_frames at least 3.")
    folder = cache_folder() / "frames" / fingerprint([video], _VERSION, config.fps, config.most_frames)
    with file_lock(folder):
        if not (folder / "done").exists():
            _write_frames(video, folder, config)
            (folder / "done").touch()
    return picture_files(folder)


def frames_to_take(count: int, seconds: float, fps: float | None, most: int) -> int:
    """Number of frames to take of a video's ``count``: all if its own rate is hardly above the wanted one."""
    wanted = max(RATE * seconds, FEWEST) if fps is None else fps * seconds
    return min(count if wanted > 0.95 * count else max(1, math.ceil(wanted)), most)


def sharpest(frames: Iterable[av.VideoFrame], count: int, take: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """The sharpest frame, with its number, of each of ``take`` even spans of ``count`` frames."""
    for _, span in itertools.groupby(enumerate(frames), lambda numbered: numbered[0] * take // count):
        yield max(span, key=lambda numbered: _sharpness(numbered[1]))


def _sharpness(frame: av.VideoFrame) -> float:
    shrink = min(1.0, _COPY / max(frame.width, frame.height))
    size = (max(1, round(frame.width * shrink)), max(1, round(frame.height * shrink)))
    return sharpness(frame.reformat(*size, format="gray").to_ndarray().astype(np.float32))


def _write_frames(video: Path, folder: Path, config: VideoConfig) -> None:
    with _opened(video) as (container, stream):
        count = sum(packet.size > 0 for packet in container.demux(stream))
        rate = float(stream.average_rate or 0) or 25.0
        seconds = container.duration / av.time_base if container.duration else count / rate
    if not count:
        raise SceneError(f"{video} holds no frames.")
    take = frames_to_take(count, seconds, config.fps, config.most_frames)
    if config.fps is not None and take < min(count, config.fps * seconds) * 0.95:
        warnings.warn(f"{video}: {take} frames are taken of {seconds:.0f} s; for more raise --scene.most-frames.", stacklevel=5)
    taken = 0
    with _opened(video) as (container, stream):
        try:
            for number, frame in sharpest(container.decode(stream), count, take):
                with atomic_write(folder / f"frame_{number:06d}.jpg") as part:
                    Image.fromarray(upright(frame)).save(part, format="JPEG", quality=95, subsampling=0)
                taken += 1
                tick(taken, take, "frames taken of the video")
        except FFmpegError as error:
            if not taken:
                raise
            warnings.warn(f"{video} is damaged ({error.strerror}): only {taken} frames of {take} can be used.", stacklevel=5)


def upright(frame: av.VideoFrame) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a frame in sRGB, turned as its display matrix asks."""
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if is_wide(transfer, primaries):
        pixels = video_srgb(frame.to_ndarray(format="rgb48le"), transfer, primaries)
    else:
        pixels = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


@contextmanager
def _opened(video: Path) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream."""
    try:
        with av.open(f"file:{video}", metadata_errors="replace") as container:
            if not container.streams.video:
                raise SceneError(f"{video} holds no pictures; is it a sound recording?")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SceneError(f"{video} can't be read as a video: nothing here decodes it.")
            stream.thread_type, stream.codec_context.thread_count = "AUTO", torch.get_num_threads()
            if stream.codec_context.width * stream.codec_context.height > _MOST_PIXELS:
                raise SceneError(f"{video} has frames of more than {_MOST_PIXELS // 10**6} million pixels.")
            yield container, stream
    except FFmpegError as error:
        raise SceneError(f"{video} can't be read as a video: {error.strerror}.") from error
    except OSError as error:
        raise SceneError(f"{video} can't be read or its frames can't be kept: {error.strerror}.") from error
