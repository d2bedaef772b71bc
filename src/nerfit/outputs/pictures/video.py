"""Frames to a video that opens everywhere: H.264 in MP4, or a GIF where nothing encodes H.264; animated WebP on demand."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from jaxtyping import UInt8
from PIL import Image

from nerfit.errors import RunError
from nerfit.scenes.images import Picture, replacing, to_bytes

H264_ENCODERS = ("libx264", "libopenh264")


def write_video(path: Path, frames: Iterable[Picture], fps: float = 30.0, crf: int = 18) -> Path:
    """Write frames [height, width, 3] (floats in [0, 1] or uint8) as they come; returns the path written.

    ``crf`` is x264's quality: 0 lossless, 18 visually so, 51 worst; the same frames make the same file. An odd side grows by one
    repeated row or column. Without an H.264 encoder, or with a path ending in .gif, the frames (all held in memory) become a
    GIF; with .webp an animated WebP.
    Raises RunError when there are no frames, they change their size, or the disk is full.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise RunError(f"there are no frames to write to {path}.")
    pixels = _checked(chain([first], frames), path)
    encoder = find_encoder()
    if path.suffix.lower() == ".webp":
        images = [Image.fromarray(picture) for picture in pixels]
        with replacing(path) as temporary:
            images[0].save(
                temporary, format="WEBP", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, quality=90
            )
    elif path.suffix.lower() == ".gif" or encoder is None:
        if path.suffix.lower() != ".gif":
            path = path.with_suffix(".gif")
            print(f"This PyAV has no H.264 encoder, so the video is written as a GIF: {path}.")
        _write_gif(path, pixels, fps)
    else:
        with replacing(path) as temporary:
            _write_mp4(temporary, pixels, encoder, fps, crf)
    return path


def find_encoder() -> str | None:
    """The H.264 encoder that PyAV brings, or None."""
    return next((name for name in H264_ENCODERS if name in av.codecs_available), None)


def _checked(frames: Iterable[Picture], path: Path) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    shape = None
    for frame in frames:
        pixels = to_bytes(frame)
        shape = shape or pixels.shape
        if pixels.shape != shape or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise RunError(f"the frames of {path} must all be [height, width, 3] like the first, {shape}, not {pixels.shape}.")
        yield pixels


def _write_mp4(path: Path, frames: Iterator[np.ndarray], encoder: str, fps: float, crf: int) -> None:
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(encoder, rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"
        # x264's fastest routines read memory that nobody wrote, so the same frames came out as different bytes.
        stream.options = {"crf": str(crf), "x264-params": "cpu-independent=1"} if encoder == "libx264" else {}
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = 1, 13  # ISO/IEC 23091-2: BT.709 and sRGB
        for index, pixels in enumerate(frames):
            h, w, _ = pixels.shape
            frame = av.VideoFrame.from_ndarray(np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), "edge"), format="rgb24")
            if index == 0:
                stream.width, stream.height = frame.width, frame.height
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            frame.pts = index
            frame.time_base = 1 / context.framerate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    images = (Image.fromarray(pixels).quantize(method=Image.Quantize.MEDIANCUT) for pixels in frames)
    with replacing(path) as temporary:
        next(images).save(temporary, format="GIF", save_all=True, append_images=images, duration=1000 / fps, loop=0)
