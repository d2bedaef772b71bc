"""Run folders: making them, opening them, and the whole job of a training from its configuration."""

import base64
import dataclasses
import io
import itertools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
import yaml
from PIL import Image

from nerfit import __version__
from nerfit.cameras import Cameras
from nerfit.config import arguments, flatten, parse, read_settings, to_dict, unused_keys
from nerfit.errors import ConfigError, NerfitError, RunError
from nerfit.files import LOCKS_FOLDERS, lock_descriptor, peek_json, read_text, write_text
from nerfit.methods.base import Method
from nerfit.methods.blocks import Blended
from nerfit.methods.views import render_view
from nerfit.plugins import find
from nerfit.rendering.volume import Rendering
from nerfit.scenes import scene_format
from nerfit.scenes.background import CHOSEN, choose_background, saved_background
from nerfit.scenes.images import to_bytes
from nerfit.scenes.partition import BlocksConfig, blocks_of, cut
from nerfit.scenes.scene import Scene
from nerfit.training.checkpoints import LoopState, load_checkpoint, restore
from nerfit.training.devices import core_seconds, keep_freed_memory, pick_device, pick_precision, set_threads
from nerfit.training.distributed import own_device
from nerfit.training.trainer import LoopConfig

M = TypeVar("M")
S = TypeVar("S")


@dataclass(kw_only=True)
class RunConfig(LoopConfig, Generic[M, S]):
    """The whole configuration of a run, saved as config.yaml in its folder."""

    model: M
    """The method's own switches."""
    scene: S
    """How the scene is read."""
    blocks: BlocksConfig = field(default_factory=BlocksConfig)
    """The part of a large scene that is trained."""


_SHOWN = 256
"""Longest side in pixels of the picture that Jupyter shows of a run."""


@dataclass
class Plan:
    """Method, scene and configuration of a run, as config.yaml keeps them."""

    method: str
    source: str
    format: str
    config: RunConfig[Any, Any]

    def save(self, folder: Path) -> None:
        """Write config.yaml, so that a crash leaves the old file or the new one."""
        head = {"nerfit": __version__, "method": self.method, "source": self.source, "format": self.format}
        try:
            write_text(folder / "config.yaml", yaml.safe_dump(head | to_dict(self.config), sort_keys=False))
        except OSError as error:
            raise RunError(f"{folder / 'config.yaml'} can't be written: {error.strerror}.") from error

    @classmethod
    def load(cls, folder: Path) -> "Plan":
        """The plan of a run folder."""
        path = folder / "config.yaml"
        if not os.path.isfile(path):
            raise RunError(f"{folder} is not a run folder (it has no config.yaml).")
        try:
            data = read_settings(read_text(path), "it")
            method, source, form = (str(data.pop(key)) for key in ("method", "source", "format"))
            data.pop("nerfit", None)
            config = parse(config_type(method, form), arguments(data), default_config(method, form))
        except KeyError as error:
            raise RunError(f"{path} can't be used: it does not say {error}.") from error
        except NerfitError as error:
            raise RunError(f"{path} can't be used: {error}") from error
        return cls(method, source, form, config)

    def make_method(self, scene: Scene) -> Method:
        """The untrained method on a scene."""
        return find("nerfit.methods", self.method)(self.config.model, scene)

    def load_scene(self, source: str | None = None, run: Path | None = None) -> Scene:
        """The scene with its images, or the block of it that the run is of; over the background that a ``run`` folder keeps."""
        scene = choose_background(scene_format(self.format).load(source or self.source, self.config.scene))
        kept = None if run is None or self.config.scene.background not in CHOSEN else saved_background(run)
        if kept not in (None, scene.background):
            scene = dataclasses.replace(scene, background=kept, other_background=None)
        return cut(scene, self.config.blocks)


def config_type(method: str, form: str) -> Any:
    """The configuration class of a method on a scene format."""
    return RunConfig[find("nerfit.methods", method).Config, scene_format(form).Config]


def default_config(method: str, form: str) -> RunConfig[Any, Any]:
    """Defaults of a method on a scene format."""
    return RunConfig(model=find("nerfit.methods", method).Config(), scene=scene_format(form).Config())


def refuse_existing(out: Path) -> None:
    """Raise RunError if ``out`` holds anything, but for what a process that was killed had begun to write."""
    if out.exists() and (not out.is_dir() or any(path.suffix != ".part" for path in out.iterdir())):
        raise RunError(f"{out} exists already: choose another --out, or add --resume to go on with it.")


def new_folder(out: Path, numbered: bool) -> Path:
    """A fresh run folder: ``out``, which must be empty if it exists, or with ``numbered`` the first free of ``out``, ``out``-2, …"""
    if not numbered:
        refuse_existing(out)
    for folder in numbered_folders(out):
        try:
            folder.mkdir(parents=True, exist_ok=not numbered)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise RunError(f"the run folder {folder} can't be made: {error.strerror}.") from error
    raise AssertionError("numbers end nowhere")


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Hold a run folder against other trainings; RunError where one has it. Reading stays free; a process that dies releases it."""
    file = None if LOCKS_FOLDERS else folder / "lock.part"
    descriptor = os.open(folder, os.O_RDONLY) if file is None else os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        if not lock_descriptor(descriptor, wait=False):
            raise RunError(f"another training is at work in {folder}: wait for it, stop it, or choose another --out.")
        yield
    finally:
        os.close(descriptor)
        if file is not None:
            with suppress(OSError):  # another process has opened it
                file.unlink()


def numbered_folders(out: Path) -> Iterator[Path]:
    """``out``, ``out``-2, ``out``-3 and so on."""
    yield out
    for n in itertools.count(2):
        yield out.with_name(f"{out.name}-{n}")


def last_folder(scene: str, method: str) -> Path:
    """The newest automatic run folder of a scene and method."""
    name = re.compile(re.escape(f"{scene}-{method}") + r"(-\d+)?")
    found = [p for p in Path("runs").glob("*") if name.fullmatch(p.name) and (p / "config.yaml").is_file()]
    if not found:
        raise RunError(f"there is no run of {method} on {scene} under runs/ to resume.")
    return max(found, key=lambda p: (p / "config.yaml").stat().st_mtime)


class View(Rendering):
    """A picture that a run was asked for; Jupyter shows its colours."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            Image.fromarray(to_bytes(self.rgb)).save(file, format="PNG")
            return file.getvalue()


@dataclass(repr=False)
class Run:
    """A trained run opened for evaluation or rendering."""

    folder: Path
    plan: Plan
    scene: Scene
    method: Method
    state: LoopState
    chunk: int

    @classmethod
    def open(cls, folder: str | Path, device: str = "auto") -> "Run":
        """The newest whole checkpoint of a run folder, without the scene's pictures; raises RunError where there is none."""
        return open_run(Path(folder), images=False, device=device)

    def render(self, cameras: Cameras, view: int = 0) -> View:
        """The view of a camera: ``rgb`` [height, width, 3], ``depth``, ``opacity`` and ``disparity``, on the CPU."""
        seen = render_view(self.method, self.scene, cameras, view, self.chunk)
        return View(seen.rgb, seen.depth, seen.opacity, seen.disparity)

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the training and of each split that was evaluated, as in metrics.json; empty if it can't be read."""
        found = peek_json(self.folder / "metrics.json")
        return {part: of for part, of in found.items() if isinstance(of, dict)} if isinstance(found, dict) else {}

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield "folder", str(self.folder)
        yield "method", self.plan.method
        yield "scene", self.scene.name
        yield "views", len(self.scene.cameras)
        yield "steps", self.state.step
        yield "psnr", {name: round(of["psnr"], 2) for name, of in self.metrics.items() if isinstance(of.get("psnr"), float)}

    def __repr__(self) -> str:
        return f"Run({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def _repr_html_(self) -> str:
        """The HTML that Jupyter shows: the facts as a table, beside a small picture of the first test view (else training view)."""
        rows = "".join(f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in self.__rich_repr__())
        camera = self.scene.cameras[(self.scene.splits.get("test") or self.scene.splits["train"])[0]]
        small = camera.rescale(min(1.0, _SHOWN / int(torch.maximum(camera.width, camera.height)[0])))
        picture = base64.b64encode(self.render(small)._repr_png_()).decode()
        return f'<div style="display:flex;gap:1em"><img src="data:image/png;base64,{picture}"><table>{rows}</table></div>'


def open_run(folder: Path, images: bool, source: str | None = None, threads: int | None = None, device: str = "auto") -> Run:
    """The newest whole checkpoint of a run, in evaluation mode; ``images`` also reads the scene's files."""
    plan = Plan.load(folder)
    set_threads(threads or plan.config.threads)
    scene = plan.load_scene(source, folder) if images else Scene.load(folder, given=True)
    keep_freed_memory()
    if plan.config.blocks.count > 1 and plan.config.blocks.index is None:
        return _open_blocks(folder, plan, scene, threads, device)
    where = own_device(pick_device(device))
    method = plan.make_method(scene).to(where)
    found = load_checkpoint(folder / "checkpoints", where)
    if found is None:
        raise RunError(f"{folder} has no checkpoint yet: train it first.")
    state, tensors = found
    restore(tensors, method)
    method.eval().progress = state.progress
    if where.type == pick_device(plan.config.device).type:
        method.precision = pick_precision(plan.config.precision, where)
    return Run(folder, plan, method.place(scene), method, state, plan.config.chunk or 4 * state.chunk)


def block_folder(folder: Path, index: int) -> Path:
    """The run folder of a block, in the folder of the whole."""
    return folder / "blocks" / str(index)


def _open_blocks(folder: Path, plan: Plan, scene: Scene, threads: int | None, device: str) -> Run:
    """The runs of a scene's blocks as one, cut as when they were trained."""
    parts, blocks = blocks_of(Scene.load(folder, given=True), plan.config.blocks)
    runs = [open_run(block_folder(folder, k), images=False, threads=threads, device=device) for k in range(len(parts))]
    method = Blended(parts, blocks, [run.method for run in runs]).eval()
    state = dataclasses.replace(runs[0].state, step=sum(r.state.step for r in runs), seconds=sum(r.state.seconds for r in runs))
    return Run(folder, plan, scene, method, state, min(run.chunk for run in runs))


def initialise_from(folder: Path, method: Method, scene: Scene, only: Literal["cameras"] | None = None) -> None:
    """Start a method from another run's weights (--init), or from its learned cameras alone (--init-only)."""
    if only == "cameras":
        _take_cameras(folder, method, scene)
        return
    found = load_checkpoint(folder / "checkpoints", method.device)
    if found is None:
        raise ConfigError(f"--init {folder}: there is no checkpoint.")
    restore(found[1], method)


def _take_cameras(folder: Path, method: Method, scene: Scene) -> None:
    """Begin where another run of the same views, of any method, has left its cameras."""
    if method.cameras is None:
        raise ConfigError("--init-only cameras needs a run that learns its own: add --model.camera.learn.")
    config = getattr(Plan.load(folder).config.model, "camera", None)
    if config is None or not config.learn:
        raise ConfigError(f"--init-only cameras: {folder} has learned none.")
    found = Scene.load(folder)
    names = [[Path(name).stem for name in s.view_names] for s in (found, scene)]
    if names[0] != names[1] or found.ndc != scene.ndc:
        raise ConfigError(f"--init-only cameras: {folder} was not trained on the views of {scene.name}.")
    if config.focal != "given" and method.cameras.config.focal == "given":
        raise ConfigError(f"--init-only cameras: {folder} has learned its focal length, so add --model.camera.focal {config.focal}.")
    method.cameras.begin_at(found.cameras)


def with_sizes(config: RunConfig[Any, Any], method: type[Method], init: Path | None = None) -> RunConfig[Any, Any]:
    """The sizes that a method's configuration leaves open: those of the run ``init``, to begin with its weights, else as time allows."""
    time = core_seconds(config.device, config.threads, config.seconds)
    model = method.sized(config.model, time)
    try:
        before = Plan.load(init).config.model if init is not None else None
    except RunError as error:
        raise ConfigError(f"--init {init}: {error}") from None
    if type(before) is type(model):
        open_ = [f.name for f in dataclasses.fields(model) if getattr(config.model, f.name) != getattr(model, f.name)]
        model = dataclasses.replace(model, **{name: getattr(before, name) for name in open_})
    return dataclasses.replace(config, model=model)


_RATES = {"optim": ("lr", "lr_final", "lr_floor"), "model.camera": ("lr", "lr_final", "focal_lr"), "model.appearance": ("lr", "lr_final")}
"""Learning rates, by section."""


def with_devices(
    config: RunConfig[Any, Any], typed: set[str], devices: int, batch_key: str
) -> tuple[RunConfig[Any, Any], dict[str, tuple[float, float]]]:
    """The batch of a configuration times the devices that share it, and its learning rates times the square root of their number, or
    with SGD their number; also the changed keys, each with its old and new value. Typed keys stay.

    The rule for Adam follows from its equation of motion (Malladi et al. 2022, which also changes its betas, as is not done
    here); that for SGD is the linear one (Goyal et al. 2017).
    """
    config = dataclasses.replace(config, devices=devices)
    values, unused = flatten(to_dict(config)), unused_keys(config)
    factor = devices if config.optim.optimizer == "sgd" else devices**0.5
    grown = {f"model.{batch_key}": devices}
    grown |= {f"{section}.{key}": factor for section, keys in _RATES.items() if f"{section}.lr" not in typed for key in keys}
    changed = {}
    for key, by in grown.items():
        if key not in typed and key not in unused and values.get(key) and by != 1:
            changed[key] = values[key], values[key] * by
            config = _replaced(config, key, values[key] * by)
    return config, changed


def _replaced(config: Any, key: str, value: Any) -> Any:
    """A dataclass with another value for a dotted key."""
    name, _, rest = key.partition(".")
    return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, value) if rest else value})


def with_budget(config: RunConfig[Any, Any], typed: set[str], default_steps: int) -> RunConfig[Any, Any]:
    """A budget typed on the command line replaces the recipe's; without any budget the method's own number of steps."""
    budgets = {"steps", "epochs", "seconds"}
    if budgets & typed:
        config = dataclasses.replace(config, **dict.fromkeys(budgets - typed))
    if config.steps is None and config.epochs is None and config.seconds is None:
        config = dataclasses.replace(config, steps=default_steps)
    return config
