"""Adam that leaves entries without gradient alone, as hash tables need."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import FactoredGradient


@torch.no_grad()
def sparse_adam(
    p: Tensor,
    gradient: Tensor | FactoredGradient,
    m: Tensor,
    v: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    levels: Sequence[int] = (),
) -> None:
    """One Adam step (Kingma and Ba 2015, algorithm 1) in place where the gradient is not zero; a dense gradient is zero afterwards.

    ``step`` counts from 1 and corrects the bias as if every entry had been touched each time; ``weight_decay`` is an L2
    penalty's factor, on touched entries only. With ``levels``, numbers where parts of the tensor begin and the last one ends,
    the penalty is on each part's mean of squares (Zip-NeRF, section 3.3). All tensors float32, of one size.
    """
    if levels and weight_decay and not isinstance(gradient, FactoredGradient):
        for begin, end in pairwise(levels):
            a, b, c, d = (t.view(-1)[begin:end] for t in (p, gradient, m, v))
            sparse_adam(a, b, c, d, step, lr, betas, eps, weight_decay / (end - begin))
        return
    correction1, correction2 = 1 - betas[0] ** step, 1 - betas[1] ** step
    if isinstance(gradient, FactoredGradient):
        from nerfit.kernels.cpu.adam import sparse_adam_factored

        decays = [weight_decay / (end - begin) for begin, end in pairwise(levels)] or [weight_decay] * gradient.layout.levels
        sparse_adam_factored(p, gradient, m, v, lr / correction1, betas, eps, 1 / correction2, decays)
        return
    kind = backend(p.device)
    if p.dtype == torch.float32 and (kind == "triton" or (kind == "cpu" and p.numel() % 16 == 0)):
        implementation(p.device, "adam").sparse_adam(p, gradient, m, v, lr / correction1, betas, eps, 1 / correction2, weight_decay)
        return
    touched = gradient != 0
    g = gradient + weight_decay * p
    m.copy_(torch.where(touched, betas[0] * m + (1 - betas[0]) * g, m))
    v.copy_(torch.where(touched, betas[1] * v + (1 - betas[1]) * g * g, v))
    p.sub_(torch.where(touched, lr / correction1 * m / ((v / correction2).sqrt() + eps), 0.0))
    gradient.zero_()
