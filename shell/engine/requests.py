"""What a client can ask of the engine, in our own words: no bytes, no protobuf, no JSON."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams, LoRAConfig, LossSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSession:
    """Opens what groups one client's models and samplers."""

    user_metadata: Mapping[str, str] | None
    display_name: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateModel:
    """A new adapter on a base model."""

    session_id: str
    model_seq_id: int
    base_model: str
    lora: LoRAConfig
    user_metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateModelFromState:
    """A new adapter that continues from a checkpoint, with or without its optimizer state."""

    session_id: str
    model_seq_id: int
    path: str
    with_optimizer: bool
    base_model: str | None
    user_metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardBackward:
    """Score datums under a loss and, unless `forward_only`, add its gradient to what is held."""

    datums: tuple[Datum, ...]
    loss: LossSpec
    forward_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimStep:
    """Spend the held gradients on one optimizer step."""

    adam: AdamParams


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveState:
    """Write adapter and optimizer under a name; gradients not yet spent are not part of it."""

    name: str
    overwrite: bool
    ttl_seconds: int | None
    user_metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveForSampler:
    """Make the present weights samplable: under a name on disk, or for one sampling session.

    Args:
        name: of the checkpoint; None for an ephemeral snapshot.
        sampling_session_seq_id: numbers the session an ephemeral snapshot is for.
        follow: the session moves on to every later such snapshot of the model.
    """

    name: str | None
    sampling_session_seq_id: int | None
    follow: bool
    ttl_seconds: int | None
    user_metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveExternal:
    """Keep the present weights under a name, to be downloaded as files."""

    name: str
    ttl_seconds: int | None
    user_metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """Replace a model's weights by a checkpoint's, of the same shape."""

    path: str
    with_optimizer: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """An operation that takes its place in the order and fails there, for this reason."""

    reason: str


Operation = (
    ForwardBackward | OptimStep | SaveState | SaveForSampler | SaveExternal | LoadState | Unusable
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """An operation, its place among its model's, and how much memory it takes while it waits."""

    model_id: str
    seq_id: int
    operation: Operation
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateSamplingSession:
    """Weights to sample from, fixed from now on: a checkpoint's, or the base model's."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None
    model_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePrompt:
    """What to generate and report for one prompt.

    Args:
        prompt: token ids.
        num_samples: independent continuations.
        max_tokens: longest continuation; None for as many as the context holds.
        stop_strings: end a continuation whose text contains one.
        stop_tokens: end a continuation at one of these; None for the model's own end token.
        top_k: -1 for off.
        top_p: 1 for off.
        seed: of all the continuations together; None for a fresh one.
        prompt_logprobs: also report the log-probability of each prompt token.
        prompt_logprobs_last_n: only for the last n; None for all.
        topk_prompt_logprobs: also the k likeliest tokens at each prompt position; 0 for off.
    """

    prompt: np.ndarray
    num_samples: int
    max_tokens: int | None
    stop_strings: tuple[str, ...]
    stop_tokens: tuple[int, ...] | None
    temperature: float
    top_k: int
    top_p: float
    seed: int | None
    prompt_logprobs: bool
    prompt_logprobs_last_n: int | None
    topk_prompt_logprobs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A request to a sampling session; the numbers only tell requests apart."""

    sampling_session_id: str
    seq_id: int
    num_samples: int
    request: SamplePrompt | Unusable


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveFutures:
    """Which samples of one copy of a client's sampler have come.

    Args:
        sampling_session_id: the sampler.
        copy: number of the copy.
        cursor: of the last completion it has seen.
        seconds: how long to wait for the next; None for as long as the engine likes.
        received: ids whose results it has.
    """

    sampling_session_id: str
    copy: int
    cursor: int
    seconds: float | None
    received: tuple[str, ...]
