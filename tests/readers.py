"""Scenes of a format, read and refused."""

from pathlib import Path
from typing import Any

import pytest

from nerfit.errors import NerfitError, SceneError
from nerfit.scenes import detect_format, scene_format
from nerfit.scenes.scene import Scene


def load(form: str, source: Path, **choices: Any) -> Scene:
    """A scene, which must be recognised as one of that format."""
    module = scene_format(form)
    assert detect_format(str(source)) == form
    return module.load(str(source), module.Config(**choices))


def refused(form: str, source: Path, message: str, error: type[NerfitError] = SceneError, **choices: Any) -> None:
    """The reader says in one sentence why not."""
    module = scene_format(form)
    with pytest.raises(error, match=message) as caught:
        module.load(str(source), module.Config(**choices))
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))
