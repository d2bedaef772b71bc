"""Adam that leaves entries without gradient alone, as hash tables need."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from nerfit.kernels.dispatch import backend, implementation
from nerfit.kernels.layouts import AdamStep, FactoredGradient


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
    decay = numbers.weight_decay
    if levels and decay and not isinstance(gradient, FactoredGradient):
        for begin, end in pairwise(levels):
            a, b, c, d = (t.view(-1)[begin:end] for t in (p, gradient, m, v))
            sparse_adam(a, b, c, d, replace(numbers, weight_decay=decay / (end - begin)))
        return
    if isinstance(gradient, FactoredGradient):
        from nerfit.kernels.cpu.adam import sparse_adam_factored

        decays = [decay / (end - begin) for begin, end in pairwise(levels)] or [decay] * gradient.layout.levels
        sparse_adam_factored(p, gradient, m, v, numbers, decays)
        return
    kind = backend(p.device)
    if p.dtype == torch.float32 and (kind == "triton" or (kind == "cpu" and p.numel() % 16 == 0)):
        implementation(p.device, "adam").sparse_adam(p, gradient, m, v, numbers)
        return
    rate, beta1, beta2, eps, correction2 = numbers.rates()
    touched = gradient != 0
    g = gradient + decay * p
    m.copy_(torch.where(touched, beta1 * m + (1 - beta1) * g, m))
    v.copy_(torch.where(touched, beta2 * v + (1 - beta2) * g * g, v))
    p.sub_(torch.where(touched, rate * m / ((v * correction2).sqrt() + eps), 0.0))
    gradient.zero_()
