"""Who uses the engine, and which models and samplers are theirs. Event loop only."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from cookbook_fx.errors import ServiceError
from cookbook_fx.lm import LoRA, LoRAConfig
from shell.engine.futures import CompletionQueue
from shell.engine.requests import Submission
from shell.engine.sequencing import Sequence

_REMEMBERED = 10_000


class Unknown(ServiceError):
    """A session, model, sampler or result that is not (or no longer) here."""


class Finished(ServiceError):
    """A session its client has closed, or a result that was kept long enough."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplerWeights:
    """Weights to sample from; equal keys mean equal weights.

    Args:
        key: names them.
        load: gives the adapter, None for the base model. What is on disk is read when it is to be
            sampled from: a client may open a sampler for every checkpoint of a long run.
    """

    key: str
    load: Callable[[], LoRA | None]


@dataclass(slots=True, kw_only=True, eq=False)
class Sampler:
    """A sampling session."""

    sampler_id: str
    session_id: str
    base_model: str
    weights: SamplerWeights
    model_path: str | None
    # Whether it is an unnamed snapshot, which is nowhere but in memory.
    is_unnamed: bool = False
    # The model whose later in-flight snapshots this sampler takes over.
    follows: str | None = None
    last_used: float = field(default_factory=time.monotonic)
    # Copies of the client's sampler that asked for a number of their own.
    joined: int = 0
    # Where copies of the client's sampler, by number, are told what has come.
    completions: dict[int, CompletionQueue] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True, eq=False)
class ModelEntry:
    """A model as its clients see it; what it computes with lives on the compute thread.

    Args:
        base_model: by the name its client calls it.
        lora: None until a checkpoint has told.
        sequence: where the model stands in its order of operations.
        held: operations that wait for an earlier one.
        last_request_at: seconds since 1970.
    """

    model_id: str
    session_id: str
    base_model: str
    lora: LoRAConfig | None
    user_metadata: Mapping[str, str] | None
    sequence: Sequence = field(default_factory=Sequence)
    held: dict[int, Submission] = field(default_factory=dict)
    last_request_at: float = field(default_factory=time.time)


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One client."""

    session_id: str
    user_metadata: Mapping[str, str] | None
    display_name: str | None
    last_seen: float = field(default_factory=time.monotonic)
    model_ids: list[str] = field(default_factory=list)
    sampler_ids: list[str] = field(default_factory=list)


class Sessions:
    """All sessions with their models and samplers."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._models: dict[str, ModelEntry] = {}
        self._samplers: dict[str, Sampler] = {}
        # Why a session is gone, so that a late client is told.
        self._ended: OrderedDict[str, str] = OrderedDict()

    def open(self, session: Session) -> None:
        self._sessions[session.session_id] = session

    def add_model(self, model: ModelEntry) -> None:
        self._models[model.model_id] = model
        self._sessions[model.session_id].model_ids.append(model.model_id)

    def add_sampler(self, sampler: Sampler) -> None:
        self._samplers[sampler.sampler_id] = sampler
        self._sessions[sampler.session_id].sampler_ids.append(sampler.sampler_id)

    def remove_sampler(self, sampler: Sampler) -> None:
        del self._samplers[sampler.sampler_id]
        self._sessions[sampler.session_id].sampler_ids.remove(sampler.sampler_id)

    def end(self, session_id: str, reason: str) -> tuple[ModelEntry, ...]:
        """Forgets a session; returns the models it had, for their memory to be freed."""
        session = self._sessions.pop(session_id)
        self._ended[session_id] = reason
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        for sampler_id in session.sampler_ids:
            del self._samplers[sampler_id]
        return tuple(self._models.pop(model_id) for model_id in session.model_ids)

    def session(self, session_id: str) -> Session:
        """A live session, noted as alive.

        Raises:
            Finished: it was closed or has been silent for too long.
            Unknown: this engine never opened it.
        """
        session = self._sessions.get(session_id)
        if session is None:
            if session_id in self._ended:
                raise Finished(f"session {session_id} {self._ended[session_id]}")
            raise Unknown(f"session {session_id} is not known; the engine may have been restarted")
        session.last_seen = time.monotonic()
        return session

    def model(self, model_id: str) -> ModelEntry:
        """A model of a live session; counts as a sign of life.

        Raises:
            Unknown: there is no such model.
        """
        model = self._models.get(model_id)
        if model is None:
            why = self._ended.get(model_id.split(":")[0])
            detail = f"its session {why}" if why else "the engine may have been restarted"
            raise Unknown(f"model {model_id} is not here; {detail}")
        self._sessions[model.session_id].last_seen = time.monotonic()
        model.last_request_at = time.time()
        return model

    def find_model(self, model_id: str) -> ModelEntry | None:
        """A model of a live session, if there is one; no sign of life, whoever looks."""
        return self._models.get(model_id)

    def sampler(self, sampler_id: str) -> Sampler:
        """A sampler of a live session; counts as a sign of life.

        Raises:
            Unknown: there is no such sampler.
        """
        sampler = self._samplers.get(sampler_id)
        if sampler is None:
            raise Unknown(
                f"sampling session {sampler_id} is not here: its session ended, the engine was "
                "restarted, or it was an unnamed snapshot and newer ones took its place (save "
                "weights under a name to keep them)"
            )
        sampler.last_used = self._sessions[sampler.session_id].last_seen = time.monotonic()
        return sampler

    def has_sampler(self, sampler_id: str) -> bool:
        return sampler_id in self._samplers

    def sessions(self) -> tuple[Session, ...]:
        return tuple(self._sessions.values())

    def models(self) -> tuple[ModelEntry, ...]:
        return tuple(self._models.values())

    def samplers(self) -> Iterable[Sampler]:
        return tuple(self._samplers.values())
