"""A LoRA training step here and in transformers + peft on torch, side by side.

    python -m benchmarks.training [--shapes 8x128 4x512 conversations instructions]
        [--cores 2] [--repeats 5]

Both sides train the same adapter (rank 32 on the seven projections of every layer, AdamW) of the
same float32 model on the same tokens in one process with the same settings, taking turns. The
conversations (the library's own, and instruction rows from a published package) are batched as
each side's user would: padded to the longest there, packed here.
Tokens per second count real tokens only. Needs the extra `peers`.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import timing
from benchmarks.timing import Timing

_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The peer holds the logits of a whole padded batch; longer rows would not fit beside the rest.
_MAX_LENGTH = 256
_LEARNING_RATE, _BETAS, _EPS, _RANK = 1e-4, (0.9, 0.95), 1e-12, 32


class Example(NamedTuple):
    """Tokens, shifted targets and loss weights of one sequence."""

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def main() -> None:
    arguments = _arguments()
    timing.settle(arguments.cores)

    directory = _model_directory(arguments.model)
    ours, theirs = _our_step(directory), _peer_step(directory)
    print(f"{arguments.cores} core(s), float32, {directory.name}")
    for name, multiply in _matmuls():
        speed = timing.matmul_speed(multiply) / 1e9
        print(f"  matmul ceiling {name:6} {speed:6.0f} GFLOP/s (2048 x 2048 x 2048)")
    print(
        f"{'batch':>14} {'tokens':>7} | {'ours':>7} {'peer':>7} tokens/s |"
        f" ratio: median  best  processor"
    )
    for shape in arguments.shapes:
        batches = _batches(shape, directory)
        for batch in batches:
            ours(batch), theirs(batch)
        mine: list[Timing] = []
        peer: list[Timing] = []
        for repeat in range(arguments.repeats):
            batch = batches[repeat % len(batches)]
            mine.append(timing.timed(ours, batch)[0])
            peer.append(timing.timed(theirs, batch)[0])
        tokens = [
            sum(len(e.tokens) for e in batches[r % len(batches)]) for r in range(arguments.repeats)
        ]
        _print_row(shape, tokens, mine, peer)


def _print_row(
    shape: str, tokens: Sequence[int], mine: Sequence[Timing], peer: Sequence[Timing]
) -> None:
    def speeds(timings: Sequence[Timing]) -> list[float]:
        return [n / each.wall for n, each in zip(tokens, timings, strict=True)]

    ratio = timing.ratio(peer, mine)
    print(
        f"{shape:>14} {statistics.mean(tokens):7.0f} | "
        f"{statistics.median(speeds(mine)):7.1f} {statistics.median(speeds(peer)):7.1f}          |"
        f"        {ratio.median:6.2f} {max(speeds(mine)) / max(speeds(peer)):5.2f} "
        f"{ratio.processor:10.2f}",
        flush=True,
    )


def _our_step(directory: Path) -> Callable[[Sequence[Example]], float]:
    import jax

    from cookbook_fx import lm
    from cookbook_fx.data import Datum
    from shell.hub import load_weights

    weights = load_weights(directory)
    adapter = lm.init_lora(weights.config, lm.LoRAConfig(rank=_RANK, train_unembed=False))
    state = lm.init_train_state(adapter)
    adam = lm.AdamParams(learning_rate=_LEARNING_RATE, beta1=_BETAS[0], beta2=_BETAS[1], eps=_EPS)

    def step(batch: Sequence[Example]) -> float:
        nonlocal state
        datums = [Datum(tokens=e.tokens, target_tokens=e.targets, weights=e.weights) for e in batch]
        gradients, output = lm.forward_backward(
            weights, state.adapter, None, datums, loss=lm.LossSpec(name="cross_entropy")
        )
        state, _ = lm.optim_step(state, gradients, adam)
        jax.block_until_ready(state)
        return output.loss_sum

    return step


def _peer_step(directory: Path) -> Callable[[Sequence[Example]], float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = get_peft_model(
        model, LoraConfig(r=_RANK, lora_alpha=32, lora_dropout=0.0, target_modules=_PROJECTIONS)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=_LEARNING_RATE, betas=_BETAS, eps=_EPS, weight_decay=0.0
    )

    def step(batch: Sequence[Example]) -> float:
        width = max(len(e.tokens) for e in batch)
        tokens = torch.zeros((len(batch), width), dtype=torch.long)
        targets = torch.full((len(batch), width), -100)
        for row, example in enumerate(batch):
            trained = np.where(example.weights != 0, example.targets, -100)
            tokens[row, : len(example.tokens)] = torch.as_tensor(example.tokens)
            targets[row, : len(example.tokens)] = torch.as_tensor(trained)
        mask = torch.zeros_like(tokens)
        for row, example in enumerate(batch):
            mask[row, : len(example.tokens)] = 1
        # A batch without padding needs no mask, and is faster without.
        logits = model(tokens, attention_mask=None if mask.all() else mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _matmuls() -> list[tuple[str, Callable[[], object]]]:
    import jax
    import jax.numpy as jnp
    import torch

    x, y = jnp.ones((2048, 2048)), torch.ones(2048, 2048)
    multiply = jax.jit(jnp.matmul)
    return [("jax", lambda: multiply(x, x).block_until_ready()), ("torch", lambda: y @ y)]


def _batches(shape: str, directory: Path) -> list[list[Example]]:
    if shape in _CONVERSATIONS:
        return _conversation_batches(directory, _CONVERSATIONS[shape]())
    rows, width = (int(part) for part in shape.split("x"))
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 10_000, (rows, width + 1)).astype(np.int32)
    return [[Example(row[:-1], row[1:], np.ones(width, np.float32)) for row in ids]]


def _starter() -> list[list[dict[str, str]]]:
    """The conversations that come with the library."""
    import json

    path = Path(__file__).parent.parent / "shell" / "recipes" / "starter" / "train.jsonl"
    return [json.loads(line)["messages"] for line in path.read_text().splitlines()]


def _instructions() -> list[list[dict[str, str]]]:
    """Instruction rows that nobody of this project wrote."""
    from cookbook_fx.chat import message_to_dict
    from tests.support_data import llamafactory_conversations

    return [[message_to_dict(m) for m in chat] for chat in llamafactory_conversations()]


_CONVERSATIONS = {"conversations": _starter, "instructions": _instructions}


def _conversation_batches(
    directory: Path, rows: list[list[dict[str, str]]], *, size: int = 16, count: int = 4
) -> list[list[Example]]:
    """Consecutive conversations in the model's own chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    examples = [_conversation(tokenizer, messages) for messages in rows[: size * count]]
    return [examples[i : i + size] for i in range(0, len(examples), size)]


def _conversation(tokenizer: object, messages: list[dict[str, str]]) -> Example:
    """Learns the assistant's messages."""
    ids: list[int] = []
    learnt: list[bool] = []
    for end in range(1, len(messages) + 1):
        text = tokenizer.apply_chat_template(messages[:end], tokenize=False)
        new = tokenizer.encode(text, add_special_tokens=False)[len(ids) :]
        ids += new
        learnt += [messages[end - 1]["role"] == "assistant"] * len(new)
    tokens = np.array(ids[:_MAX_LENGTH], np.int32)
    return Example(tokens[:-1], tokens[1:], np.array(learnt[1:_MAX_LENGTH], np.float32))


def _model_directory(model: str | None) -> Path:
    from shell.hub import DEFAULT_MODEL, resolve_model

    return resolve_model(model or DEFAULT_MODEL, say=print).directory


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="name or directory; default: the built-in model")
    parser.add_argument("--shapes", nargs="+", default=["8x128", "4x512", *_CONVERSATIONS])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
