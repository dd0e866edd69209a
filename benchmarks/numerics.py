"""The arithmetic alone, against copying the bytes it has to touch, and beside its peers.

    python -m benchmarks.numerics [--sections kl returns groups losses growth shapes startup]
        [--cores 2] [--repeats 20]

kl       the penalty for leaving a base model, discounted, over the block layout of a ragged batch
returns  discounted sums, beside rlax, scipy and tinker-cookbook's loop
groups   advantages of a million groups of 16
losses   values and gradients of PPO and DPO over 4 M tokens, beside torch
growth   nanoseconds a token from 0.1 M to 16 M tokens: from episodes in Python lists to `Datum`s,
         and the penalty alone
shapes   programs compiled and slots padded in 200 steps of very different sizes
startup  the first call of each function in a new process, without and with JAX's compilation cache

A function touches each input once and its answer once; a copy of N floats touches 8 N bytes. The
ratio is the time of a function over that of a jitted copy of as many bytes, best of `repeats` turns
against best. Arrays are on the device when the clock starts. Needs the extra `peers` and
tinker-cookbook; `python -m benchmarks.rl_batches` says how to install it.
"""

import argparse
import collections
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import timing
from benchmarks.episodes import Work, make_work, our_groups
from cookbook_fx import numerics, rl
from cookbook_fx.data import Datum

_GAMMA, _COEF = 0.999, 0.1


class Entry(NamedTuple):
    """What is timed, the bytes it must touch, and which share of the whole work it does."""

    name: str
    run: Callable[[], object]
    num_bytes: int
    share: float = 1.0


class Columns(NamedTuple):
    """A ragged batch in block layout on the device, `[block, position]`."""

    sampling: jax.Array
    base: jax.Array
    mask: jax.Array
    starts: jax.Array
    tokens: int


def main() -> None:
    """Prints the sections asked for."""
    arguments = _arguments()
    timing.settle(arguments.cores)
    if arguments.first_calls:
        return _print_first_calls()
    print(f"{arguments.cores} core(s), float32, JAX {jax.__version__}; best of {arguments.repeats}")
    for section in arguments.sections:
        _SECTIONS[section](arguments)


def _kl(arguments: argparse.Namespace) -> None:
    for groups, mean_tokens in ((64, 512), (256, 1024)):
        columns = _columns(make_work(groups, 16, mean_tokens, turns=1))
        touched = columns.sampling.nbytes * 3 + columns.mask.nbytes + columns.starts.nbytes
        penalty = partial(_penalty, columns)
        _contest(
            f"KL penalty, {groups}x16x~{mean_tokens}",
            columns.tokens,
            [
                _copy(columns.sampling.size),
                Entry("discounted", partial(penalty, _GAMMA), touched),
                Entry("not discounted", partial(penalty, 0.0), touched),
                # Of the very arrays, which shows what of the work is more than moving them.
                Entry("its inputs and answer, copied", _copies(columns), 2 * touched),
            ],
            arguments.repeats,
        )
    print("  (the mean over the batch has to be known first, so the inputs are read twice)")


def _returns(arguments: argparse.Namespace) -> None:
    rlax, torch, peer_loop = _peers(arguments.cores)
    from scipy.signal import lfilter

    columns = _columns(make_work(256, 16, 1024, turns=1))
    blocks, size = columns.sampling, columns.sampling.size
    flat_starts = jnp.zeros(blocks.shape, bool).at[:, 0].set(columns.starts)
    sums = numerics.discounted_sums
    _contest(
        "discounted sums, ragged rows of ~1024",
        columns.tokens,
        [
            _copy(size),
            Entry("blocks", lambda: sums(blocks, _GAMMA, starts=columns.starts), 8 * size),
            Entry(
                "blocks, masked",
                lambda: sums(blocks, _GAMMA, mask=columns.mask, starts=columns.starts),
                9 * size,
            ),
            Entry(
                "flat, starts anywhere",
                lambda: sums(blocks.reshape(-1), _GAMMA, starts=flat_starts.reshape(-1)),
                9 * size,
            ),
        ],
        arguments.repeats,
    )
    rows = jax.random.normal(jax.random.key(0), (4096, 1024))
    discounts = jnp.full(1023, _GAMMA)
    discounts = jnp.append(discounts, 0.0)
    peer = jax.jit(jax.vmap(lambda row: rlax.discounted_returns(row, discounts, 0.0)))
    host, few = np.asarray(rows), torch.asarray(np.array(rows[:8]))
    _contest(
        "discounted sums, 4096 rows of 1024",
        rows.size,
        [
            _copy(rows.size),
            Entry("rows", lambda: sums(rows, _GAMMA), 8 * rows.size),
            Entry("rlax, vmapped", lambda: peer(rows), 8 * rows.size),
            Entry(
                "scipy lfilter",
                lambda: lfilter([1.0], np.float32([1.0, -_GAMMA]), host[:, ::-1])[:, ::-1],
                8 * rows.size,
            ),
            Entry(
                "tinker-cookbook, 8 rows",
                lambda: [peer_loop(row, _GAMMA) for row in few],
                8 * rows.size,
                share=8 / 4096,
            ),
        ],
        max(arguments.repeats // 3, 1),
    )


def _groups(arguments: argparse.Namespace) -> None:
    shape = (1_000_000, 16)
    rewards = jax.random.uniform(jax.random.key(0), shape)
    mask = jax.random.bernoulli(jax.random.key(1), 0.9, shape)
    entries = [_copy(rewards.size)]
    for name in ("group_centered", "group_normalized", "leave_one_out", "max_rl"):
        estimate = getattr(numerics, name)
        entries += [
            Entry(name, partial(estimate, rewards), 8 * rewards.size),
            Entry(f"{name}, masked", partial(estimate, rewards, mask=mask), 9 * rewards.size),
        ]
    _contest("advantages of 1 M groups of 16", rewards.size, entries, arguments.repeats)


def _losses(arguments: argparse.Namespace) -> None:
    _, torch, _ = _peers(arguments.cores)
    shape = (4096, 1024)
    keys = jax.random.split(jax.random.key(0), 4)
    learner, sampler, advantages = (jax.random.normal(key, shape) * 0.1 for key in keys[:3])
    weights = jax.random.bernoulli(keys[3], 0.8, shape).astype(jnp.float32)

    def ppo(p: jax.Array) -> jax.Array:
        losses = numerics.ppo(p, sampling_logprobs=sampler, advantages=advantages, weights=weights)
        return losses.sum()

    def dpo(p: jax.Array) -> jax.Array:
        ours, reference = (numerics.sequence_logprobs(x, weights) for x in (p, sampler))
        return numerics.dpo(
            ours[::2],
            ours[1::2],
            reference_chosen=reference[::2],
            reference_rejected=reference[1::2],
        ).mean()

    there = [torch.asarray(np.array(x)) for x in (learner, sampler, advantages, weights)]
    p, q, a, w = there
    p.requires_grad_()

    def differentiated(loss: Any) -> object:
        return loss.detach(), torch.autograd.grad(loss, p)

    def peer_ppo() -> object:
        ratio = torch.exp(p - q)
        return differentiated(-(torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * w).sum())

    def peer_dpo() -> object:
        margin = ((p - q) * w).sum(-1)
        return differentiated(
            -torch.nn.functional.logsigmoid(0.1 * (margin[::2] - margin[1::2])).mean()
        )

    def ours(loss: Callable[[jax.Array], jax.Array]) -> Callable[[], object]:
        return partial(jax.jit(jax.value_and_grad(loss)), learner)

    _contest(
        "losses and their gradients, 4096 rows of 1024",
        learner.size,
        [
            _copy(learner.size),
            Entry("PPO", ours(ppo), 20 * learner.size),
            Entry("PPO, torch", peer_ppo, 20 * learner.size),
            Entry("DPO", ours(dpo), 16 * learner.size),
            Entry("DPO, torch", peer_dpo, 16 * learner.size),
        ],
        max(arguments.repeats // 2, 1),
    )


def _growth(arguments: argparse.Namespace) -> None:
    print(f"\n{'growth':<34} {'lists to Datums':>20} {'KL penalty, discounted':>26}")
    for groups in (6, 25, 100, 256, 1024):
        work = make_work(groups, 16, 1024, turns=1)
        groups_, base = our_groups(work), work.base_logprobs
        columns = _columns(work)
        runs = [lambda g=groups_, b=base: _path(g, b), partial(_penalty, columns, _GAMMA)]
        for run in runs:
            jax.block_until_ready(run())
        waiting = [lambda run=run: jax.block_until_ready(run()) for run in runs]
        path, penalty = timing.in_turns(waiting, repeats=max(arguments.repeats // 4, 1))
        each = [1e9 * timing.shortest(t) / work.tokens for t in (path, penalty)]
        print(f"{work.tokens:>11} tokens {each[0]:>29.1f} ns/token {each[1]:>17.2f} ns/token")


def _shapes(arguments: argparse.Namespace) -> None:
    compiled: collections.Counter[str] = collections.Counter()
    seconds: collections.Counter[str] = collections.Counter()

    def count(event: str, duration: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            name = re.sub(r"^jit\(|\)$|^jit_", "", str(details.get("fun_name")))
            compiled[name] += 1
            seconds[name] += duration

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(count)
    slots, tokens = 0, []
    for work in _varied_steps(200):
        batch = rl.trajectory_batch(our_groups(work))
        _step(batch, work.base_logprobs)
        tokens.append(work.tokens)
        slots += len(batch.tokens)
    jax.monitoring.unregister_event_duration_listener(count)
    padding = 100 * (slots / sum(tokens) - 1)
    print(f"\n200 steps of {min(tokens)} to {max(tokens)} tokens: {padding:.1f} % padding")
    for name, programs in compiled.most_common():
        print(f"  {name:<40} {programs:>3} programs, {seconds[name]:6.2f} s")


def _step(batch: rl.TrajectoryBatch, base_rows: list[list[float | None]]) -> None:
    """What a training step calls between sampling and training."""
    advantages = rl.token_advantages(batch, rl.group_advantages(batch))
    base = batch.column(base_rows)
    shaped = rl.kl_shaped(batch, advantages, base, coef=_COEF, gamma=_GAMMA)
    rl.batch_data(batch, shaped.advantages)
    blocks, base_blocks, mask = (
        x.reshape(-1, rl.BLOCK) for x in (batch.sampling_logprobs, base, batch.mask)
    )
    numerics.discounted_sums(blocks, _GAMMA, mask=mask, starts=batch.block_starts)
    numerics.sample_train_kl(blocks, base_blocks, mask)
    numerics.token_mean_weights(mask)
    numerics.ppo(
        base_blocks,
        sampling_logprobs=blocks,
        advantages=shaped.advantages.reshape(-1, rl.BLOCK),
        weights=mask.astype(np.float32),
    )


def _varied_steps(count: int) -> Iterator[Work]:
    """Two to one in the number of groups, four to one in the length of episodes."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        groups, mean_tokens = np.exp(rng.uniform(np.log([8, 256]), np.log([16, 1024])))
        yield make_work(int(groups), 16, int(mean_tokens), turns=1)


def _startup(arguments: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "benchmarks.numerics", "--first-calls"]
    with tempfile.TemporaryDirectory() as cache:
        variables = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        runs = [
            subprocess.run(
                command, env=os.environ | variables, check=True, text=True, stdout=subprocess.PIPE
            ).stdout.splitlines()
            for _ in range(2)
        ]
    print(f"\n{'first call in a process':<34} {'new':>10} {'cached':>10}")
    for new, cached in zip(*runs, strict=True):
        name, took = new.rsplit(maxsplit=1)
        print(f"{name:<34} {took:>8} s {cached.rsplit(maxsplit=1)[1]:>8} s")


def _print_first_calls() -> None:
    """Seconds of the first call on arrays of 0.1 M tokens, tracing and compiling included."""
    shape = (2048, 64)
    x = jnp.full(shape, 0.5)
    mask, starts = jnp.ones(shape, bool), jnp.zeros(shape[0], bool)
    blocks = {"mask": mask, "starts": starts}

    def gradient(loss: Callable[[jax.Array], jax.Array]) -> Callable[[], object]:
        return partial(jax.jit(jax.value_and_grad(lambda p: loss(p).sum())), x)

    reference = {"reference_chosen": x[:, 0], "reference_rejected": x[:, 1]}
    policy = {"sampling_logprobs": x, "advantages": x, "weights": x}
    calls: dict[str, Callable[[], object]] = {
        "group_centered": lambda: numerics.group_centered(x, mask=mask),
        "group_normalized": lambda: numerics.group_normalized(x, mask=mask),
        "discounted_sums, rows": lambda: numerics.discounted_sums(x, _GAMMA),
        "discounted_sums, blocks": lambda: numerics.discounted_sums(x, _GAMMA, **blocks),
        "kl_penalty": lambda: numerics.kl_penalty(
            x, x, mask, coef=_COEF, gamma=_GAMMA, starts=starts
        ),
        "generalized_advantages": lambda: numerics.generalized_advantages(
            x, x, gamma=_GAMMA, lambda_=0.95
        ),
        "sample_train_kl": lambda: numerics.sample_train_kl(x, x, mask),
        "ppo, value and gradient": gradient(lambda p: numerics.ppo(p, **policy)),
        "gspo, value and gradient": gradient(
            lambda p: numerics.gspo(
                p, **policy, clip_low_threshold=1 - 3e-4, clip_high_threshold=1 + 4e-4
            )
        ),
        "dpo, value and gradient": gradient(lambda p: numerics.dpo(p[:, 0], p[:, 1], **reference)),
    }
    for name, call in calls.items():
        took, _ = timing.timed(lambda call=call: jax.block_until_ready(call()))
        print(f"{name} {took.wall:.2f}")


def _contest(title: str, tokens: int, entries: list[Entry], repeats: int) -> None:
    """Prints the best time of each, and how much longer that is than copying its bytes."""
    runs = [lambda entry=entry: jax.block_until_ready(entry.run()) for entry in entries]
    for run in runs:
        run()
    timings = timing.in_turns(runs, repeats=repeats)
    copy = timing.shortest(timings[0]) / entries[0].num_bytes
    print(f"\n{title:<34} {'best':>10} {'median':>10} {'a token':>11} {'/ copy':>7}")
    for entry, its_timings in zip(entries, timings, strict=True):
        best = timing.shortest(its_timings) / entry.share
        median = timing.median(its_timings) / entry.share
        print(
            f"{entry.name:<34} {1e3 * best:>7.2f} ms {1e3 * median:>7.2f} ms "
            f"{1e9 * best / tokens:>8.2f} ns {best / (copy * entry.num_bytes):>7.2f}",
            flush=True,
        )


def _copy(num_floats: int) -> Entry:
    floats = jnp.ones(num_floats)
    return Entry("copy", partial(jax.jit(jnp.copy), floats), 8 * num_floats)


def _copies(columns: Columns) -> Callable[[], object]:
    arrays = (*columns[:4], jnp.zeros_like(columns.sampling))
    return partial(jax.jit(partial(jax.tree.map, jnp.copy)), arrays)


def _penalty(columns: Columns, gamma: float) -> numerics.KLPenalty:
    return numerics.kl_penalty(
        columns.sampling,
        columns.base,
        columns.mask,
        coef=_COEF,
        gamma=gamma,
        starts=columns.starts,
    )


def _path(groups: list[rl.TrajectoryGroup], base: list[list[float | None]]) -> list[Datum]:
    batch = rl.trajectory_batch(groups)
    advantages = rl.token_advantages(batch, rl.group_advantages(batch))
    shaped = rl.kl_shaped(batch, advantages, batch.column(base), coef=_COEF, gamma=_GAMMA)
    return rl.batch_data(batch, shaped.advantages)


def _columns(work: Work) -> Columns:
    batch = rl.trajectory_batch(our_groups(work))
    base = batch.column(work.base_logprobs)
    flat = (batch.sampling_logprobs, base, batch.mask)
    sampling, base, mask = (jnp.array(x.reshape(-1, rl.BLOCK)) for x in flat)
    return Columns(sampling, base, mask, jnp.array(batch.block_starts), work.tokens)


def _peers(cores: int) -> tuple[Any, Any, Callable[[Any, float], Any]]:
    try:
        import rlax
        import torch
        from tinker_cookbook.rl.metrics import discounted_future_sum_vectorized
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; {__doc__[__doc__.rindex('Needs the extra') :]}") from error
    torch.set_num_threads(cores)
    return rlax, torch, discounted_future_sum_vectorized


_SECTIONS = {
    "kl": _kl,
    "returns": _returns,
    "groups": _groups,
    "losses": _losses,
    "growth": _growth,
    "shapes": _shapes,
    "startup": _startup,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", default=[*_SECTIONS], choices=[*_SECTIONS])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--first-calls", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
