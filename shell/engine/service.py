"""What the engine does for the clients of one key, behind HTTP and in front of the compute thread.

Each key has a service of its own, so that its clients meet nobody else's models, samplers, results
or checkpoints; the services share what computes. Everything here runs on the event loop and returns
at once, except waiting for results and reading a checkpoint for a new sampler, which are awaited.
"""

import asyncio
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from cookbook_fx.errors import ConfigurationError, CookbookError, DataError, ServiceError
from cookbook_fx.lm import LoRAConfig
from shell.engine import wire
from shell.engine.backlog import Backlog
from shell.engine.backlog import Busy as Busy
from shell.engine.checkpoints import Checkpoint, CheckpointStore, NoSuchCheckpoint, parse_path
from shell.engine.compute import BaseModel as BaseModel
from shell.engine.compute import Compute
from shell.engine.compute import EngineLimits as EngineLimits
from shell.engine.futures import Completion, CompletionQueue, Done, Failed, FutureTable, Outcome
from shell.engine.models import Loaded, Models, Result, Snapshot
from shell.engine.requests import (
    CreateModel,
    CreateModelFromState,
    CreateSamplingSession,
    CreateSession,
    Operation,
    RetrieveFutures,
    Sample,
    SaveForSampler,
    Submission,
    Unusable,
)
from shell.engine.sampling import SampledPrompt, SampleWork
from shell.engine.sequencing import (
    Arrived,
    Command,
    Hold,
    Refuse,
    Repeat,
    Run,
    TimePassed,
    step,
)
from shell.engine.sessions import (
    Finished,
    ModelEntry,
    Sampler,
    SamplerWeights,
    Session,
    Sessions,
    Unknown,
)

log = logging.getLogger(__name__)
Answer = TypeVar("Answer")

# Those that never come are remembered one by one.
_FARTHEST_AHEAD = 100_000
_CANCELLED = Failed(
    message="cancelled, by its client or because the engine is stopping", category="server"
)
_SAVED_BY = {
    "weights": "save_weights",
    "sampler_weights": "save_weights_for_sampler",
    "external_weights": "save_weights_external",
}


class Service:
    """The engine as the clients of one key have it; made on the event loop that will serve it."""

    def __init__(self, compute: Compute, store: CheckpointStore, limits: EngineLimits) -> None:
        self.base = compute.base
        self.store = store
        self.limits = limits
        self.sessions = Sessions()
        self.futures = FutureTable()
        self._compute = compute
        self._backlog = Backlog(
            max_samples=limits.max_queued_samples, max_bytes=limits.max_queued_bytes
        )
        self._models = Models(compute.base.weights, store, compute.memory, between=compute.between)
        self._loop = asyncio.get_running_loop()
        # Requests for samples that can still be given up.
        self._sampling: dict[str, SampleWork] = {}

    # --- sessions ---------------------------------------------------------------------------

    def create_session(self, request: CreateSession) -> str:
        """The id of a new session.

        Raises:
            Busy: there are as many as there may be.
        """
        if len(self.sessions.sessions()) >= self.limits.max_sessions:
            raise Busy(
                f"{self.limits.max_sessions} sessions are open, and no more may be; close some, or "
                "let them fall silent"
            )
        session_id = str(uuid.uuid4())
        self.sessions.open(
            Session(
                session_id=session_id,
                user_metadata=request.user_metadata,
                display_name=request.display_name,
            )
        )
        return session_id

    def finish_session(self, session_id: str, reason: str) -> None:
        """Frees what a session holds, after the operations it has already submitted."""
        for model in self.sessions.end(session_id, reason):
            for seq_id in list(model.held):
                self._refuse(model, seq_id, f"the session of this model {reason}")
            self._compute.operate(partial(self._models.drop, model.model_id), lambda _: None)

    # --- training ---------------------------------------------------------------------------

    def create_model(self, request: CreateModel) -> tuple[str, str]:
        """Request id and model id; the same ones when asked again."""
        self._require_served(request.base_model)
        return self._new_model(
            request, request.lora, lambda model_id: self._models.create(model_id, request.lora)
        )

    def create_model_from_state(self, request: CreateModelFromState) -> tuple[str, str]:
        """As `create_model`; the adapter's shape is the checkpoint's."""
        if request.base_model is not None:
            self._require_served(request.base_model)

        def create(model_id: str) -> LoRAConfig:
            return self._models.create_from_state(
                model_id, request.path, with_optimizer=request.with_optimizer
            )

        return self._new_model(request, None, create)

    def _new_model(
        self,
        request: CreateModel | CreateModelFromState,
        lora: LoRAConfig | None,
        create: Callable[[str], LoRAConfig | None],
    ) -> tuple[str, str]:
        session = self.sessions.session(request.session_id)
        model_id = f"{session.session_id}:train:{request.model_seq_id}"
        request_id = f"{model_id}:create"
        if self.sessions.find_model(model_id) is not None:
            return request_id, model_id
        model = ModelEntry(
            model_id=model_id,
            session_id=session.session_id,
            base_model=request.base_model or self.base.tokenizer_name,
            lora=lora,
            user_metadata=request.user_metadata,
        )
        self.sessions.add_model(model)

        def reply(created: LoRAConfig | None) -> Done:
            model.lora = created or lora
            if isinstance(request, CreateModel):
                return wire.json_done(model_id=model_id, type="create_model")
            return wire.json_done(model_id=model_id, path=request.path, type="load_weights")

        self.futures.open(request_id)
        self._compute.operate(
            lambda: create(model_id), lambda future: self._settle(request_id, future, reply)
        )
        return request_id, model_id

    def _require_served(self, name: str) -> None:
        if name.casefold() not in {known.casefold() for known in self.base.names}:
            raise ConfigurationError(
                f"base model {name!r} is not served here; this engine serves "
                f"{' = '.join(self.base.names)}"
            )

    def submit(self, submission: Submission) -> str:
        """Puts an operation in its place in its model's order; returns its request id.

        Raises:
            Unknown: there is no such model.
            DataError: its place is farther ahead than a client's operations can be.
            Busy: too much is waiting.
        """
        model = self.sessions.model(submission.model_id)
        seq_id, following = submission.seq_id, model.sequence.next_seq_id
        if seq_id - following > _FARTHEST_AHEAD:
            raise DataError(
                f"operation {seq_id} is too far ahead: operation {following} of model "
                f"{model.model_id} is the next, and at most {_FARTHEST_AHEAD} may lie between"
            )
        is_late = seq_id in model.sequence.lost
        if is_late or (seq_id >= following and seq_id not in model.held):
            is_awaited = seq_id == following and bool(model.held)
            self._backlog.add_operation(submission.size_bytes, awaited=is_awaited)
            model.held[seq_id] = submission
        self._advance(model, Arrived(seq_id=seq_id, at_seconds=time.monotonic()))
        return _request_id(model, seq_id)

    def _advance(self, model: ModelEntry, event: Arrived | TimePassed) -> None:
        model.sequence, commands = step(
            model.sequence, event, patience_seconds=self.limits.patience_seconds
        )
        for command in commands:
            self._carry_out(model, command)

    def _carry_out(self, model: ModelEntry, command: Command) -> None:
        match command:
            case Hold(seq_id=seq_id):
                self.futures.open(_request_id(model, seq_id))
            case Repeat():
                pass
            case Refuse(seq_ids=seq_ids, reason=reason):
                for seq_id in seq_ids:
                    self._refuse(model, seq_id, reason)
            case Run(seq_ids=seq_ids):
                for seq_id in seq_ids:
                    self._run(model, model.held.pop(seq_id))

    def _refuse(self, model: ModelEntry, seq_id: int, reason: str) -> None:
        self._backlog.remove_operation(model.held.pop(seq_id).size_bytes)
        request_id = _request_id(model, seq_id)
        if not self.futures.known(request_id):
            self.futures.open(request_id)
        self.futures.settle(request_id, Failed(message=reason, category="server"))

    def _run(self, model: ModelEntry, submission: Submission) -> None:
        seq_id, operation = submission.seq_id, submission.operation
        request_id = _request_id(model, seq_id)
        if not self.futures.known(request_id):
            self.futures.open(request_id)

        def settle(future: "Future[Result]") -> None:
            self._backlog.remove_operation(submission.size_bytes)
            self._settle(
                request_id, future, lambda result: self._reply(model, seq_id, operation, result)
            )

        self._compute.operate(lambda: self._models.perform(model.model_id, operation), settle)

    def _reply(self, model: ModelEntry, seq_id: int, operation: Operation, result: Result) -> Done:
        match result:
            case Snapshot():
                return self._register_snapshot(model, seq_id, operation, result)
            case Loaded(path=path):
                return wire.json_done(path=path, model_id=model.model_id, type="load_weights")
            case Checkpoint(path=path, size_bytes=size):
                return wire.json_done(path=str(path), size_bytes=size, type=_SAVED_BY[path.segment])
            case _:
                return wire.training_done(result)

    # --- sampling ---------------------------------------------------------------------------

    def _register_snapshot(
        self, model: ModelEntry, seq_id: int, operation: Operation, snapshot: Snapshot
    ) -> Done:
        if not isinstance(operation, SaveForSampler) or operation.sampling_session_seq_id is None:
            raise DataError(
                "an unnamed save_weights_for_sampler needs sampling_session_seq_id; "
                "send it, or a name as path"
            )
        session = self.sessions.session(model.session_id)
        sampler_id = f"{session.session_id}:sample:{operation.sampling_session_seq_id}"
        if self.sessions.has_sampler(sampler_id):
            raise DataError(
                f"sampling session {sampler_id} exists already; give the snapshot a "
                "sampling_session_seq_id of its own"
            )
        weights = SamplerWeights(key=f"{model.model_id}@{seq_id}", load=lambda: snapshot.adapter)
        if operation.follow:
            for follower in self.sessions.samplers():
                if follower.follows == model.model_id:
                    follower.weights = weights
        self.sessions.add_sampler(
            Sampler(
                sampler_id=sampler_id,
                session_id=session.session_id,
                weights=weights,
                base_model=model.base_model,
                model_path=None,
                is_unnamed=True,
                follows=model.model_id if operation.follow else None,
            )
        )
        self._retire_snapshots(session)
        return wire.json_done(sampling_session_id=sampler_id, type="save_weights_for_sampler")

    def _retire_snapshots(self, session: Session) -> None:
        unnamed = [
            sampler
            for sampler in self.sessions.samplers()
            if sampler.session_id == session.session_id and sampler.is_unnamed
        ]
        unnamed.sort(key=lambda sampler: sampler.last_used)
        for sampler in unnamed[: max(0, len(unnamed) - self.limits.unnamed_samplers)]:
            self.sessions.remove_sampler(sampler)

    async def create_sampling_session(self, request: CreateSamplingSession) -> str:
        """The sampler's id; the same one when asked again."""
        session = self.sessions.session(request.session_id)
        sampler_id = f"{session.session_id}:sample:{request.sampling_session_seq_id}"
        if self.sessions.has_sampler(sampler_id):
            return sampler_id
        if request.base_model is not None:
            self._require_served(request.base_model)
        if request.model_path is not None:
            weights = await asyncio.to_thread(self._read_sampler_weights, request.model_path)
        elif request.base_model is not None:
            weights = SamplerWeights(key="base", load=lambda: None)
        else:
            raise ConfigurationError("a sampling session needs base_model or model_path")
        # Reading took a while: the session may have ended, or a retried request been answered.
        session = self.sessions.session(request.session_id)
        if not self.sessions.has_sampler(sampler_id):
            self.sessions.add_sampler(
                Sampler(
                    sampler_id=sampler_id,
                    session_id=session.session_id,
                    weights=weights,
                    base_model=request.base_model or self.base.tokenizer_name,
                    model_path=request.model_path,
                )
            )
        return sampler_id

    def _read_sampler_weights(self, path: str) -> SamplerWeights:
        checkpoint = self.store.find(parse_path(path))
        # Read once now, so that whoever opens the sampler hears of a checkpoint that is damaged.
        self.store.load_adapter(checkpoint)
        return SamplerWeights(
            key=checkpoint.data, load=partial(self.store.load_adapter, checkpoint)
        )

    def sample(self, request: Sample) -> tuple[str, tuple[str, ...]]:
        """Request id, and an id for each sample to come; the same ones when asked again.

        Raises:
            Busy: too many samples are waiting.
        """
        sampler = self.sessions.sampler(request.sampling_session_id)
        request_id = f"{sampler.sampler_id}:{request.seq_id}"
        wanted = request.num_samples
        if wanted > self.limits.max_queued_samples:
            raise ConfigurationError(
                f"num_samples must be at most {self.limits.max_queued_samples}, got {wanted}; "
                "split the request"
            )
        sequence_ids = tuple(f"{request_id}:{index}" for index in range(wanted))
        if self.futures.known(request_id):
            return request_id, sequence_ids
        if isinstance(request.request, Unusable):
            self.futures.open(request_id)
            self.futures.settle(request_id, Failed(message=request.request.reason, category="user"))
            self._tell(sampler, request.seq_id)
            return request_id, sequence_ids
        self._backlog.add_samples(wanted)
        self.futures.open(request_id)
        seed = request.request.seed
        work = SampleWork(
            weights=sampler.weights,
            request=request.request,
            seed=secrets.randbits(63) if seed is None else seed,
            future=Future(),
        )
        self._sampling[request_id] = work
        self._compute.sample(work, partial(self._settle_sample, sampler, request.seq_id))
        return request_id, sequence_ids

    def _settle_sample(
        self, sampler: Sampler, seq_id: int, future: "Future[SampledPrompt]"
    ) -> None:
        request_id = f"{sampler.sampler_id}:{seq_id}"
        self._backlog.remove_samples(self._sampling.pop(request_id).request.num_samples)
        self._settle(
            request_id, future, lambda result: wire.sample_done(result.samples, result.prompt)
        )
        self._tell(sampler, seq_id)

    def _tell(self, sampler: Sampler, seq_id: int) -> None:
        """Tells whoever listens for this sampler's results that this one is there."""
        request_id = f"{sampler.sampler_id}:{seq_id}"
        queue = sampler.completions.get(_copy_of(seq_id))
        outcome = self.futures.outcome(request_id)
        if queue is not None and outcome is not None:
            queue.put(request_id, outcome)

    async def completions(self, request: RetrieveFutures) -> list[Completion]:
        """Which of the samples of one copy of a sampler have come since it last asked.

        Raises:
            Unknown: there is no such sampler.
        """
        sampler = self.sessions.sampler(request.sampling_session_id)
        for request_id in request.received:
            if request_id.startswith(f"{sampler.sampler_id}:"):
                self.futures.acknowledge(request_id)
        queue = sampler.completions.get(request.copy)
        if queue is None:
            queue = sampler.completions[request.copy] = CompletionQueue()
            for request_id, outcome in self.futures.settled(f"{sampler.sampler_id}:"):
                if _copy_of(int(request_id.rpartition(":")[2])) == request.copy:
                    queue.put(request_id, outcome)
        longest = self.limits.long_poll_seconds
        seconds = longest if request.seconds is None else min(request.seconds, longest)
        return await queue.after(request.cursor, seconds=seconds, stop=self.futures.closing)

    def join_sampler(self, sampler_id: str) -> int:
        """A number for another copy of a client's sampler; the first copy's is 0."""
        sampler = self.sessions.sampler(sampler_id)
        sampler.joined += 1
        return sampler.joined

    def cancel(self, request_id: str) -> None:
        """Gives up a request for samples that is still waiting or under way.

        Raises:
            Unknown: nothing was ever promised under this id.
        """
        self._require_known(request_id)
        if request_id in self._sampling:
            self._compute.cancel(self._sampling[request_id])

    # --- results ----------------------------------------------------------------------------

    async def retrieve(self, request_id: str) -> Outcome | None:
        """The outcome, or None if it is not there before the long poll ends.

        Raises:
            Finished: it was there, and is no longer kept.
            Unknown: nothing was ever promised under this id.
        """
        if self.futures.expired(request_id):
            raise Finished(f"the result of {request_id} is no longer kept")
        self._require_known(request_id)
        return await self.futures.wait(request_id, seconds=self.limits.long_poll_seconds)

    def _require_known(self, request_id: str) -> None:
        if not self.futures.known(request_id):
            raise Unknown(f"there is no request {request_id}; the engine may have been restarted")

    def _settle(self, request_id: str, future: "Future[Any]", reply: Callable[[Any], Done]) -> None:
        self.futures.settle(request_id, _outcome(request_id, future, reply))

    # --- upkeep -----------------------------------------------------------------------------

    async def maintain(self) -> None:
        """Looks after everything that happens because time passes; runs until cancelled."""
        while True:
            await asyncio.sleep(self.limits.maintenance_seconds)
            try:
                self._look_after(time.monotonic())
                await asyncio.to_thread(self.store.sweep)
            # One bad look must not be the last: what waits would then wait for ever.
            except Exception:
                log.exception("looking after waiting requests and old checkpoints failed")

    def _look_after(self, now: float) -> None:
        self.futures.sweep(now)
        for model in self.sessions.models():
            self._advance(model, TimePassed(at_seconds=now))
        for session in self.sessions.sessions():
            if now - session.last_seen > self.limits.idle_session_seconds:
                self.finish_session(
                    session.session_id,
                    f"was silent for {self.limits.idle_session_seconds:g} s and was freed",
                )

    def wake_from_another_thread(self) -> None:
        """Ends every long poll, so that connections can close."""
        self._loop.call_soon_threadsafe(self.futures.close)

    async def stop(self) -> None:
        """Ends every wait and what computes, for the other services too."""
        self.futures.close()
        await self._compute.stop()


def _copy_of(seq_id: int) -> int:
    """Which copy of the client's sampler asked: each counts in a range of its own."""
    return seq_id // 10**9


def _request_id(model: ModelEntry, seq_id: int) -> str:
    return f"{model.model_id}:{seq_id}"


def _outcome(request_id: str, future: "Future[Any]", reply: Callable[[Any], Done]) -> Outcome:
    if future.cancelled():
        return _CANCELLED
    try:
        return reply(future.result())
    except NoSuchCheckpoint as error:
        return Failed(message=str(error), category="user")
    except ServiceError as error:
        log.warning("%s failed: %s", request_id, error)
        return Failed(message=str(error), category="server")
    except CookbookError as error:
        return Failed(message=str(error), category="user")
    # The last line before the client: a bug of ours must reach it as an answer, not as silence.
    except Exception as error:
        log.exception("%s failed unexpectedly", request_id)
        return Failed(message=f"{type(error).__name__}: {error}", category="server")
