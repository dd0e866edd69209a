"""What share of the full learning rate each step gets."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Integer

from cookbook_fx.errors import ConfigurationError


def learning_rate_multiplier(
    name: str,
    step: int | Integer[Array | np.ndarray, "*steps"],
    total_steps: int,
    *,
    warmup_steps: int = 0,
    decay_fraction: float = 0.2,
) -> Float[Array, "*steps"]:
    """Factor on the learning rate at `step`, in [0, 1].

    With T = `total_steps`, W = `warmup_steps`, s = `step` and x = (s - W) / (T - W):

        warm-up, s < W    (s + 1) / (W + 1), so that the first step already trains
        constant          1
        linear            1 - x
        cosine            ½(1 + cos πx)
        wsd               1 until T - D, then (T - s) / D, with D = `decay_fraction` · T in whole
                          steps, at least one

    Past the end the value at T stays: 0, or 1 for constant. The last step, T - 1, is not yet 0.

    Args:
        name: one of `SCHEDULES`.
        step: steps completed before this one; an array of them gives the whole curve at once. The
            only argument that may be traced, under `jit` and `vmap`: the others make the program
            and are checked first. Negative steps count as 0.
        total_steps: steps of the run.
        warmup_steps: steps at the beginning that rise to the full rate.
        decay_fraction: share of the run that wsd (warm-up, stable, decay) decays in, in (0, 1].

    Returns:
        The multipliers, in the step's shape.

    Raises:
        ConfigurationError: an unknown name, a run without steps, a warm-up that leaves no step, or
            a decay that begins before the warm-up ends.

    Example:
        >>> [float(learning_rate_multiplier("linear", step, 4)) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
        >>> learning_rate_multiplier("wsd", np.arange(5), 5, warmup_steps=1, decay_fraction=0.4)
        Array([0.5, 1. , 1. , 1. , 0.5], dtype=float32)

    Reference:
        Loshchilov and Hutter (2017), SGDR, for cosine; Hu et al. (2024), MiniCPM, for wsd.
    """
    if name not in SCHEDULES:
        raise ConfigurationError(f"a schedule must be one of {', '.join(SCHEDULES)}; got {name!r}")
    if total_steps < 1:
        raise ConfigurationError(f"`total_steps` must be at least 1, got {total_steps}")
    if not 0 <= warmup_steps < total_steps:
        raise ConfigurationError(
            f"`warmup_steps` must be at least 0 and below the run's {total_steps} "
            f"steps, got {warmup_steps}"
        )
    decay = SCHEDULES[name](total_steps - warmup_steps, _decay_steps(total_steps, decay_fraction))
    warmup = optax.linear_schedule(1 / (warmup_steps + 1), 1.0, warmup_steps)
    schedule = optax.join_schedules([warmup, decay], [warmup_steps])
    return jnp.asarray(schedule(jnp.asarray(step)))


def _decay_steps(total_steps: int, decay_fraction: float) -> int:
    if not 0 < decay_fraction <= 1:
        raise ConfigurationError(f"`decay_fraction` must be in (0, 1], got {decay_fraction}")
    return max(1, round(total_steps * decay_fraction))


def _constant(steps: int, decay_steps: int) -> optax.Schedule:
    return optax.constant_schedule(1.0)


def _linear(steps: int, decay_steps: int) -> optax.Schedule:
    return _falling(steps)


def _cosine(steps: int, decay_steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(1.0, steps)


def _warmup_stable_decay(steps: int, decay_steps: int) -> optax.Schedule:
    if decay_steps > steps:
        raise ConfigurationError(
            f"wsd has {steps} steps after its warm-up and cannot decay over {decay_steps}; lower "
            "`warmup_steps` or `decay_fraction`"
        )
    return _falling(decay_steps, begin=steps - decay_steps)


def _falling(steps: int, *, begin: int = 0) -> optax.Schedule:
    # Joined to the 0 it ends at: XLA divides by a constant as it multiplies with its reciprocal,
    # which leaves 6e-8 of some runs.
    falling = optax.linear_schedule(1.0, 0.0, steps, transition_begin=begin)
    return optax.join_schedules([falling, optax.constant_schedule(0.0)], [begin + steps])


SCHEDULES: dict[str, Callable[[int, int], optax.Schedule]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _warmup_stable_decay,
}
"""From a run's steps after the warm-up, and those that wsd decays in, to the schedule of them."""
