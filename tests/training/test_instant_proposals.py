"""The method instant-unbounded: who learns from which loss, where proposals lead, and trained for real."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nerfit.commands.train_options import request
from nerfit.commands.train_plan import choose_method
from nerfit.errors import ConfigError
from nerfit.methods.instant_proposals import InstantProposals, InstantProposalsConfig
from nerfit.runs import Plan
from nerfit.scenes.formats.procedural import Config, load
from nerfit.scenes.scene import Scene
from nerfit.training.logs import LogConfig
from nerfit.training.optim import OptimConfig
from nerfit.training.trainer import LoopConfig, Trainer
from trainings import mean_test_psnr

SMALL = InstantProposalsConfig(
    levels=4, log2_entries=13, coarsest=8, finest=64, width=32, proposal_levels=3, proposal_log2_entries=11, proposal_finest=[16, 32],
    proposal_samples=[24, 16], intervals=12, samples=4096,
)  # fmt: skip
OPTIM = OptimConfig(optimizer="sparse-adam", lr=1e-2, beta2=0.95, eps=1e-15, schedule="cosine", lr_final=1e-3, warmup_steps=20)
QUIET = LogConfig(image_every=0, save_every=0)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """A room, its things 1.8 to 5.5 away, in a scene that is said to reach 50 times as far."""
    room = load("procedural:forward-facing", Config(size=40, samples=2))
    return replace(room, ndc=False, near=0.3, far=100.0, bounds="unbounded", background="random")


def trainer(scene: Scene, folder: Path, steps: int, **choices: Any) -> Trainer:
    settings = LoopConfig(**({"optim": OPTIM, "log": QUIET, "steps": steps, "device": "cpu"} | choices))
    return Trainer(lambda: InstantProposals(SMALL, scene), scene, settings, folder, quiet=True)


@pytest.fixture(scope="module")
def trained(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = trainer(scene, tmp_path_factory.mktemp("run"), 300)
    run.train()
    return run


def test_a_room_far_smaller_than_its_scene_is_learned(trained: Trainer) -> None:
    """The mean training colour scores 12.9 dB."""
    assert mean_test_psnr(trained) > 20.5


def test_proposals_lead_the_field_to_what_there_is(trained: Trainer, scene: Scene) -> None:
    """Where the field's weight lies its intervals have come to be short, and the proposals' weight is there too."""
    method = trained.method
    batch = method.view_batch(scene, scene.cameras, 0, torch.arange(0, 1600, 7))
    (_, _), (edges, proposed), (s, weights) = method.histograms(batch)
    seen = weights.sum(-1) > 0.9
    assert seen.float().mean() > 0.9
    length = (weights * s.diff()).sum(-1) / weights.sum(-1)
    assert length[seen].median() < 0.3 / SMALL.intervals
    middles = [0.5 * (e[:, 1:] + e[:, :-1]) for e in (edges, s)]
    where, wanted = ((w * m).sum(-1) / w.sum(-1) for w, m in zip((proposed, weights), middles, strict=True))
    assert (where - wanted)[seen].abs().median() < 0.02


def test_the_interlevel_loss_reaches_proposals_alone_and_no_other_loss_does(scene: Scene) -> None:
    torch.manual_seed(0)
    method = InstantProposals(SMALL, scene)
    batch = method.next_batch(scene, 0, torch.Generator().manual_seed(1))
    with torch.no_grad():
        method.field.table.normal_(std=0.5)
    losses = method.losses(method.render(batch), batch, 0)
    of_field, of_proposals = [method.field.table, method.field.weights], list(method.proposals.parameters())
    losses["interlevel"].backward()
    assert all(p.grad is None for p in of_field)
    assert all(p.grad is not None and p.grad.any() for p in of_proposals)
    method.zero_grad()
    losses = method.losses(method.render(batch), batch, 0)
    (losses["rgb"] + losses["distortion"]).backward()
    assert all(p.grad is not None and p.grad.any() for p in of_field)
    assert all(p.grad is None or not p.grad.any() for p in of_proposals)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first = (trainer(scene, tmp_path / name, 12) for name in ("whole", "parts"))
    whole.train()
    after = first._average_weights

    def stop() -> None:
        after()
        first.interrupted = 2 if first.state.step == 5 else None

    monkeypatch.setattr(first, "_average_weights", stop)
    first.train()
    rest = trainer(scene, tmp_path / "parts", 12)
    assert rest.state.step == 6
    rest.train()
    for (name, mine), other in zip(rest.method.state_dict().items(), whole.method.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


def test_densities_and_colours_at_points_are_those_that_rays_meet(trained: Trainer, scene: Scene) -> None:
    method = trained.method
    assert isinstance(method, InstantProposals)
    batch = method.view_batch(scene, scene.cameras, 0, torch.arange(0, 1600, 31))
    rays, (s, weights) = batch.rays, method.histograms(batch)[-1]
    assert rays is not None and isinstance(method, InstantProposals)
    with torch.no_grad():
        t = method.ladder.distances(*method.ladder.ends(rays.near, rays.far), s)
        points = rays.origins[:, None] + 0.5 * (t[:, 1:] + t[:, :-1])[..., None] * rays.directions[:, None]
        density, rgb = method.radiance(points.reshape(-1, 3), rays.viewdirs.repeat_interleave(weights.shape[1], 0))
        assert torch.allclose(density, method.density(points.reshape(-1, 3)), rtol=1e-4)
        optical = density.reshape(weights.shape) * t.diff() * rays.directions.norm(dim=-1, keepdim=True)
        mine = torch.exp(optical - optical.cumsum(-1)) * -torch.expm1(-optical)
        assert (mine - weights).abs().max() < 1e-3
        color = (mine[..., None] * rgb.reshape(*mine.shape, 3)).sum(1) + (1 - mine.sum(1, keepdim=True))
        assert (color - method.render(batch).rgb).abs().max() < 0.03


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"proposal_samples": [8]}, "as many proposals"),
        ({"proposal_samples": [], "proposal_finest": []}, "as many proposals"),
        ({"proposal_samples": [8, 1]}, "2 samples"),
        ({"power": 1.5}, "model.power"),
        ({"padding": 0.0}, "model.padding"),
        ({"intervals": 1}, "model.intervals"),
    ],
)
def test_what_makes_no_sense_is_refused(scene: Scene, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        InstantProposals(replace(SMALL, **changes), scene)


def test_ndc_is_refused(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="no-ndc"):
        InstantProposals(SMALL, replace(scene, ndc=True))


@pytest.mark.parametrize(
    "changes, words, method",
    [
        ({}, [], "instant-unbounded"),
        ({"bounds": "object"}, [], "instant"),
        ({"bounds": "forward-facing"}, [], "instant"),
        ({"ndc": True}, [], "instant"),
        ({}, ["--recipe", "instant"], "instant"),
        ({}, ["--recipe", "nerf-small"], "nerf"),
        ({}, ["--model.march-steps", "400"], "instant"),
    ],
)
def test_auto_takes_it_for_unbounded_scenes_unless_words_are_for_another(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: list[str], method: str
) -> None:
    given = replace(scene, **changes)
    monkeypatch.setattr(Plan, "load_scene", lambda plan, source=None, run=None: given)
    chosen, loaded = choose_method(request("auto", "procedural", [*words, "--steps", "7"]))
    assert chosen == method and loaded is given
