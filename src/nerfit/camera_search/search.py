"""The training loop's hook for unknown cameras: schedules in two stages, adjustment, relocalisation and the history of a search."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from torch import nn

from nerfit.camera_search.adjust import adjust
from nerfit.camera_search.history import PoseHistory
from nerfit.camera_search.relocate import relocate
from nerfit.cameras.learned import LearnedCameras
from nerfit.methods.base import Method
from nerfit.scenes.scene import Scene

T = TypeVar("T")


class SearchState(Protocol):
    """The fields of the training state (`LoopState`) that a search uses; every checkpoint keeps them."""

    step: int
    field_start: int
    adjusted: int
    psnr: float | None


class Loop(Protocol):
    """The training loop as a search sees it (`Trainer`)."""

    method: Method
    scene: Scene

    @property
    def state(self) -> SearchState:
        """The loop's state."""
        ...

    @property
    def progress(self) -> float:
        """Share of the budget spent, 0 to 1."""
        ...

    def rebuild(self) -> None:
        """Initialise field and optimiser, and restart the schedules in steps."""
        ...

    def run_on_main(self, work: Callable[[], T], module: nn.Module) -> T:
        """Run ``work``, which changes ``module``, in the main process; all processes get its result and the module's state."""
        ...

    def say(self, text: str) -> None:
        """Print a line for the person who watches."""
        ...


class CameraSearch:
    """The hook for methods whose cameras are known: it does nothing."""

    @property
    def history(self) -> PoseHistory | None:
        """The cameras at evenly spaced steps; None where no cameras are learned."""
        return None

    def schedule_progress(self, progress: float) -> float:
        """The progress that schedules follow, when a share ``progress`` of the budget is spent."""
        return progress

    def before_step(self) -> None:
        """Called before each training step."""

    def after_step(self) -> None:
        """Called after each training step."""

    def restart(self) -> None:
        """Called when training restarts from another seed."""

    def save(self, folder: Path) -> None:
        """Called in the main process before a checkpoint is written into the run folder."""

    def scalars(self) -> dict[str, float]:
        """Numbers for the log."""
        return {}


class LearnedCameraSearch(CameraSearch):
    """The hook for cameras that are learned with the scene."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self.loop, self._history = loop, PoseHistory.load(folder, loop.state.step)

    @property
    def history(self) -> PoseHistory:
        """The cameras at evenly spaced steps."""
        return self._history

    @property
    def cameras(self) -> LearnedCameras:
        """The method's cameras."""
        assert self.loop.method.cameras is not None
        return self.loop.method.cameras

    def schedule_progress(self, progress: float) -> float:
        """The progress of the search up to ``refine_after`` of the budget, and then that of the refinement."""
        share = self.cameras.config.refine_after
        if share == 0:
            return progress
        return max(progress - share, 0.0) / (1 - share) if self.loop.state.field_start else min(progress / share, 1.0)

    def before_step(self) -> None:
        """Begin the refinement when ``refine_after`` of the budget is spent."""
        if not self.loop.state.field_start and 0 < self.cameras.config.refine_after <= self.loop.progress:
            self._restart_field()

    def after_step(self) -> None:
        """Record the cameras; adjust and relocalise them when that is due."""
        state, config = self.loop.state, self.cameras.config
        if state.psnr is not None:
            self._history.record(self.cameras, self.loop.scene, state.step, self.loop.progress, state.psnr)
        if self.cameras.adjustable and any(self.loop.progress >= share for share in config.adjust_at[state.adjusted :]):
            self._adjust()
        moving = self.cameras.moves(self.schedule_progress(self.loop.progress))
        if config.relocalise_every > 0 and state.step % config.relocalise_every == 0 and moving:
            self._relocalise()

    def restart(self) -> None:
        """Begin an empty history."""
        self._history = PoseHistory()

    def save(self, folder: Path) -> None:
        """Write the history."""
        self._history.save(folder)

    def scalars(self) -> dict[str, float]:
        """How far the cameras have moved, and their focal length."""
        return self.cameras.scalars()

    def _adjust(self) -> None:
        """Adjust all cameras to each other; after the first time the field is initialised again."""
        loop, state = self.loop, self.loop.state
        state.adjusted += 1
        first = state.adjusted == 1
        likeness = loop.run_on_main(lambda: adjust(loop.method, loop.scene, state.step, first), self.cameras)
        if first and likeness > 0:
            self._restart_field()
        if first:
            self._history.check_likeness(likeness)
        loop.say(f"step {state.step}: all cameras adjusted; their pictures agree to {likeness:.0%}.")

    def _relocalise(self) -> None:
        """Search for the cameras whose pictures disagree with the field."""
        loop, step = self.loop, self.loop.state.step
        found = loop.run_on_main(lambda: relocate(loop.method, loop.scene, step), self.cameras)
        if found:
            loop.say(f"step {step}: {found} lost camera{'s' * (found > 1)} relocalised.")

    def _restart_field(self) -> None:
        """Initialise the field, and keep the cameras found so far."""
        found = self.cameras.state_dict()
        self.loop.rebuild()
        self.cameras.load_state_dict(found)


def camera_search(loop: Loop, folder: Path) -> CameraSearch:
    """The hook for a loop's method; ``folder`` is the run's, with the history of a search that is resumed."""
    return CameraSearch() if loop.method.cameras is None else LearnedCameraSearch(loop, folder)
