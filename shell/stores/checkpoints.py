"""A run's checkpoints: where the next batch is and which engine state belongs to it, by Orbax."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import orbax.checkpoint as ocp

from shell.stores.files import storing
from shell.stores.orbax_turn import ORBAX_TURN


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheckpoint:
    """A place to continue from: the state holds exactly the steps before `next_step`.

    Args:
        next_step: the step to do next, from 0; so many steps are in the state.
        state_path: the engine's name for weights and optimizer state, `tinker://...`.
        sampler_path: the engine's name for weights to sample from; None if not saved.
        final: the run is complete and everything about it is written.
    """

    next_step: int
    state_path: str
    sampler_path: str | None = None
    final: bool = False


class RunCheckpoints:
    """The checkpoints of one run folder, in a directory that Orbax manages.

    A record appears whole or not at all: Orbax writes beside and renames. Records are small and
    all of them are kept; what they point to is kept by the engine.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        with ORBAX_TURN, storing(self._directory, what="the checkpoint directory"):
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    create=True, enable_async_checkpointing=False, cleanup_tmp_directories=True
                ),
                item_handlers=ocp.JsonCheckpointHandler(),
            )

    def save(self, checkpoint: RunCheckpoint) -> None:
        """Adds a record.

        Raises:
            StorageError: the disk is full or cannot be written; earlier records are intact.
        """
        what = f"the checkpoint of step {checkpoint.next_step}"
        with ORBAX_TURN, storing(self._directory, what=what):
            self._manager.save(
                checkpoint.next_step, args=ocp.args.JsonSave(asdict(checkpoint)), force=True
            )

    def all(self) -> tuple[RunCheckpoint, ...]:
        """Every readable record, the latest last; unfinished or torn ones are left out."""
        records = (self._read(step) for step in sorted(self._manager.all_steps()))
        return tuple(record for record in records if record is not None)

    def latest(self) -> RunCheckpoint | None:
        """The record with the most steps; None if there is none yet."""
        records = self.all()
        return records[-1] if records else None

    def keep_before(self, step: int) -> None:
        """Deletes the records whose next step is `step` or later, torn ones included."""
        with ORBAX_TURN, storing(self._directory, what="the list of checkpoints"):
            for later in [found for found in self._manager.all_steps() if found >= step]:
                self._manager.delete(later)

    def close(self) -> None:
        """Lets go of the directory."""
        self._manager.close()

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _read(self, step: int) -> RunCheckpoint | None:
        try:
            with ORBAX_TURN:
                record = self._manager.restore(step, args=ocp.args.JsonRestore())
            return RunCheckpoint(**record)
        except (OSError, json.JSONDecodeError, TypeError):
            # A record that never got whole, or one damaged since: an earlier one will do.
            return None
