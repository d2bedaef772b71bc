"""Configurations for the tests of every key: other values of any type, and optimisers in states in which some keys have no effect."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from nerfit.training.optim import OptimConfig

OPTIMISERS: dict[str, OptimConfig] = {
    "exponential": OptimConfig(),
    "step": OptimConfig(schedule="step", decay_steps=2),
    "multi-step": OptimConfig(schedule="multi-step", milestones=[2]),
    "cosine": OptimConfig(schedule="cosine"),
    "log-linear, warmed up": OptimConfig(schedule="log-linear", warmup_steps=3),
    "constant": OptimConfig(schedule="constant"),
    "sgd": OptimConfig(optimizer="sgd", lr=0.1),
}


def other_value(kind: Any, value: Any) -> Any:
    """A value of a type that differs from ``value``."""
    if isinstance(kind, UnionType) or get_origin(kind) is Union:
        inner = next(k for k in get_args(kind) if k is not type(None))
        if type(None) not in get_args(kind):
            return other_value(inner, value)
        return None if value is not None else other_value(inner, None if get_origin(inner) is Literal else inner())
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    if kind is bool:
        return not value
    if get_origin(kind) in (list, tuple):
        return type(value)(x + 1 for x in value) or [0, 3]
    return value + {int: 1, float: 0.25, str: "x"}[kind]
