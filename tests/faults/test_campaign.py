"""The campaign counts what its rounds find, and goes on where it ended."""

import json
import time
from pathlib import Path

import pytest
from campaign import KILLS, Campaign, Round, all_rounds, play
from test_faults import linux


@linux
@pytest.mark.slow
def test_a_campaign_counts_and_goes_on(tmp_path: Path) -> None:
    recipe = next(one for one in all_rounds() if one.name == "recipe")
    recipe.inputs = 3
    for turn in (1, 2):
        campaign = Campaign(tmp_path, [recipe])
        campaign.work(time.monotonic() + 0.1)
        totals = json.loads((tmp_path / "totals.json").read_text())
        assert totals["inputs"] == 3 * turn and totals["turns"] == {"recipe": turn} and totals["failures"] == []
        assert 100 < totals["megabytes"] < 2000


@linux
@pytest.mark.slow
def test_a_campaign_kills(tmp_path: Path) -> None:
    found, failures = play(next(one for one in all_rounds() if one.name == "nerf"), 1)
    assert failures == [] and found["kills"] >= KILLS and found["runs_finished"] > 0


def test_what_dies_is_a_failure(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text("raise SystemExit('no luck')")
    found, failures = play(Round("x", str(script), 5), 1)
    assert found["inputs"] == 0 and "x 1: it died: no luck" in failures[0]


def test_what_goes_wrong_is_counted(tmp_path: Path) -> None:
    script = tmp_path / "finds.py"
    script.write_text("""print('["x", 7, "Traceback"]'); print("something else")""")
    found, failures = play(Round("x", str(script), 5), 1)
    assert (found["inputs"], found["tracebacks"]) == (5, 1) and failures == ["x, seed 7: Traceback"]
