"""Sampling here and with transformers' `generate` on torch, side by side.

    python -m benchmarks.sampling [--sequences 1 8 32] [--cores 2] [--repeats 3]

Both sides draw from the same float32 model at temperature 1, in one process with the same settings,
taking turns: prompts of 64 tokens, all different, and 128 new tokens each, reading the prompts
included. Then one prompt of 256 tokens with 16 samples of 64 new tokens. The ceiling is the time
that multiplying the weights, or reading them from memory, would take on its own. Our side also
returns every token's log-probability. Needs the extra `peers`.

Last, what asking for 16 samples at once saves us: against sixteen requests of one sample that come
one after another, and against sixteen that come together with prompts that have nothing in common.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.timing import Timing


class Work(NamedTuple):
    """Prompts `[sequence, token]`, samples of each, and new tokens a sample."""

    name: str
    prompts: np.ndarray
    samples: int
    new_tokens: int


class Ceiling(NamedTuple):
    """What the machine can do: operations and bytes read per second."""

    operations: float
    bandwidth: float


def main() -> None:
    arguments = _arguments()
    timing.settle(arguments.cores)

    directory = _model_directory(arguments.model)
    ours, theirs = _our_sampler(directory), _peer_sampler(directory)
    ceiling = Ceiling(operations=_matmul_speed(), bandwidth=_read_speed())
    print(
        f"{arguments.cores} core(s), float32, {directory.name}; "
        f"matmul {ceiling.operations / 1e9:.0f} GFLOP/s, read {ceiling.bandwidth / 1e9:.0f} GB/s"
    )
    print(
        f"{'work':>18} | {'ours':>7} {'peer':>7} {'ceiling':>8} tokens/s | "
        "ratio: median  best  processor | first tokens after"
    )
    for work in _works(arguments.sequences):
        first_call, _ = timing.timed(ours, work)
        theirs(work)
        mine, first, peer = [], [], []
        for _ in range(arguments.repeats):
            took, first_after = timing.timed(ours, work)
            mine.append(took)
            first.append(first_after)
            peer.append(timing.timed(theirs, work)[0])
        _print_row(work, mine, peer, first, _ceiling_seconds(directory, work, ceiling))
        compiling = first_call.processor - statistics.median(each.processor for each in mine)
        print(f"{'':>18} | first call: {compiling:.1f} s of processor time more, compiling")
    _print_group(ours, arguments.repeats)


def _print_group(ours: Callable[[Work], float], repeats: int) -> None:
    rng = np.random.default_rng(1)
    prompts = rng.integers(100, 10_000, (16, 256)).astype(np.int32)
    group = Work("group", prompts[:1], 16, 64)
    alone, apart = Work("alone", prompts[:1], 1, 64), Work("apart", prompts, 1, 64)
    runs: list[Callable[[], object]] = [
        lambda: ours(group),
        lambda: [ours(alone) for _ in range(group.samples)],
        lambda: ours(apart),
    ]
    for run in runs:
        run()
    grouped, *others = timing.in_turns(runs, repeats=repeats)
    for name, timings in zip(("one after another", "of other prompts"), others, strict=True):
        ratio = timing.ratio(timings, grouped)
        print(
            f"{group.samples} samples of a prompt of 256 against as many requests {name}: "
            f"median {ratio.median:.2f}, best {ratio.best:.2f}, processor {ratio.processor:.2f}"
        )


def _print_row(
    work: Work,
    mine: Sequence[Timing],
    peer: Sequence[Timing],
    first: Sequence[float],
    ceiling: float,
) -> None:
    tokens = len(work.prompts) * work.samples * work.new_tokens
    ratio = timing.ratio(peer, mine)
    print(
        f"{work.name:>18} | "
        f"{tokens / timing.median(mine):7.1f} {tokens / timing.median(peer):7.1f} "
        f"{tokens / ceiling:8.1f}          |"
        f"        {ratio.median:6.2f} {ratio.best:5.2f} {ratio.processor:10.2f} | "
        f"{statistics.median(first):.2f} s",
        flush=True,
    )


def _our_sampler(directory: Path) -> Callable[[Work], float]:
    """A function that samples and says after how many seconds the first tokens were there."""
    import jax

    from cookbook_fx import lm
    from shell.hub import load_weights

    model = jax.block_until_ready(lm.decode_weights(load_weights(directory), None))

    def sample(work: Work) -> float:
        began = time.perf_counter()
        params = lm.SamplingParams(max_tokens=work.new_tokens, seed=0)
        generation = lm.admit(
            model,
            lm.begin(model),
            [
                lm.RowRequest(id=str(i), prompt=prompt, params=params, num_samples=work.samples)
                for i, prompt in enumerate(work.prompts)
            ],
        )
        first = None
        while generation.row_ids:
            generation, _ = lm.advance(model, generation)
            first = first or time.perf_counter() - began
        return first or time.perf_counter() - began

    return sample


def _peer_sampler(directory: Path) -> Callable[[Work], None]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    def sample(work: Work) -> None:
        prompts = torch.as_tensor(work.prompts.astype(np.int64))
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            num_return_sequences=work.samples,
            do_sample=True,
            top_k=0,
            max_new_tokens=work.new_tokens,
            pad_token_id=0,
        )

    return sample


def _works(sequences: list[int]) -> list[Work]:
    rng = np.random.default_rng(0)
    works = [
        Work(f"{n} x (64 + 128)", rng.integers(100, 10_000, (n, 64)).astype(np.int32), 1, 128)
        for n in sequences
    ]
    shared = rng.integers(100, 10_000, (1, 256)).astype(np.int32)
    return [*works, Work("256 + 16 x 64", shared, 16, 64)]


def _ceiling_seconds(directory: Path, work: Work, ceiling: Ceiling) -> float:
    """Reading every distinct prompt once and decoding, without attention or anything else."""
    from shell.hub.weights import read_config

    config = read_config(directory)
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    in_layers = config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)
    parameters = config.num_layers * in_layers
    with_head = parameters + config.vocab_size * config.hidden_size
    rows = len(work.prompts) * work.samples
    step = max(2 * rows * with_head / ceiling.operations, 4 * with_head / ceiling.bandwidth)
    return 2 * parameters * work.prompts.size / ceiling.operations + work.new_tokens * step


def _matmul_speed() -> float:
    import jax
    import jax.numpy as jnp

    x, multiply = jnp.ones((2048, 2048)), jax.jit(jnp.matmul)
    return timing.matmul_speed(lambda: multiply(x, x).block_until_ready())


def _read_speed() -> float:
    """Of a matrix far larger than any cache, in a product with one vector."""
    import jax
    import jax.numpy as jnp

    x, matrix, multiply = jnp.ones(2048), jnp.ones((65_536, 2048)), jax.jit(jnp.matmul)
    (timings,) = timing.in_turns([lambda: multiply(matrix, x).block_until_ready()], repeats=8)
    return matrix.nbytes / timing.shortest(timings)


def _model_directory(model: str | None) -> Path:
    from shell.hub import DEFAULT_MODEL, resolve_model

    return resolve_model(model or DEFAULT_MODEL, say=print).directory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or directory; default: the built-in model")
    parser.add_argument("--sequences", nargs="*", type=int, default=[1, 8, 32])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
