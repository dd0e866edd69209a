"""The Tinker protocol's bytes, to and from our own records: the only file that knows its formats.

`HTTP body -> record` raises `Malformed` where the request cannot be understood or attributed (the
client gets an HTTP error). Once an operation's model and number are known, everything wrong with
its content becomes an `Unusable` operation instead, which fails in its place: a refused request
would leave a hole in the model's order that the client never fills.
"""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tinker.proto import tinker_public_pb2 as pb

from cookbook_fx.data import Datum
from cookbook_fx.errors import ConfigurationError, CookbookError, DataError
from cookbook_fx.lm import (
    AdamParams,
    LoRAConfig,
    LossOutput,
    LossSpec,
    OptimReport,
    PromptScores,
    Sampled,
)
from shell.engine.futures import Completion, Done, Failed
from shell.engine.requests import (
    CreateModel,
    CreateModelFromState,
    CreateSamplingSession,
    CreateSession,
    ForwardBackward,
    LoadState,
    Operation,
    OptimStep,
    RetrieveFutures,
    Sample,
    SamplePrompt,
    SaveExternal,
    SaveForSampler,
    SaveState,
    Submission,
    Unusable,
)

JSON = "application/json"
PROTOBUF = "application/x-protobuf"


class Malformed(DataError):
    """A request that cannot be understood, or not be attributed to a model and number."""


# Seeds are mixed down and never counted with, so programs may draw them as wide as they like.
_SEED_BITS = 256


class Fields:
    """One JSON object, read field by field; every complaint names the field."""

    def __init__(self, values: Any, *, where: str) -> None:
        if not isinstance(values, dict):
            raise Malformed(f"{where} must be a JSON object, got {type(values).__name__}")
        self._values: dict[str, Any] = values
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        return self._read(name, str, "a string", default)

    def integer(self, name: str, default: int | None = None, *, bits: int = 64) -> int:
        value = self._read(name, int, "an integer", default)
        if isinstance(value, bool):
            raise Malformed(f"{self._where}: {name} must be an integer, got {value}")
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise Malformed(f"{self._where}: {name} must be an integer of at most {bits} bits")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._read(name, (int, float), "a number", default)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if isinstance(value, bool) or not math.isfinite(number):
            raise Malformed(f"{self._where}: {name} must be a finite number, got {number}")
        return number

    def flag(self, name: str, *, default: bool) -> bool:
        return self._read(name, bool, "true or false", default)

    def items(self, name: str) -> list[Any]:
        return self._read(name, list, "a list", None)

    def part(self, name: str) -> "Fields":
        return Fields(self._values.get(name), where=f"{self._where}: {name}")

    def maybe_text(self, name: str) -> str | None:
        return self.text(name) if name in self else None

    def maybe_integer(self, name: str, *, bits: int = 64) -> int | None:
        return self.integer(name, bits=bits) if name in self else None

    def strings(self, name: str) -> Mapping[str, str] | None:
        """Metadata the client attached; kept as text."""
        if name not in self:
            return None
        values = self._read(name, dict, "an object", None)
        return {
            str(key): value if isinstance(value, str) else json.dumps(value)
            for key, value in values.items()
        }

    def raw(self, name: str) -> Any:
        return self._values.get(name)

    def _read(self, name: str, kind: Any, wanted: str, default: Any) -> Any:
        value = self._values.get(name)
        if value is None:
            if default is None:
                raise Malformed(f"{self._where} lacks {name}, which must be {wanted}")
            return default
        if not isinstance(value, kind):
            raise Malformed(f"{self._where}: {name} must be {wanted}, got {type(value).__name__}")
        return value


def fields(body: bytes, *, where: str) -> Fields:
    """A JSON body; an empty one counts as `{}` (clients send a JSON content type without body)."""
    try:
        values = json.loads(body) if body else {}
    # Besides text that is not JSON: a number of thousands of digits, and nesting without end.
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{where}: the body is not JSON that can be read: {error}") from None
    return Fields(values, where=where)


# --- requests -----------------------------------------------------------------------------------


def create_session(body: bytes) -> CreateSession:
    """`POST create_session`."""
    given = fields(body, where="create_session")
    return CreateSession(
        user_metadata=given.strings("user_metadata"), display_name=given.maybe_text("display_name")
    )


def create_model(body: bytes) -> CreateModel:
    """`POST create_model`."""
    given = fields(body, where="create_model")
    _require_adam(given)
    lora = given.part("lora_config")
    return CreateModel(
        session_id=given.text("session_id"),
        model_seq_id=given.integer("model_seq_id"),
        base_model=given.text("base_model"),
        lora=LoRAConfig(
            rank=lora.integer("rank", 32),
            seed=lora.integer("seed", 0, bits=_SEED_BITS),
            train_mlp=lora.flag("train_mlp", default=True),
            train_attn=lora.flag("train_attn", default=True),
            train_unembed=lora.flag("train_unembed", default=True),
        ),
        user_metadata=given.strings("user_metadata"),
    )


def _require_adam(given: Fields) -> None:
    if "optimizer_config" in given:
        kind = given.part("optimizer_config").text("type")
        if kind != "adamw":
            raise Malformed(f"optimizer {kind!r} is not supported; supported: adamw")


def load_weights(body: bytes) -> CreateModelFromState | Submission:
    """`POST load_weights`: creates a model from a checkpoint, or loads into an existing one."""
    given = fields(body, where="load_weights")
    if "model_id" in given:
        return _submission(
            given,
            lambda: LoadState(
                path=given.text("path"), with_optimizer=given.flag("optimizer", default=False)
            ),
        )
    _require_adam(given)
    return CreateModelFromState(
        session_id=given.text("session_id"),
        model_seq_id=given.integer("model_seq_id"),
        path=given.text("path"),
        with_optimizer=given.flag("optimizer", default=False),
        base_model=given.maybe_text("base_model"),
        user_metadata=given.strings("user_metadata"),
    )


def optim_step(body: bytes) -> Submission:
    """`POST optim_step`."""
    given = fields(body, where="optim_step")

    def operation() -> Operation:
        if "adam_params" not in given:
            raise ConfigurationError("this engine trains with AdamW: send adam_params")
        adam = given.part("adam_params")
        return OptimStep(
            adam=AdamParams(
                learning_rate=adam.number("learning_rate", 1e-4),
                beta1=adam.number("beta1", 0.9),
                beta2=adam.number("beta2", 0.95),
                eps=adam.number("eps", 1e-12),
                weight_decay=adam.number("weight_decay", 0.0),
                grad_clip_norm=adam.number("grad_clip_norm", 0.0),
            )
        )

    return _submission(given, operation)


def save_weights(body: bytes) -> Submission:
    """`POST save_weights`."""
    given = fields(body, where="save_weights")
    return _submission(
        given,
        lambda: SaveState(
            name=given.text("path"),
            overwrite=given.flag("overwrite", default=False),
            ttl_seconds=given.maybe_integer("ttl_seconds"),
            user_metadata=given.strings("user_metadata"),
        ),
    )


def save_weights_for_sampler(body: bytes) -> Submission:
    """`POST save_weights_for_sampler`."""
    given = fields(body, where="save_weights_for_sampler")

    def operation() -> Operation:
        kind = given.text("kind", "snapshot")
        if kind not in ("snapshot", "inflight"):
            raise ConfigurationError(f"kind must be snapshot or inflight, got {kind!r}")
        return SaveForSampler(
            name=given.maybe_text("path"),
            sampling_session_seq_id=given.maybe_integer("sampling_session_seq_id"),
            follow=kind == "inflight",
            ttl_seconds=given.maybe_integer("ttl_seconds"),
            user_metadata=given.strings("user_metadata"),
        )

    return _submission(given, operation)


def save_weights_external(body: bytes) -> Submission:
    """`POST save_weights_external`."""
    given = fields(body, where="save_weights_external")

    def operation() -> Operation:
        if given.raw("age_encryption_recipients"):
            raise ConfigurationError(
                "this engine does not encrypt what it exports; leave out age_encryption_recipients"
            )
        return SaveExternal(name=given.text("path"), ttl_seconds=given.maybe_integer("ttl_seconds"))

    return _submission(given, operation)


def _submission(given: Fields, operation: Callable[[], Operation]) -> Submission:
    return Submission(
        model_id=given.text("model_id"),
        seq_id=_place(given.integer("seq_id")),
        operation=_usable(operation),
    )


def _place(seq_id: int) -> int:
    if seq_id < 1:
        raise Malformed(f"seq_id counts a model's operations from 1, got {seq_id}")
    return seq_id


def _usable(operation: Callable[[], Operation]) -> Operation:
    try:
        return operation()
    except CookbookError as error:
        return Unusable(reason=str(error))


def forward_backward(body: bytes, *, content_encoding: str) -> Submission:
    """`POST forward_backward`: the one request in protobuf."""
    if content_encoding not in ("", "identity"):
        raise Malformed(
            f"forward_backward bodies must not be compressed, got Content-Encoding "
            f"{content_encoding!r}; this engine's client/config leaves compression off"
        )
    message = pb.ForwardBackwardRequest()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise Malformed(
            f"forward_backward: the body is not the protobuf message: {error}"
        ) from None
    if not message.model_id:
        raise Malformed("forward_backward lacks model_id")
    return Submission(
        model_id=message.model_id,
        seq_id=_place(message.seq_id),
        operation=_usable(lambda: _forward_backward(message)),
        size_bytes=len(body),
    )


def _forward_backward(message: pb.ForwardBackwardRequest) -> ForwardBackward:
    if not message.data:
        raise DataError("forward_backward needs at least one datum, got none")
    return ForwardBackward(
        datums=tuple(_datum(datum, index) for index, datum in enumerate(message.data)),
        loss=LossSpec(name=message.loss_fn, config=_loss_config(message)),
        forward_only=message.forward_only,
    )


def _loss_config(message: pb.ForwardBackwardRequest) -> Mapping[str, float]:
    config = dict(message.loss_fn_config)
    # SDKs before 0.38 do not have it.
    for name, value in getattr(message, "loss_fn_config_v2", {}).items():
        if value.WhichOneof("value") == "text":
            raise ConfigurationError(
                f"loss {message.loss_fn!r} takes numbers in its config, got text for {name!r}"
            )
        config[name] = value.number
    return config


_COLUMNS: Mapping[str, type[np.generic]] = {
    "target_tokens": np.int32,
    "weights": np.float32,
    "logprobs": np.float32,
    "advantages": np.float32,
    # Numbers on the wire, of which only "is it 0?" is asked.
    "sequence_ratio_mask": np.bool_,
}


# Of a matrix that arrives sparse: its shape can claim any size in a few bytes.
_MOST_ELEMENTS = 2**28


def _datum(message: pb.Datum, index: int) -> Datum:
    unknown = sorted(set(message.loss_fn_inputs) - set(_COLUMNS))
    if unknown:
        raise DataError(
            f"datum {index}: loss_fn_inputs {', '.join(unknown)} are not supported; "
            f"supported: {', '.join(_COLUMNS)}"
        )
    if "target_tokens" not in message.loss_fn_inputs:
        raise DataError(f"datum {index}: loss_fn_inputs lack target_tokens")
    try:
        return Datum(
            tokens=_model_input(message.model_input),
            **{
                name: _column(name, _tensor(tensor))
                for name, tensor in message.loss_fn_inputs.items()
            },
        )
    except DataError as error:
        raise DataError(f"datum {index}: {error}") from None


def _column(name: str, values: np.ndarray) -> np.ndarray:
    wanted = _COLUMNS[name]
    if wanted is np.int32:
        # A cast would make other tokens of these without a word.
        if values.dtype == np.float32:
            raise DataError(f"{name} must be integers, got float32")
        if values.size and not -(2**31) <= values.min() <= values.max() < 2**31:
            raise DataError(
                f"{name} holds {values.min()} to {values.max()}, which are no token ids"
            )
    return values.astype(wanted, copy=False)


def _model_input(chunks: Sequence[pb.Chunk]) -> np.ndarray:
    for chunk in chunks:
        if chunk.WhichOneof("chunk") != "encoded_text":
            raise DataError(
                f"only encoded_text chunks are supported, got {chunk.WhichOneof('chunk')}"
            )
    parts = [_numbers(chunk.encoded_text.tokens, np.int32) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int32), *parts])


def _numbers(data: bytes, dtype: type[np.generic]) -> np.ndarray:
    if len(data) % np.dtype(dtype).itemsize:
        raise DataError(f"a tensor of {len(data)} bytes is not made of whole {np.dtype(dtype)}s")
    return np.frombuffer(data, dtype)


def _tensor(message: pb.Tensor) -> np.ndarray:
    kinds = {pb.DTYPE_FLOAT32: np.float32, pb.DTYPE_INT64: np.int64, pb.DTYPE_INT32: np.int32}
    dtype = kinds.get(message.dtype)
    if dtype is None:
        raise DataError(f"a tensor has dtype {message.dtype}; supported: float32, int64, int32")
    shape = tuple(message.shape)
    if message.HasField("sparse_csr"):
        return _dense(message.sparse_csr, dtype, shape)
    data = _numbers(message.dense, dtype)
    if len(shape) > 2:
        raise DataError(f"a tensor has one or two dimensions, got {len(shape)}")
    if shape and (min(shape) < 0 or math.prod(shape) != data.size):
        raise DataError(f"a tensor of {data.size} elements cannot have shape {shape}")
    return data.reshape(shape) if shape else data


def _dense(csr: pb.SparseCsr, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    values = _numbers(csr.values, dtype)
    starts, columns = _numbers(csr.crow_indices, np.int64), _numbers(csr.col_indices, np.int64)
    lengths = np.diff(starts)
    # A zero among the sizes must not hide another that no array can have.
    if math.prod(max(1, size) for size in shape) > _MOST_ELEMENTS:
        raise DataError(
            f"a sparse tensor of shape {shape} has more than {_MOST_ELEMENTS} elements; leave out "
            "columns that are not used"
        )
    fits = (
        len(shape) == 2
        and min(shape) >= 0
        and len(starts) == shape[0] + 1
        and len(columns) == len(values) == starts[-1]
        and starts[0] == 0
        and bool((lengths >= 0).all())
        and bool(((columns >= 0) & (columns < shape[1])).all())
    )
    if not fits:
        raise DataError(f"a sparse tensor's indices do not describe a matrix of shape {shape}")
    dense = np.zeros(shape, dtype)
    dense[np.repeat(np.arange(shape[0]), lengths), columns] = values
    return dense


def create_sampling_session(body: bytes) -> CreateSamplingSession:
    """`POST create_sampling_session`."""
    given = fields(body, where="create_sampling_session")
    return CreateSamplingSession(
        session_id=given.text("session_id"),
        sampling_session_seq_id=given.integer("sampling_session_seq_id"),
        base_model=given.maybe_text("base_model"),
        model_path=given.maybe_text("model_path"),
    )


def sample_request(body: bytes) -> Sample:
    """`POST asample`."""
    given = fields(body, where="asample")
    num_samples = given.integer("num_samples", 1)
    if num_samples < 1:
        raise Malformed(f"asample: num_samples must be at least 1, got {num_samples}")
    try:
        request: SamplePrompt | Unusable = _sample_prompt(given, num_samples)
    except CookbookError as error:
        request = Unusable(reason=str(error))
    return Sample(
        sampling_session_id=given.text("sampling_session_id"),
        seq_id=given.integer("seq_id"),
        num_samples=num_samples,
        request=request,
    )


def retrieve_futures(body: bytes) -> RetrieveFutures:
    """`POST retrieve_futures`."""
    given = fields(body, where="retrieve_futures")
    target = given.part("target")
    received = given.items("retrieved_request_ids") if "retrieved_request_ids" in given else []
    return RetrieveFutures(
        sampling_session_id=target.text("sampling_session_id"),
        copy=target.integer("cloned_sampler_id", 0),
        cursor=given.integer("prev_cursor", 0),
        seconds=given.number("timeout") if "timeout" in given else None,
        received=tuple(each for each in received if isinstance(each, str)),
    )


def _sample_prompt(given: Fields, num_samples: int) -> SamplePrompt:
    for name in ("topk_sample_logprobs", "prompt_alt_tokens_k", "target_prompt_logprobs"):
        if given.raw(name):
            raise ConfigurationError(f"{name} is not supported by this engine; leave it out")
    if given.flag("record_stability_info", default=False):
        raise ConfigurationError("record_stability_info is not supported by this engine")
    params = given.part("sampling_params")
    strings, tokens = _stop(params.raw("stop"))
    return SamplePrompt(
        prompt=_prompt(given.part("prompt").items("chunks")),
        num_samples=num_samples,
        max_tokens=params.maybe_integer("max_tokens"),
        stop_strings=strings,
        stop_tokens=tokens,
        temperature=params.number("temperature", 1.0),
        top_k=params.integer("top_k", -1),
        top_p=params.number("top_p", 1.0),
        seed=params.maybe_integer("seed", bits=_SEED_BITS),
        prompt_logprobs=given.flag("prompt_logprobs", default=False),
        prompt_logprobs_last_n=given.maybe_integer("prompt_logprobs_last_n"),
        topk_prompt_logprobs=given.integer("topk_prompt_logprobs", 0),
    )


def _stop(given: Any) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Stop strings and stop tokens.

    No `stop` and stop strings leave the model's own end token in force; a list of token ids
    replaces it, and an empty list stops nowhere.
    """
    if given is None:
        return (), None
    if isinstance(given, str):
        return _stop_strings([given]), None
    if isinstance(given, list) and all(isinstance(item, str) for item in given) and given:
        return _stop_strings(given), None
    if isinstance(given, list) and all(type(item) is int for item in given):
        return (), tuple(given)
    raise DataError("stop must be a string, a list of strings or a list of token ids")


def _stop_strings(strings: list[str]) -> tuple[str, ...]:
    for string in strings:
        if not string:
            raise DataError("a stop string must not be empty: every text contains it")
        # JSON can write half of a surrogate pair; no text contains one.
        try:
            string.encode()
        except UnicodeEncodeError:
            raise DataError(f"stop string {string!r} is not Unicode text") from None
    return tuple(strings)


def _prompt(chunks: list[Any]) -> np.ndarray:
    parts = []
    for chunk in chunks:
        given = Fields(chunk, where="prompt chunk")
        kind = given.text("type", "encoded_text")
        if kind != "encoded_text":
            raise DataError(f"only encoded_text chunks are supported, got {kind}")
        tokens = given.items("tokens")
        if not all(type(token) is int and abs(token) < 2**31 for token in tokens):
            raise DataError("prompt tokens must be integers of at most 32 bits")
        parts.append(tokens)
    prompt = np.array(list(itertools.chain.from_iterable(parts)), np.int64)
    if prompt.size == 0:
        raise DataError("a prompt needs at least one token, got none")
    return prompt


# --- replies ------------------------------------------------------------------------------------


def json_bytes(values: Mapping[str, Any]) -> bytes:
    """Strict JSON: a NaN here is a bug, since the client's parser refuses it."""
    return json.dumps(values, allow_nan=False).encode()


def json_done(**values: Any) -> Done:
    """A successful JSON result; fields that are None are left out."""
    present = {name: value for name, value in values.items() if value is not None}
    return Done(body=json_bytes(present), media_type=JSON)


def failure_bytes(failed: Failed) -> bytes:
    """A failed result, which travels as HTTP 200."""
    return json_bytes({"error": failed.message, "category": failed.category})


def training_done(result: LossOutput | OptimReport) -> Done:
    """The result of a pass over datums, or of an optimizer step."""
    if isinstance(result, OptimReport):
        return json_done(metrics={name: float(value) for name, value in result._asdict().items()})
    return _forward_backward_done(result)


def _forward_backward_done(output: LossOutput) -> Done:
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    message.metrics["loss:sum"] = output.loss_sum
    for trailing, run in itertools.groupby(output.logprobs, key=lambda array: array.shape[1:]):
        arrays = [np.ascontiguousarray(array, np.float32) for array in run]
        record = message.loss_fn_outputs.add(type_tag="ArrayRecord", num_datums=len(arrays))
        offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype=np.int64)
        record.fields["logprobs"].CopyFrom(
            pb.BatchedTensor(
                data=b"".join(array.tobytes() for array in arrays),
                offsets=offsets.tobytes(),
                dtype=pb.DTYPE_FLOAT32,
                trailing_shape=trailing,
            )
        )
    return Done(body=message.SerializeToString(), media_type=PROTOBUF)


def completions(told: Sequence[Completion], *, cursor: int) -> Mapping[str, Any]:
    """Which results are there; `cursor` is what the reader had seen before."""
    return {
        "completions": [
            {
                "state": "finished",
                "request_id": each.request_id,
                "response_payload_uncompressed_size": len(each.outcome.body),
            }
            if isinstance(each.outcome, Done)
            else {"state": "failed", "request_id": each.request_id}
            for each in told
        ],
        "cursor": told[-1].cursor if told else cursor,
    }


def sample_done(samples: Sequence[Sampled], prompt: PromptScores | None) -> Done:
    """Sampled tokens with their log-probabilities, and what was asked about the prompt."""
    message = pb.SampleResponse()
    for sample in samples:
        message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP
            if sample.stop_reason == "stop"
            else pb.STOP_REASON_LENGTH,
            tokens=np.asarray(sample.tokens, np.int32).tobytes(),
            logprobs=np.asarray(sample.logprobs, np.float32).tobytes(),
        )
    if prompt is not None:
        message.prompt_logprobs = np.asarray(prompt.logprobs, np.float32).tobytes()
        if prompt.topk_ids is not None and prompt.topk_logprobs is not None:
            length, k = prompt.topk_ids.shape
            unknown = np.isnan(prompt.topk_logprobs)
            told = message.topk_prompt_logprobs
            # A row that begins with (0, -99999) reads as "nothing known here".
            told.token_ids = np.where(unknown, 0, prompt.topk_ids).astype(np.int32).tobytes()
            scores = np.where(unknown, -99999.0, prompt.topk_logprobs).astype(np.float32)
            told.logprobs = scores.tobytes()
            told.k = k
            # Its name is another in SDKs before 0.38, its number the same.
            setattr(told, told.DESCRIPTOR.fields_by_number[4].name, length)
    return Done(body=message.SerializeToString(), media_type=PROTOBUF)
