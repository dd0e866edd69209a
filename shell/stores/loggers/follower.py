"""Sending the rows of `metrics.jsonl` on, beside the run and never in its way.

The file is the queue: it holds every row, takes no memory, and outlives the process. What could not
be sent is still there, and is sent when the run is continued.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cookbook_fx.errors import ConfigurationError, DataError
from shell.stores.files import write_atomically
from shell.stores.loggers.sinks import LoggedRun, OpenSink, Row, Sink
from shell.stores.metrics import MetricsFile, MetricsReader

LOGGERS_FILE = "loggers.json"

_SECONDS_BETWEEN_LOOKS = 1.0
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_ROWS_AT_ONCE = 100
_LAST_ATTEMPTS = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """How far a place has got.

    Args:
        run_id: what the place calls the run; None before it began there.
        next_step: the rows of steps before it were taken.
    """

    run_id: str | None = None
    next_step: int = 0


class SentFile:
    """`loggers.json`: how far each place has got, by its name; for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._sent: dict[str, Sent] = {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            self._sent = {name: Sent(**value) for name, value in values.items()}
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is damaged ({error}); remove it, and all rows are sent to new runs"
            ) from error

    def __getitem__(self, name: str) -> Sent:
        return self._sent.get(name, Sent())

    def __setitem__(self, name: str, sent: Sent) -> None:
        with self._lock:
            self._sent[name] = sent
            values = {name: asdict(each) for name, each in sorted(self._sent.items())}
            write_atomically(
                self._path, json.dumps(values, indent=1) + "\n", what="what was sent where"
            )


class Follower:
    """Sends the rows of a run to one place, from a thread of its own.

    Whatever the place's client does there, the run goes on: what fails is said once and tried
    again, at longer and longer intervals.
    """

    def __init__(
        self,
        name: str,
        open_sink: OpenSink,
        *,
        run: LoggedRun,
        metrics: MetricsFile,
        sent: SentFile,
        say: Say,
    ) -> None:
        self.name = name
        self._open_sink = open_sink
        self._run = run
        self._sent = sent
        self._say = say
        self._reader = MetricsReader(metrics)
        self._opened = threading.Event()
        self._refused: ConfigurationError | None = None
        self._is_awaited = True
        self._sink: Sink | None = None
        self._lock = threading.Lock()
        # From which step the run goes on, where that was not told to the sink yet.
        self._first_step: int | None = None
        self._began = False
        self._told = False
        self._complete = False
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"logger {name}", daemon=True)

    def start(self) -> None:
        """Begins to open the place."""
        self._thread.start()

    def wait_until_open(self, *, seconds: float) -> None:
        """Waits for the place; one that is not there in time is opened in the background.

        Raises:
            ConfigurationError: it will never open like this.
        """
        if not self._opened.wait(seconds):
            self._say(f"{self.name} has not answered yet; the run does not wait for it.")
        with self._lock:
            self._is_awaited = False
            if self._refused is not None:
                raise self._refused

    def begin(self, first_step: int) -> None:
        """Lets rows go; those from `first_step` on are written from now on."""
        with self._lock:
            self._first_step = first_step
        self._wake.set()

    def end(self) -> None:
        """Asks for all that is left to be sent."""
        self._ending.set()
        self._wake.set()

    def wait_until_ended(self, *, seconds: float) -> None:
        """Waits for the end, and tells of what was not sent."""
        self._thread.join(seconds)
        if self._complete:
            return
        unsent = self._num_unsent()
        what = f"{unsent} rows were not sent" if unsent else "the end of the run was not told"
        self._say(f"{self.name}: {what}; the same command sends what is missing.")

    def _num_unsent(self) -> int:
        next_step = self._sent[self.name].next_step
        return sum(row["step"] >= next_step for row in self._reader.rows())

    def _follow(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        attempts_left = _LAST_ATTEMPTS
        while attempts_left:
            ending = self._ending.is_set()
            self._wake.clear()
            try:
                self._look(ending=ending)
                pause = _FIRST_PAUSE_SECONDS
                if ending:
                    return
                self._wake.wait(_SECONDS_BETWEEN_LOOKS)
            except ConfigurationError as error:
                with self._lock:
                    self._refused = error
                    if not self._is_awaited:
                        self._tell(error)
                self._opened.set()
                return
            except Exception as error:
                # Intentional: clients raise what they like, and none of it is to end the run.
                self._tell(error)
                self._opened.set()
                if ending:
                    attempts_left -= 1
                    time.sleep(_FIRST_PAUSE_SECONDS)
                else:
                    self._ending.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _look(self, *, ending: bool) -> None:
        """Does what there is to do: opens the place, sends what is new, and ends."""
        if self._sink is None:
            self._sink = self._open_sink(replace(self._run, run_id=self._sent[self.name].run_id))
            self._sent[self.name] = replace(self._sent[self.name], run_id=self._sink.run_id)
            if self._sink.where is not None:
                self._say(f"{self.name}: {self._sink.where}")
            self._opened.set()
        self._send(self._sink, ending=ending)
        if ending:
            self._sink.close()
            self._complete = True

    def _send(self, sink: Sink, *, ending: bool) -> None:
        first_step = self._first_step
        sent = self._sent[self.name]
        if first_step is None and ending and not self._began:
            # The run was complete before, or never began.
            first_step = sent.next_step
        if first_step is not None:
            next_step = sink.begin(first_step=first_step, sent=sent.next_step)
            sent = replace(sent, next_step=next_step)
            self._sent[self.name] = sent
            self._began = True
            with self._lock:
                # Unless the run has gone back again meanwhile.
                if self._first_step == first_step:
                    self._first_step = None
        if not self._began:
            return
        rows: Sequence[Row] = [row for row in self._reader.rows() if row["step"] >= sent.next_step]
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            chunk = rows[begin : begin + _ROWS_AT_ONCE]
            sink.send(chunk)
            sent = replace(sent, next_step=int(chunk[-1]["step"]) + 1)
            self._sent[self.name] = sent

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self._say(f"{self.name} failed; the run goes on. {type(error).__name__}: {error}")
