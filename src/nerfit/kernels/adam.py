"""Adam that leaves entries without gradient alone, as hash tables need."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import FactoredGradient


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one Adam step."""

    step: int
    """Number of this step, from 1 on; the bias is corrected as if every entry had had a gradient each time."""
    lr: float
    """Learning rate."""
    betas: tuple[float, float]
    """Decay rates of the means of gradients and of their squares."""
    eps: float
    """Added to the root of the mean square."""
    weight_decay: float = 0.0
    """Factor of an L2 penalty, on entries with a gradient only."""


@torch.no_grad()
def sparse_adam(
    p: Float[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"] | FactoredGradient,
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    numbers: AdamStep,
    levels: Sequence[int] = (),
) -> None:
    """One Adam step (Kingma and Ba 2015, algorithm 1) in place where the gradient is not zero; a dense gradient is zero afterwards.

    ``p`` is the parameter, ``m`` the mean of its gradients, ``v`` the mean of their squares: contiguous and of one shape. ``levels``
    are numbers where parts of the flat tensor begin, and where the last one ends; the penalty is then on each part's mean of squares
    (Zip-NeRF, section 3.3).
    """
    n = numbers
    if levels and n.weight_decay and not isinstance(gradient, FactoredGradient):
        for begin, end in pairwise(levels):
            a, b, c, d = (t.view(-1)[begin:end] for t in (p, gradient, m, v))
            sparse_adam(a, b, c, d, replace(n, weight_decay=n.weight_decay / (end - begin)))
        return
    (beta1, beta2), decay = n.betas, n.weight_decay
    correction1, correction2 = 1 - beta1**n.step, 1 - beta2**n.step
    rates = n.lr / correction1, n.betas, n.eps, 1 / correction2
    if isinstance(gradient, FactoredGradient):
        from nerfit.kernels.cpu.adam import sparse_adam_factored

        decays = [decay / (end - begin) for begin, end in pairwise(levels)] or [decay] * gradient.layout.levels
        sparse_adam_factored(p, gradient, m, v, *rates, decays)
        return
    kind = backend(p.device)
    if p.dtype == torch.float32 and (kind == "triton" or (kind == "cpu" and p.numel() % 16 == 0)):
        implementation(p.device, "adam").sparse_adam(p, gradient, m, v, *rates, decay)
        return
    touched = gradient != 0
    g = gradient + decay * p
    m.copy_(torch.where(touched, beta1 * m + (1 - beta1) * g, m))
    v.copy_(torch.where(touched, beta2 * v + (1 - beta2) * g * g, v))
    p.sub_(torch.where(touched, n.lr / correction1 * m / ((v / correction2).sqrt() + n.eps), 0.0))
    gradient.zero_()
