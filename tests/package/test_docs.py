"""README and docs say nothing that the program does not do: every command in them parses, every file they name exists."""

import re
import shlex
from pathlib import Path

import pytest

from conftest import ROOT
from nerfit import cli, config
from nerfit.plugins import available
from nerfit.recipes.loading import load_recipe

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """Lines of code blocks, and inline code, that call nerfit."""
    found = set()
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
        lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
        lines += re.findall(r"`(nerfit [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
        found |= {line for line in lines if line.startswith("nerfit ")}
    return sorted(found)


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_exist(command: str) -> None:
    """The command exists; its flags, recipe, method and options are known."""
    words = shlex.split(command.replace("\\|", "|"))[1:]
    assert words[0] in cli.COMMANDS, command
    if words[0] == "train" and words[1:2] and words[1] in available("nerfit.methods"):
        recipe = config.typed_value(words, "--recipe")
        if recipe is not None and not recipe.endswith(".txt"):
            load_recipe(recipe)
    if words[0] == "render" and "--what" in words:
        from nerfit.outputs.pictures.paths import checked_quantities

        checked_quantities(words[words.index("--what") + 1])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in cli.COMMANDS:
        assert f"nerfit {name}" in readme or f"`{name}`" in readme, name
