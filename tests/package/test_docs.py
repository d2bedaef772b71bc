"""README and docs say nothing that the program does not do: every command in them parses, every file they name exists."""

import dataclasses
import functools
import importlib
import pkgutil
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import nerfit
import nerfit.commands
from conftest import ROOT
from nerfit import cli, config
from nerfit.plugins import available
from nerfit.recipes.loading import load_recipe
from nerfit.runs import default_config

NAMES = {name.split()[0] for name in cli.COMMANDS}
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), ROOT / "tests" / "README.md"]
OTHERS = {"--nnodes", "--nproc-per-node", "--max-restarts", "--local-addr", "--rdzv-conf", "--rdzv-id", "--scene.grey"}
"""Flags of torchrun and of the example plug-in that the docs mention alone."""


def commands() -> list[str]:
    """Lines of code blocks, and inline code, that call nerfit."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```[^\n`]*\n(.*?)```", text, re.S)
        lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
        lines += re.findall(r"`(nerfit [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        found |= {line for line in lines if line.startswith("nerfit ")}
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_exist(command: str) -> None:
    """The command exists; its flags, recipe, method and options are known."""
    words = shlex.split(command.replace("\\|", "|"))[1:]
    assert words[0] in NAMES, command
    if words[0] == "train" and words[1:2] and words[1] in available("nerfit.methods"):
        recipe = (config.typed_values(words).get("recipe") or [None])[0]
        if recipe is not None and not recipe.endswith(".txt"):
            load_recipe(recipe)
    if words[0] == "render" and "--what" in words:
        from nerfit.outputs.pictures.render_path import checked_quantities

        checked_quantities(words[words.index("--what") + 1])


@functools.cache
def known_flags() -> set[str]:
    """The flags of every command, and of a training of every method on every scene format, as users type them."""
    keys: set[str] = set()
    for module in pkgutil.iter_modules(nerfit.commands.__path__, "nerfit.commands."):
        for kind in vars(importlib.import_module(module.name)).values():
            if dataclasses.is_dataclass(kind):
                keys |= {field.name for field in dataclasses.fields(kind)}
    for method in available("nerfit.methods"):
        for form in available("nerfit.scenes"):
            keys |= set(config.keys_of(default_config(method, form)))
    flags = {"--" + key.replace("_", "-") for key in keys} | {"--help"}
    return flags | {re.sub(r"\.(?=[^.]*$)", ".no-", flag) for flag in flags if "." in flag} | {f"--no-{flag[2:]}" for flag in flags}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_flags_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    lines = [line for block in re.findall(r"```[^\n`]*\n(.*?)```", text, re.S) for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ours = [line for line in lines if not re.match(r"(pip|pytest|ssh|git|python) ", line)]
    flags = {flag.rstrip("-") for line in ours for flag in re.findall(r"(?<![\w-])--[a-z][\w.-]*", line.partition("torchrun")[0])}
    known = known_flags() | OTHERS
    unknown = {flag for flag in flags - known if not (flag.endswith(".") and any(other.startswith(flag) for other in known))}
    assert not unknown, sorted(unknown)


def test_the_changelog_names_a_thing_once() -> None:
    """Every entry is a whole sentence, and no two entries begin alike."""
    entries = [" ".join(part.split()) for part in re.split(r"^- |^#.*$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)]
    entries = [entry for entry in entries if entry]
    assert all(entry.endswith(".") for entry in entries)
    names = [match.group(1) for entry in entries if (match := re.match(r"(`nerfit [^`]+`)", entry))]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor


def test_files_named_in_the_docs_exist() -> None:
    """Paths of the package and of tests, and names of test files, in inline code."""
    names = {name for page in PAGES for name in re.findall(r"`([\w./]+)`", page.read_text())}
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    gone = {name for name in names if re.fullmatch(r"test_\w+\.py", name) and name not in tests}
    rooms = tuple(f"{module.name}/" for module in pkgutil.iter_modules(nerfit.__path__) if module.ispkg)
    gone |= {name for name in names if name.startswith(("tests/", "src/", "docs/")) and not (ROOT / name).exists()}
    gone |= {name for name in names if name.startswith(rooms) and not (ROOT / "src/nerfit" / name).exists()}
    assert not gone, sorted(gone)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/plugins.md"])
def test_names_in_the_pages_for_developers_exist(page: str) -> None:
    """Each name in inline code is a word of the source, the tests or the project file; `Voxels` is the page's own example."""
    source = "".join(path.read_text() for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "pyproject.toml"])
    words = set(re.findall(r"\w+", source)) | {"Voxels", "VoxelsConfig"}
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.S)
    assert set(re.findall(r"`@?([A-Za-z_]\w*)(?:\([^`]*\))?`", text)) <= words


def test_tests_named_beside_faults_exist() -> None:
    """docs/faults.md: a test file, and parts of the names of its tests."""
    rows = re.findall(r"`(test_\w+\.py)`: ((?:`\w+`(?:, )?)+)", (ROOT / "docs" / "faults.md").read_text())
    assert rows
    for file, parts in rows:
        names = re.findall(r"def (test_\w+)", next((ROOT / "tests").rglob(file)).read_text())
        for part in re.findall(r"`(\w+)`", parts):
            assert any(part in name for name in names), (file, part)


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in NAMES:
        assert f"nerfit {name}" in readme or f"`{name}`" in readme, name


def test_the_house_has_the_rooms_of_the_import_contract() -> None:
    """docs/architecture.md lists the layers of pyproject.toml in their order, and each folder or module of the package is one."""
    contract, _ = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    house = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(), re.S)[0].splitlines()
    assert [re.split(r"  +", line)[0] for line in house] == contract["layers"]
    rooms = {room for layer in contract["layers"] for room in layer.split(" | ")}
    assert rooms == {module.name for module in pkgutil.iter_modules(nerfit.__path__)} - {"__main__"}
