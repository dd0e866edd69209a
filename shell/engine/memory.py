"""What there is room for: estimates from the model's shape, made to err on the large side.

What the base model and the copies to sample from leave of the budget is parted once: a third is
for the keys and values of texts being sampled, two thirds are for adapters and for the passes that
train them. Compute thread only.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax

from cookbook_fx.data import Datum
from cookbook_fx.data.packing import MICRO_BATCH_TOKENS
from cookbook_fx.errors import ConfigurationError, ModelError
from cookbook_fx.lm import LMConfig, LMWeights, LoRAConfig, init_lora

# Weights, two moments and gradients; and each once more while a step makes the next ones.
_COPIES_OF_AN_ADAPTER = 8
# Of the layers, with an adapter merged.
_COPIES_TO_SAMPLE_FROM = 2
_FLOAT = 4
# Tokens whose logits are in memory at a time, thrice in the backward pass.
_LOGITS = 3 * 512
_SHORTEST_CACHE = 256
# The rest is for what else runs here; a machine out of memory kills rather than refuses.
_OURS = 0.9
_GIGABYTE = 1e9


def available_bytes() -> int:
    """Memory of the device; on a CPU of this machine, or of what the container may use of it."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return int(_OURS * stats["bytes_limit"])
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        limits.append(int(text))
    return int(_OURS * min(limits))


class Memory:
    """The memory of an engine as far as it is spoken for.

    Args:
        weights: the base model.
        budget_bytes: what may be used in all.

    Raises:
        ModelError: the model alone does not fit.
    """

    def __init__(self, weights: LMWeights, budget_bytes: int) -> None:
        self._config = weights.config
        layers, whole = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(part)) for part in (weights.layers, weights)
        )
        needed = whole + _COPIES_TO_SAMPLE_FROM * layers
        if needed > budget_bytes:
            raise ModelError(
                f"this model needs {_said(needed)} of memory before the first request and there "
                f"are {_said(budget_bytes)}; take a smaller one, or dtype bfloat16"
            )
        self._to_sample = (budget_bytes - needed) // 3
        self._to_train = budget_bytes - needed - self._to_sample
        self._adapters: dict[str, int] = {}

    # --- training ---------------------------------------------------------------------------

    def take_model(self, model_id: str, lora: LoRAConfig) -> None:
        """Sets memory aside for a model in training.

        Raises:
            ConfigurationError: there is not enough; the largest rank that fits is told.
        """
        free = self._to_train - sum(self._adapters.values())
        one = jax.eval_shape(lambda: init_lora(self._config, replace(lora, rank=1)))
        per_rank = _COPIES_OF_AN_ADAPTER * _FLOAT * sum(x.size for x in jax.tree.leaves(one))
        if lora.rank * per_rank > free:
            raise ConfigurationError(
                f"an adapter of rank {lora.rank} takes {_said(lora.rank * per_rank)} with its "
                f"optimizer, and {_said(free)} are free; the largest rank that fits is "
                f"{max(0, free // per_rank)}"
            )
        self._adapters[model_id] = lora.rank * per_rank

    def give_back(self, model_id: str) -> None:
        """Frees what was set aside, if it was."""
        self._adapters.pop(model_id, None)

    def require_pass(self, datums: Sequence[Datum]) -> None:
        """Makes sure that datums can be passed through the model.

        Raises:
            ConfigurationError: they cannot; how many tokens can is told.
        """
        free = self._to_train - sum(self._adapters.values())
        longest = max(datum.length for datum in datums)
        total = sum(datum.length for datum in datums)
        if _pass_bytes(self._config, longest=longest, total=total) > free:
            fits = _most(
                free, lambda tokens: _pass_bytes(self._config, longest=tokens, total=tokens)
            )
            needed = _pass_bytes(self._config, longest=longest, total=total)
            raise ConfigurationError(
                f"a pass over {total} tokens, the longest datum of {longest}, takes "
                f"{_said(needed)} and {_said(free)} are free; {fits} tokens at once fit"
            )

    # --- sampling ---------------------------------------------------------------------------

    def require_text(self, tokens: int) -> None:
        """Makes sure that one text can become so long, prompt and answer together.

        Raises:
            ConfigurationError: it cannot; how long it can be is told.
        """
        if self.cache_bytes(rows=1, tokens=tokens) > self._to_sample:
            fits = _most(self._to_sample, lambda length: self.cache_bytes(rows=1, tokens=length))
            raise ConfigurationError(
                f"a text of {tokens} tokens, prompt and max_tokens together, takes "
                f"{_said(self.cache_bytes(rows=1, tokens=tokens))} and there are "
                f"{_said(self._to_sample)}; {fits} tokens fit"
            )

    def rows(self, tokens: int, *, besides_bytes: int) -> int:
        """How many texts of up to so many tokens fit together, beside other texts.

        A power of two, as many rows as a cache has; 0 where not even one fits now.
        """
        free = self._to_sample - besides_bytes
        return _most(free, lambda rows: self.cache_bytes(rows=rows, tokens=tokens))

    def cache_bytes(self, *, rows: int, tokens: int) -> int:
        """Keys and values of so many texts, while a cache is copied into the next one."""
        config = self._config
        position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * _FLOAT
        return 2 * rows * _power_of_two(max(tokens, _SHORTEST_CACHE)) * position


def _pass_bytes(config: LMConfig, *, longest: int, total: int) -> int:
    """Of one micro-batch, forward and backward."""
    width = _power_of_two(longest)
    tokens = max(width, min(MICRO_BATCH_TOKENS, _power_of_two(total)))
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    hidden, mlp = config.hidden_size, config.intermediate_size
    kept = config.num_layers * (2 * query + 2 * key + 2 * hidden + 2 * mlp)
    working = 4 * hidden + 6 * mlp
    # Attention weights of one block of queries: its value, gradient and mask.
    scores = 3 * config.num_heads * max(128, width // 8)
    return _FLOAT * (tokens * (kept + working + scores) + _LOGITS * config.vocab_size)


def _most(free: int, needed: Callable[[int], int]) -> int:
    """The largest power of two that needs no more than is free; 0 if not even 1 does."""
    fits = 0
    while needed(max(1, 2 * fits)) <= free:
        fits = max(1, 2 * fits)
    return fits


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()


def _said(count: int) -> str:
    return f"{count / _GIGABYTE:.3g} GB"
