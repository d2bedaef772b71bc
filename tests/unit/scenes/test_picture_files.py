"""Pictures of a folder, and the ones that names from other machines mean."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nerfit.errors import SceneError
from nerfit.scenes.reading.masks import Mask, find_masks, masks_of
from nerfit.scenes.reading.picture_files import SceneFiles, matching, photographs, picture_files, read_photographs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder: Path, *names: str, **choices: bool) -> list[str]:
    """Files by their paths in the folder; "" for those that aren't there."""
    paths = SceneFiles(folder, **choices).find(names)
    return [path.relative_to(folder).as_posix() if path.is_file() else "" for path in paths]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("images\\0001.jpg", "images/0001.jpg"),
        (".\\images\\0001.jpg", "images/0001.jpg"),
        ("C:\\Users\\me\\fox\\images\\0001.jpg", "images/0001.jpg"),
        ("C:\\Users\\me\\0001.jpg", "images/0001.jpg"),
        ("/home/someone/0001.jpg", "images/0001.jpg"),
        ("../fox_dataset/images/0001.jpg", "images/0001.jpg"),
        ("images/0001.jpg", "0001.jpg"),
        ("0001.jpg", "images/0001.jpg"),
        ("images/0001", "images/0001.JPG"),
        ("images/0001.jpg", "images/0001.JPG"),
        ("images/0001.png", "images/0001.jpg"),
        ("Images/IMG_1.JPG", "images/img_1.heic"),
        ("./train/r_0", "train/r_0.png.png"),
        ("rgb/0001.jpg", "train/rgb/0001.jpg"),
        ("scan.0001", "images/scan.0001.png"),
        ("B.JPG", "images/b.png"),
    ],
)
def test_names_from_elsewhere_are_found(tmp_path: Path, name: str, file: str) -> None:
    touch(tmp_path, file, "images_4/0001.jpg", "masks/0001.png", "depth/0001.png", "__MACOSX/0001.jpg", "images/._0001.jpg")
    assert found(tmp_path, name) == [file]


def test_the_folder_of_a_name_counts(tmp_path: Path) -> None:
    """A picture of another camera must not stand in for one that is absent."""
    touch(tmp_path, "cam0/1.jpg", "cam0/2.jpg", "cam1/1.jpg", "cam1/2.jpg", "cam1/3.jpg")
    assert found(tmp_path, "cam0/1.jpg", "cam0/3.jpg", "cam1/3.jpg") == ["cam0/1.jpg", "", "cam1/3.jpg"]
    assert found(tmp_path, "C:/x/cam0/1.jpg", "C:/x/cam1/1.jpg", "C:/x/cam0/3.jpg") == ["cam0/1.jpg", "cam1/1.jpg", ""]
    assert found(tmp_path, "cam0/1.jpg", "cam1/1.jpg", "x/1.jpg", "cam2/3.jpg") == ["cam0/1.jpg", "cam1/1.jpg", "", ""]
    with pytest.raises(SceneError, match=r"the frame 'x/1\.jpg' may be .*cam0/1\.jpg or .*cam1/1\.jpg"):
        found(tmp_path, "x/1.jpg")
    with pytest.raises(SceneError, match=r"the frames 'left/3\.jpg' and 'right/3\.jpg' both fit .*cam1/3\.jpg alone"):
        found(tmp_path, "left/3.jpg", "right/3.jpg")


def test_names_lead_out_only_where_that_is_allowed(tmp_path: Path) -> None:
    scene = tmp_path / "scene"
    touch(tmp_path, "away.jpg", "scene/images/0.jpg")
    (scene / "images/link.jpg").symlink_to(tmp_path / "away.jpg")
    for name in ("../away.jpg", str(tmp_path / "away.jpg"), "images/link.jpg"):
        with pytest.raises(SceneError, match="points outside .*scene; copy it there"):
            found(scene, name)
        with pytest.raises(SceneError, match="points outside .*scene; add --scene.allow-outside"):
            SceneFiles(scene, allow_outside=False).find([name])
        assert SceneFiles(scene, allow_outside=True).find([name])[0].samefile(tmp_path / "away.jpg")
    assert found(scene, "../none.jpg", "/none/such.jpg", "\0", "") == [""] * 4
    touch(scene, "images/away.jpg")
    assert found(scene, "../away.jpg") == ["images/away.jpg"]


def test_folders_of_masks_hold_no_pictures_unless_they_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "masks/0.png", "images_8/0.jpg")
    assert found(tmp_path, "images/0.jpg", "masks/0.jpg", "images_8/0.png") == ["", "masks/0.png", "images_8/0.jpg"]


def test_photographs_are_those_of_the_root_or_of_the_folders_below(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        touch(folder, *files)
        return [path.relative_to(folder).as_posix() for path in photographs(folder)]

    assert names("input/1.jpg", "other/2.jpg", "Thumbs.db", ".DS_Store") == ["input/1.jpg"]
    assert names("Images/1.JFIF") == ["Images/1.JFIF"]
    assert names("cam1/1.jpg", "cam0/1.jpg", "cam0/2.jpg", "masks/1.png") == ["cam0/1.jpg", "cam0/2.jpg", "cam1/1.jpg"]
    assert names("images/b/1.heic", "images/a/1.heic", "__MACOSX/1.jpg") == ["images/a/1.heic", "images/b/1.heic"]
    assert names("images_8/1.jpg", "images_4/1.png") == ["images_4/1.png"]
    assert names("1.HEIC", "1.jpg", "2.HEIC", "2_mask.png", "._2.jpg") == ["1.jpg", "2.HEIC"]


def test_left_overs_of_other_systems_never_count(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "._1.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/1.jpg", "pose/1.txt", "pose/._1.txt")
    assert [path.name for path in picture_files(tmp_path)] == ["1.jpg"]
    assert matching(tmp_path / "pose", "*.txt") == [tmp_path / "pose/1.txt"] and matching(tmp_path / "none", "*") == []
    assert found(tmp_path, "x/1.jpg") == ["1.jpg"]


def test_what_is_passed_over_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "1.HEIC", "2.jpg", "3.NEF", "more/4.jpg", "masks/1.png")
    with pytest.warns(UserWarning) as caught:
        assert [path.name for path in read_photographs(tmp_path)] == ["1.jpg", "2.jpg"]
    told = [str(warning.message) for warning in caught]
    assert len(told) == 3 and "1.HEIC" in told[0] and "1 raw files" in told[1] and "darktable" in told[1] and "more: 1 pictures" in told[2]
    touch(tmp_path, "two/a/1.jpg", "two/b/1.jpg")
    with pytest.warns(UserWarning, match="the pictures of 2 folders are one scene.*a, b"):
        read_photographs(tmp_path / "two")


# --- Masks ----------------------------------------------------------------------------------------------------------


def mask(file: Path, middle: int, border: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    levels = np.full((16, 16), border, np.uint8)
    levels[4:12, 4:12] = middle
    Image.fromarray(levels).save(file)
    return file


@pytest.mark.parametrize(
    "name",
    ["masks/0001_mask.png", "masks/0001.jpg", "masks/0001.PNG", "mask/0001.png", "Masks/IMG.JPG", "images_mask/0001.png"]
    + ["images/masks/0001.png", "images/0001_mask.png", "masks/0001.JPG.png"],
)
@pytest.mark.parametrize("white", [False, True])
def test_masks_of_other_programs_are_found_and_the_middle_is_not_hidden(tmp_path: Path, name: str, white: bool) -> None:
    stem = "IMG" if "IMG" in name else "0001"
    touch(tmp_path, f"images/{stem}.JPG")
    file = mask(tmp_path / name, *((0, 255) if white else (255, 0)))
    paths = picture_files(tmp_path / "images")
    clear = name in ("masks/0001.JPG.png", "images/masks/0001.png")  # COLMAP's and nerfstudio's
    assert masks_of(paths) == [Mask(file, white_hides=white and not clear)]
    with pytest.warns(UserWarning, match=rf"in 1 of 1 pictures, .*; {'white' if white and not clear else 'black'} hides\.$"):
        find_masks(paths)


def test_masks_that_fit_no_picture_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "images/0001.jpg")
    mask(tmp_path / "masks/frame_1.png", 255, 0)
    with pytest.warns(
        UserWarning, match=r"masks holds 1 masks that fit none of the 1 pictures, such as frame_1\.png; .* should be 0001\.png\."
    ):
        assert find_masks(picture_files(tmp_path / "images")) == [None]
