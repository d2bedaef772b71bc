"""nerfit eval: metrics of the held-out views of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nerfit.commands.options import SharedOptions
from nerfit.errors import ConfigError
from nerfit.progress import say


@dataclass
class Options(SharedOptions):
    """nerfit eval RUN: metrics of held-out views into metrics.json, pictures and strips into renders/."""

    split: str = "test"
    """test, val or train."""
    scene: str | None = None
    """Read the scene from here, not from the path that it was trained on."""
    reference_poses: str | None = None
    """Scene with the true cameras of the training views, by name; none = learned cameras are compared with the given ones."""
    pose_steps: int = 0
    """First move each view's camera by this many photometric steps (NeRF--, BARF: 100 and more)."""
    appearance_fit: bool = False
    """Evaluate the right half of each picture after the affine colour map that fits its left half best (NeRF in the Wild)."""
    lpips_weights: Path | None = None
    """Folder with alex.safetensors and vgg.safetensors."""


def run(options: Options) -> dict[str, Any]:
    """Evaluate a run's split; its part of metrics.json is replaced, the rest stays."""
    from nerfit.evaluation.evaluate import EvalConfig, evaluate
    from nerfit.evaluation.poses import learned_camera_errors
    from nerfit.outputs.pictures.histograms import draw_histograms
    from nerfit.runs import open_run
    from nerfit.scenes import load_scene
    from nerfit.scenes.images import write_png
    from nerfit.training import distributed
    from nerfit.training.checkpoints import update_metrics

    with distributed.leaders_first():
        trained = open_run(options.run, images=True, source=options.scene, threads=options.threads, device=options.device)
    pictures = options.run / "renders" / f"eval_{options.split}"
    reference = None if options.reference_poses is None else load_scene(options.reference_poses)
    if options.pose_steps < 0:
        raise ConfigError(f"--pose-steps must not be negative, but is {options.pose_steps}.")
    errors = learned_camera_errors(trained.method, trained.scene, reference)
    config = EvalConfig(
        options.split,
        lpips_weights=options.lpips_weights,
        pictures=pictures,
        pose_steps=options.pose_steps,
        appearance_fit=options.appearance_fit,
    )
    metrics = evaluate(trained.method, trained.scene, trained.chunk, config, say)
    metrics |= errors
    if not distributed.is_main():
        return metrics
    update_metrics(options.run, options.split, metrics)
    picture = draw_histograms(trained.method, trained.scene, trained.scene.splits[options.split][0])
    if picture is not None:
        write_png(pictures / "histograms.png", picture)
    return metrics


def text(metrics: dict[str, Any]) -> str:
    """The metrics for a reader."""
    names = {"psnr": "PSNR {:.2f} dB", "ssim": "SSIM {:.4f}", "lpips_vgg": "LPIPS(vgg) {:.4f}", "lpips_alex": "LPIPS(alex) {:.4f}"}
    names["depth_error"] = "depth error {:.4f}"

    def means(of: dict[str, Any]) -> str:
        return ", ".join(text.format(of[name]) for name, text in names.items() if name in of)

    rest = "".join(f"\n  {size}: {means(of)}" for size, of in metrics["by_size"].items())
    if "cameras" in metrics:
        off = "{rotation_degrees:.3f} degrees, {translation_percent:.2f} % of their extent, {focal_percent:.2f} % in focal length"
        rest += "\ncameras are off by " + off.format(**metrics["cameras"])
    rest += "".join(f"\nnot evaluated: {what}" for what in metrics["missing"])
    count, seconds = len(metrics["views"]), metrics["seconds_per_view"]
    return f"{metrics['split']}: {means(metrics)}, {seconds:.2f} s per view ({count} views; {metrics['protocol']}){rest}"
