"""What is said of a path that is no scene."""

from pathlib import Path

import pytest
from PIL import Image

from nerfit.errors import SceneError
from nerfit.scenes import detect_format


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "it holds nothing; a scene is a folder of"),
        (["1.NEF", "2.NEF", "._1.NEF"], r"it holds 2 \.nef; 1\.NEF is a raw picture: convert them first: darktable-cli"),
        (["one.png"], r"it holds 1 \.png; one picture is no scene: add more, or fit it alone with nerfit train image .*one\.png"),
        (["notes.txt", "garden/1.png", "garden/2.png", "garden/transforms.json"], r"garden is a scene \(transforms\): name that"),
        (["a.zip", "Thumbs.db"], r"it holds 1 \.zip; unpack a\.zip first"),
        (["clips/walk.mp4", "sound.wav"], r"it holds 1 \.wav and the folder clips; a scene"),
        (["walk.mp4"], r"walk\.mp4 is a scene \(video\): name that"),
    ],
)
def test_a_folder_that_is_no_scene_is_answered_with_its_contents(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        else:
            (tmp_path / name).touch()
    with pytest.raises(SceneError, match=rf"no known scene at '.*': .*{message}"):
        detect_format(str(tmp_path))


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.CR3").touch()
    (tmp_path / "a.tar").touch()
    for name, message in (("none", "there is nothing of that name"), ("a.CR3", "it is a raw picture; convert"), ("a.tar", "unpack it")):
        with pytest.raises(SceneError, match=message):
            detect_format(str(tmp_path / name))
