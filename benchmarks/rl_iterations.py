"""Iterations of reinforcement learning here and with transformers + peft on torch, side by side.

    python -m benchmarks.rl_iterations [--groups 12] [--group-size 16] [--iterations 4] [--rounds 2]
        [--cores 2]

An iteration samples attempts at arithmetic problems, grades them, and trains the adapter (rank 32
on the seven projections of every layer) one optimizer step by importance sampling. Ours is the
command's own loop over the embedded engine, with its files; the peer is `generate` with several
returned sequences, a padded forward and backward pass in parts that fit memory, and AdamW. Both
sample from the same float32 model, with the same prompts and the same grader, in one process and in
turns of some iterations; the first two of each turn warm up. Needs the extra `peers`.
"""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.timing import Timing
from shell.rollouts import Env, RLDataset

_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_RANK, _LEARNING_RATE, _BETAS, _EPS = 32, 1e-5, (0.9, 0.95), 1e-8
_WARM_UP = 2
# Rows the peer trains at a time: it holds the logits of all their positions.
_PEER_ROWS = 48


class Clock(NamedTuple):
    """Both clocks at one moment."""

    wall: float
    processor: float

    @classmethod
    def now(cls) -> "Clock":
        """This moment."""
        return cls(time.perf_counter(), time.process_time())

    def until(self, later: "Clock") -> Timing:
        """What passed in between."""
        return Timing(later.wall - self.wall, later.processor - self.processor)


def main() -> None:
    """Prints a line for each side and their ratio."""
    arguments = _arguments()
    timing.settle(arguments.cores)
    directory = _model_directory(arguments.model)
    ours, theirs = _our_turn(directory, arguments), _peer_turn(directory, arguments)
    mine: list[Timing] = []
    peer: list[Timing] = []
    for turn in range(arguments.rounds):
        mine += ours(turn)
        peer += theirs(turn)
        _print_row("ours", mine)
        _print_row("peer", peer)
        ratio = timing.ratio(peer, mine)
        print(
            f"ratio: median {ratio.median:.2f}, best {ratio.best:.2f}, "
            f"processor {ratio.processor:.2f}",
            flush=True,
        )


def _print_row(name: str, timings: Sequence[Timing]) -> None:
    processor = statistics.median(each.processor for each in timings)
    print(
        f"{name}: {60 / timing.median(timings):.1f} iterations a minute, "
        f"{processor:.1f} s of processor time each",
        flush=True,
    )


Turn = Callable[[int], list[Timing]]


def _our_turn(directory: Path, arguments: argparse.Namespace) -> Turn:
    from shell.cli.options import engine
    from shell.clients import connect
    from shell.recipes.rl.recipes import run_description
    from shell.recipes.rl.workers import Workers
    from shell.stores import open_run_folder
    from shell.training.events import Event, StepDone
    from shell.training.rl import train_rl

    def turn(number: int) -> list[Timing]:
        choice = _choice(directory, arguments, seed=number)
        marks = [Clock.now()]

        def mark(event: Event) -> None:
            if isinstance(event, StepDone):
                marks.append(Clock.now())

        async def train(folder: Path) -> None:
            with Workers() as workers:
                config, data = await _prepared(choice, directory, workers)
                with (
                    engine(None, model=str(directory), say=_quietly) as address,
                    open_run_folder(
                        folder, config=run_description(choice, base_url=None)
                    ) as run_folder,
                ):
                    async with connect(
                        base_url=address.base_url, api_key=address.api_key
                    ) as service:
                        await train_rl(
                            config, service=service, data=data, folder=run_folder, observe=mark
                        )

        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(train(Path(folder)))
        # A step is told once the next one is under way, so marks lie an iteration apart.
        between = itertools.pairwise(marks)
        timings = [begin.until(end) for begin, end in between]
        return timings[_WARM_UP:]

    return turn


def _quietly(line: str) -> None:
    del line


async def _prepared(choice: object, directory: Path, workers: object) -> tuple:
    """What the loop is told, without an evaluation beside it."""
    from cookbook_fx.renderers import get_renderer
    from shell.hub import load_tokenizer
    from shell.hub.weights import context_length
    from shell.recipes.rl.recipes import rl_config, rl_data

    tokenizer = load_tokenizer(directory)
    renderer = get_renderer(choice.model.renderer, tokenizer)
    config = rl_config(choice, context_window=context_length(directory))
    data = await rl_data(choice, config, renderer=renderer, tokenizer=tokenizer, workers=workers)
    return config, replace(data, evaluators=())


def _choice(directory: Path, arguments: argparse.Namespace, *, seed: int) -> object:
    from shell.recipes.rl.config import Arithmetic, Groups
    from shell.recipes.rl.recipes import RLChoice
    from shell.training import ModelChoice, RLCadence, Schedule

    total = _WARM_UP + arguments.iterations
    return RLChoice(
        recipe=Arithmetic(
            groups=Groups(groups_per_batch=arguments.groups, group_size=arguments.group_size),
            num_batches=total,
        ),
        model=ModelChoice(
            model=str(directory), renderer="chatml", lora_rank=_RANK, train_unembed=False
        ),
        schedule=Schedule(learning_rate=_LEARNING_RATE, lr_schedule="constant"),
        cadence=RLCadence(eval_every=None, save_every=None),
        seed=seed,
    )


def _peer_turn(directory: Path, arguments: argparse.Namespace) -> Turn:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from shell.recipes.rl.workers import Workers

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=_RANK, lora_alpha=32, lora_dropout=0.0, target_modules=_PROJECTIONS)
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=_LEARNING_RATE, betas=_BETAS, eps=_EPS, weight_decay=0.0,
    )  # fmt: skip

    def iterate(envs: Sequence[Sequence[Env]], max_tokens: int) -> None:
        prompts, stops = zip(
            *asyncio.run(_gathered(group[0].initial_observation() for group in envs)), strict=True
        )
        tokens, mask = _padded_left([np.asarray(prompt) for prompt in prompts])
        with torch.no_grad():
            made = model.generate(
                torch.as_tensor(tokens), attention_mask=torch.as_tensor(mask),
                num_return_sequences=arguments.group_size, max_new_tokens=max_tokens,
                do_sample=True, top_k=0, temperature=1.0, eos_token_id=list(stops[0]),
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
            logits = torch.stack(made.logits, dim=1)
            answers = made.sequences[:, tokens.shape[1] :]
            sampled = torch.log_softmax(logits, -1).gather(-1, answers[..., None])[..., 0]
        lengths = [_length(row, set(stops[0])) for row in answers.tolist()]
        every = [env for group in envs for env in group]
        results = asyncio.run(
            _gathered(
                env.step(row[:length])
                for env, row, length in zip(every, answers.tolist(), lengths, strict=True)
            )
        )
        rewards = torch.tensor([result.reward for result in results]).view(len(envs), -1)
        advantages = (rewards - rewards.mean(dim=1, keepdim=True)).flatten()
        is_answer = torch.arange(answers.shape[1])[None] < torch.tensor(lengths)[:, None]
        read = torch.as_tensor(mask).repeat_interleave(arguments.group_size, 0)
        attention = torch.cat([read, is_answer.long()], dim=1)
        for begin in range(0, len(every), _PEER_ROWS):
            part = slice(begin, begin + _PEER_ROWS)
            positions = (attention[part].cumsum(-1) - 1).clamp(min=0)
            # The last positions alone have targets; the model is asked for their logits alone.
            logits = model(
                made.sequences[part], attention_mask=attention[part], position_ids=positions,
                use_cache=False, logits_to_keep=answers.shape[1] + 1,
            ).logits[:, :-1]  # fmt: skip
            logprobs = torch.log_softmax(logits, -1).gather(-1, answers[part][..., None])[..., 0]
            ratios = torch.exp(logprobs - sampled[part])
            loss = -(ratios * advantages[part, None])[is_answer[part]].sum()
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def turn(number: int) -> list[Timing]:
        choice = _choice(directory, arguments, seed=number)
        timings = []
        with Workers() as workers:
            config, data = asyncio.run(_prepared(choice, directory, workers))
            for index in range(_WARM_UP + arguments.iterations):
                began = Clock.now()
                envs = asyncio.run(_environments(data.train, index))
                iterate(envs, config.sampling.max_tokens)
                timings.append(began.until(Clock.now()))
        return timings[_WARM_UP:]

    return turn


async def _environments(dataset: RLDataset, index: int) -> list[Sequence[Env]]:
    return [await builder.make_envs() for builder in dataset.get_batch(index)]


async def _gathered(awaitables: object) -> list:
    return await asyncio.gather(*awaitables)


def _padded_left(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask `[prompt, position]`."""
    width = max(map(len, prompts))
    tokens = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return tokens, mask


def _length(answer: Sequence[int], stops: set[int]) -> int:
    """Tokens up to the first stop, which is one of them."""
    ends = [place for place, token in enumerate(answer) if token in stops]
    return ends[0] + 1 if ends else len(answer)


def _model_directory(model: str | None) -> Path:
    from shell.hub import DEFAULT_MODEL, resolve_model

    return resolve_model(model or DEFAULT_MODEL, say=print).directory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or directory; default: the built-in model")
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--group-size", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", type=int, default=2)
    return parser.parse_args()


if __name__ == "__main__":
    main()
