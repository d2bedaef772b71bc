"""The options of commands, each as a dataclass; the docstrings are their help. Those of a training and of exports are with them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro


@dataclass
class Common:
    """Options of every command."""

    json: bool = False
    """Print the answer as JSON, for programs."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass
class DeviceOptions(Common):
    """Options of commands that compute."""

    threads: int | None = None
    """CPU threads."""
    device: str = "auto"
    """cpu, cuda, …"""


@dataclass
class RunOptions(Common):
    """Options of commands on a run."""

    run: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder."""


@dataclass
class SharedOptions(RunOptions, DeviceOptions):
    """Options of commands on a run whose views several processes can share."""

    devices: int = 1
    """Processes on this machine that share the views: with CUDA one for each GPU, else they share the threads."""


@dataclass
class EvalOptions(SharedOptions):
    """nerfit eval RUN: metrics of held-out views into metrics.json, pictures and strips into renders/."""

    split: str = "test"
    """test, val or train."""
    scene: str | None = None
    """Read the scene from here instead of where it was trained."""
    reference_poses: str | None = None
    """Scene with the true cameras of the training views, by name; none = of learned cameras the given ones."""
    pose_steps: int = 0
    """First move each view's camera by so many photometric steps (NeRF--, BARF: 100 and more)."""
    appearance_fit: bool = False
    """Judge the right half of each picture after the affine colour map that fits its left half best (NeRF in the Wild)."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""


@dataclass
class RenderOptions(SharedOptions):
    """nerfit render RUN: pictures and videos along a camera path."""

    path: str | None = None
    """circle, sphere, spiral, spiral-flat, interpolate, ellipse, still, test, or a JSON file; none = the scene's own."""
    what: str | None = None
    """Any of rgb,depth,disparity,opacity,normal, separated by commas; none = rgb and, of a field, disparity."""
    factor: float = 1.0
    """Shrink the pictures by this factor (the old render_factor)."""
    frames: int | None = None
    """Frames; none = the path's own number."""
    fps: float = 30.0
    """Frames per second of the videos."""
    side_by_side: bool = False
    """One video with all quantities side by side instead of one of each."""
    video: Literal["mp4", "gif", "webp"] = "mp4"
    """Format of the videos."""
    out: Path | None = None
    """Folder; none = renders/<path> in the run."""
    workers: int = 0
    """Draw with so many processes on Ray, in pieces, and go on with what the same command left undone; 0 = in this process."""
    address: str | None = None
    """Ray cluster that --workers run on (auto, host:port), where the run lies at the same path; none = this machine."""


@dataclass
class ViewOptions(DeviceOptions):
    """nerfit view RUN|SCENE: a run's field in the browser, or a scene's cameras and pictures before any training.

    Examples:
      nerfit view runs/lego-instant
      nerfit view data/lego --port 8080
      nerfit view runs/lego-instant --host 0.0.0.0
    """

    source: tyro.conf.Positional[Path] = field(default_factory=Path)
    """Run folder, or what nerfit train takes as SCENE."""
    host: str = "127.0.0.1"
    """Address to serve on; 0.0.0.0 = reachable from other machines, with a token."""
    port: int = 7007
    """Port; the next free one is taken where it is in use."""
    scene: str | None = None
    """Read a run's pictures from here instead of where it was trained."""


@dataclass
class DemoOptions(Common):
    """nerfit demo: a made-up scene, trained and filmed in a few minutes."""

    out: Path | None = None
    """Run folder; none = runs/demo[-n]."""
    seconds: float | None = None
    """Training time; none = the recipe's."""


@dataclass
class SpeedOptions(DeviceOptions):
    """nerfit bench speed: this machine's matrix product, the fused field, and each kernel beside its definition in PyTorch.

    Examples:
      nerfit bench speed
      nerfit bench speed --threads 2 --precision float32 --json
    """

    levels: int = 8
    """Levels of the hash grid."""
    log2_entries: int = 19
    """Entries per level at most, as a power of two."""
    width: int = 64
    """Channels of the networks."""
    samples: int = 65_536
    """Positions along made-up rays."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """What matrix products take; auto = bf16 where the hardware is fast at it."""


@dataclass
class TrainingBenchOptions(Common):
    """Options of benchmarks that train."""

    scene: tyro.conf.Positional[str] = ""
    """What nerfit train takes as SCENE."""
    method: tyro.conf.Positional[str] = "instant"
    """What nerfit train takes as METHOD."""


@dataclass
class TimeToQualityOptions(TrainingBenchOptions):
    """nerfit bench time-to-quality SCENE [METHOD]: test PSNR after trainings of several lengths.

    Each training is a process of its own with its schedule set to its seconds; all flags of nerfit train may follow. Writes
    results.json, results.csv and results.svg; run again with the same --out, it goes on where it was stopped.

    Examples:
      nerfit bench time-to-quality procedural --at 5 10 20
      nerfit bench time-to-quality data/lego instant --at 60 300 --seeds 3 --out runs/lego-times --threads 2
    """

    at: tuple[float, ...] = (15, 30, 60, 120, 300, 600, 1200)
    """Seconds of training."""
    seeds: int = 1
    """Trainings for each of them, with seeds 0, 1, …"""
    out: Path | None = None
    """Folder of the results and the runs; none = runs/bench-<scene>-<method>."""


@dataclass
class MemoryOptions(TrainingBenchOptions):
    """nerfit bench memory SCENE [METHOD]: the most memory held so far after loading, building, training and rendering a view.

    All flags of nerfit train may follow.

    Examples:
      nerfit bench memory procedural
      nerfit bench memory data/lego nerf --recipe nerf-small --steps 50
    """

    steps: int = 200
    """Training steps."""


BENCHMARKS: dict[str, type[Common]] = {"speed": SpeedOptions, "time-to-quality": TimeToQualityOptions, "memory": MemoryOptions}
"""Kinds of nerfit bench, by name."""


@dataclass(kw_only=True)
class ClusterOptions(Common):
    """Options of commands that run many jobs on Ray."""

    at_once: int | None = None
    """Jobs at a time; none = as many as there is room for, each with the threads that --threads gives a training."""
    gpus: float | None = None
    """GPUs for each job, whole or a share; none = 1 where this machine has any, else 0."""
    retries: int = 2
    """How often a job is tried again, from its last checkpoint on, whose process died."""
    address: str | None = None
    """Ray cluster to run on (auto, host:port); its machines need nerfit, and --out and the scenes at the same paths. None = here."""


@dataclass(kw_only=True)
class SweepOptions(ClusterOptions):
    """nerfit sweep SCENE [SCENE ...] --methods M [M ...]: train every scene with every method and recipe from every seed; one table.

    Each training is a process of its own and a run folder <scene>-<recipe>-seed<seed>; all flags of nerfit train may follow. The table
    (mean ± standard deviation over seeds, mean over scenes) is sweep.md, sweep.csv and sweep.json. What fails is told in the table and
    by the exit code. Stopped or killed, the same command goes on: nothing that is finished is done again.

    Examples:
      nerfit sweep data/lego data/chair --methods instant --seeds 3 --seconds 120 --threads 2
      nerfit sweep data/nerf_synthetic/* --methods instant --recipes mipnerf-small nerf-small --out runs/blender --lpips-weights lpips
      nerfit sweep data/fern data/horns --recipes llff mine.yaml --address auto --gpus 1
    """

    scenes: tyro.conf.Positional[tuple[str, ...]] = ()
    """What nerfit train takes as SCENE."""
    methods: tuple[str, ...] = ()
    """Methods, each with the recipe that is its default."""
    recipes: tuple[str, ...] = ()
    """Recipes beside them, each for the method that it names."""
    seeds: int = 1
    """Trainings of each, with --seed and the seeds after it."""
    out: Path = Path("runs/sweep")
    """Folder of the runs and the table."""


@dataclass(kw_only=True)
class BlocksOptions(ClusterOptions):
    """nerfit blocks SCENE [METHOD] --blocks 2x1: a scene too large for one field, cut into blocks that are trained apart and seen as one.

    Blocks overlap, and pictures are blended by where the camera stands (Block-NeRF). Each block is a training in a process of its own,
    with all its budget; all flags of nerfit train may follow. The run folder is judged, drawn and exported like any other. Stopped or
    killed, the same command goes on.

    Examples:
      nerfit blocks data/street instant-unbounded --blocks 4x1 --seconds 600 --threads 2
      nerfit blocks data/campus --blocks 3x2 --blocks.overlap 0.4 --address auto --gpus 1
      nerfit render runs/street-instant-unbounded-4x1 --workers 4
    """

    scene: tyro.conf.Positional[str] = ""
    """What nerfit train takes as SCENE."""
    method: tyro.conf.Positional[str] = "instant"
    """What nerfit train takes as METHOD, but for auto."""
    blocks: str = "2x1"
    """Blocks along the longer and the shorter way that the cameras spread over the ground."""
    out: Path | None = None
    """Run folder; none = runs/<scene>-<method>-<blocks>."""


@dataclass
class MultiscaleOptions(Common):
    """nerfit convert multiscale SCENE OUT: a Blender scene at several sizes, each half the one before, as mip-NeRF trains on.

    Examples:
      nerfit convert multiscale data/lego data/lego-multiscale
    """

    scene: tyro.conf.Positional[str] = ""
    """Folder with transforms_train.json."""
    out: tyro.conf.Positional[Path] = field(default_factory=Path)
    """New folder."""
    scales: int = 4
    """Sizes, the full one among them."""
    factor: int = 1
    """Shrink the pictures by this factor first."""
