"""The one crossing between the library's records and the SDK's: arrays in, arrays out."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, overload

import numpy as np
import tinker
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from pydantic_core import SchemaSerializer, core_schema

from cookbook_fx.data import Datum
from cookbook_fx.lm import AdamParams


class ForwardResult(NamedTuple):
    """What a forward or forward-backward pass measured.

    Fields:
        loss_sum: the loss summed over all targets of all datums; None from an engine that does
            not say, as SkyRL's.
        logprobs: per datum, the log-probability (nats) of each target.
    """

    loss_sum: float | None
    logprobs: tuple[Float[np.ndarray, "..."], ...]


class OptimResult(NamedTuple):
    """What the engine said of an optimizer step: measurements by the names it gives them."""

    metrics: dict[str, float]


class Sample(NamedTuple):
    """One completion: its tokens, their log-probabilities (nats), why it ended."""

    tokens: Int[np.ndarray, " token"]
    logprobs: Float[np.ndarray, " token"]
    stop_reason: str


class NextTokens(NamedTuple):
    """The likeliest tokens after a prompt and their log-probabilities (nats), likeliest first."""

    ids: Int[np.ndarray, " token"]
    logprobs: Float[np.ndarray, " token"]


class TopTokens(NamedTuple):
    """For each place in a text the likeliest tokens there, likeliest first.

    Fields:
        ids: token ids; 0 where nothing was told, as of the first place.
        logprobs: nats; nan where nothing was told.
    """

    ids: Int[np.ndarray, "token candidate"]
    logprobs: Float[np.ndarray, "token candidate"]


class _Tokens(Sequence[int]):
    """Token ids in an array that reads, compares and serialises as the list the SDK expects.

    The SDK asks for a sequence of integers and turns it into an array again to send it. A list in
    between, and looking at each of its items, is most of what a step's data would cost.
    """

    __slots__ = ("_ids",)
    __pydantic_serializer__ = SchemaSerializer(
        core_schema.any_schema(serialization=core_schema.plain_serializer_function_ser_schema(list))
    )

    def __init__(self, ids: Int[np.ndarray, " token"]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> list[int]: ...
    def __getitem__(self, index: int | slice) -> int | list[int]:
        picked: int | list[int] = self._ids[index].tolist()
        return picked

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids.tolist())

    def __array__(
        self, dtype: np.dtype | None = None, *, copy: bool | None = None
    ) -> Int[np.ndarray, " token"]:
        return np.asarray(self._ids, dtype=dtype, copy=copy)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    def __repr__(self) -> str:
        return repr(list(self))


def to_sdk_data(data: Sequence[Datum], *, loss: str = "cross_entropy") -> list[tinker.Datum]:
    """A batch of datums, in order.

    Columns that are None are left out. For gspo the mask of the sequence's ratio is spelled out, as
    Tinker asks for it; elsewhere it is left out. Arrays of the dtypes the SDK sends are not copied.
    """
    with _collection_paused():
        return [_to_sdk_datum(datum, loss) for datum in data]


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keeps Python from looking for garbage meanwhile.

    A step's data are some ten thousand small objects, none of them in a cycle. So many at once make
    the collector walk everything the process holds, which takes longer than making them.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _to_sdk_datum(datum: Datum, loss: str) -> tinker.Datum:
    columns = {
        "weights": datum.weights,
        "logprobs": datum.logprobs,
        "advantages": datum.advantages,
        "sequence_ratio_mask": _sequence_ratio_mask(datum) if loss == "gspo" else None,
    }
    inputs = {
        name: tinker.TensorData(column, "float32", list(column.shape))
        for name, column in columns.items()
        if column is not None
    }
    targets = datum.target_tokens
    inputs["target_tokens"] = tinker.TensorData(targets, "int64", list(targets.shape))
    return tinker.Datum(model_input=_model_input(datum.tokens), loss_fn_inputs=inputs)


def _sequence_ratio_mask(datum: Datum) -> np.ndarray:
    if datum.sequence_ratio_mask is not None:
        return datum.sequence_ratio_mask
    if datum.weights is None:
        return np.ones(datum.length, np.float32)
    return datum.weights != 0


def _model_input(tokens: Int[np.ndarray, " token"]) -> tinker.ModelInput:
    # Of other integers some do not fit into what is sent, and only as a list are they refused.
    if tokens.dtype != np.int32:
        return to_sdk_prompt(tokens)
    # The one place where the SDK's validation is skipped: a Datum has checked that these are one
    # row of at least one token, and the dtype says the rest.
    text = tinker.EncodedTextChunk.model_construct(tokens=_Tokens(tokens))
    return tinker.ModelInput(chunks=[text])


def to_sdk_prompt(tokens: Int[np.ndarray, " token"]) -> tinker.ModelInput:
    """Token ids as one chunk of text."""
    return tinker.ModelInput.from_ints(tokens.tolist())


def to_sdk_adam(adam: AdamParams) -> tinker.AdamParams:
    """The optimizer's settings of one step."""
    return tinker.AdamParams(
        learning_rate=adam.learning_rate,
        beta1=adam.beta1,
        beta2=adam.beta2,
        eps=adam.eps,
        weight_decay=adam.weight_decay,
        grad_clip_norm=adam.grad_clip_norm,
    )


def from_sdk_forward(output: tinker.ForwardBackwardOutput) -> ForwardResult:
    """Log-probabilities as arrays, in the order of the datums."""
    return ForwardResult(
        loss_sum=output.metrics.get("loss:sum"),
        logprobs=tuple(fields["logprobs"].to_numpy() for fields in output.loss_fn_outputs),
    )


def from_sdk_optim(response: tinker.OptimStepResponse) -> OptimResult:
    """The engine's measurements of a step; none is fine."""
    return OptimResult(metrics=dict(response.metrics or {}))


def from_sdk_samples(response: tinker.SampleResponse) -> tuple[Sample, ...]:
    """The completions in the order of the answer."""
    return tuple(map(_sample, response.sequences))


def _sample(sequence: tinker.SampledSequence) -> Sample:
    # What comes as JSON, as from SkyRL, is kept in lists; of arrays the SDK makes lists when asked.
    tokens, logprobs = sequence.tokens_np, sequence.logprobs_np
    return Sample(
        tokens=_array(sequence.tokens if tokens is None else tokens, np.int32),
        logprobs=_array(sequence.logprobs if logprobs is None else logprobs, np.float32),
        stop_reason=str(sequence.stop_reason),
    )


def from_sdk_logprobs(logprobs: Sequence[float | None]) -> Float[np.ndarray, " token"]:
    """One number a token, in float32 as the engine sent them; nan where it gave none."""
    return np.array([np.nan if value is None else value for value in logprobs], np.float32)


def from_sdk_next_tokens(response: tinker.SampleResponse) -> NextTokens:
    """What the engine told of the last place of a prompt; nothing if it told nothing."""
    told = response.topk_prompt_logprobs
    likeliest = told[-1] if told else None
    ids, logprobs = zip(*likeliest, strict=True) if likeliest else ((), ())
    return NextTokens(np.array(ids, np.int32), np.array(logprobs, np.float32))


def from_sdk_top_tokens(response: tinker.SampleResponse) -> TopTokens:
    """The candidates of every place as arrays."""
    told = response.topk_prompt_logprobs or []
    width = max((len(place) for place in told if place), default=0)
    ids = np.zeros((len(told), width), np.int32)
    logprobs = np.full((len(told), width), np.nan, np.float32)
    for row, place in enumerate(told):
        if place:
            ids[row, : len(place)], logprobs[row, : len(place)] = zip(*place, strict=True)
    return TopTokens(ids, logprobs)


def _array(values: ArrayLike | None, dtype: type[np.generic]) -> np.ndarray:
    # The SDK decodes an empty array as None.
    return np.zeros(0, dtype) if values is None else np.asarray(values, dtype)
