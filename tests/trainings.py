"""What tests of trainings share."""

from nerfit.methods.views import render_view
from nerfit.metrics.psnr_ssim import psnr
from nerfit.training.trainer import Trainer


def mean_test_psnr(trained: Trainer) -> float:
    """Mean over the test views, in dB."""
    scene, views = trained.scene, trained.scene.splits["test"]
    return sum(psnr(render_view(trained.method, scene, scene.cameras, v, 4096).rgb, scene.image(v)) for v in views) / len(views)
