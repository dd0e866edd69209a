"""Where a run's measurements go: its own file, the terminal, experiment trackers."""

from shell.stores.loggers.setup import RunLogger as RunLogger
from shell.stores.loggers.setup import setup_logging as setup_logging
from shell.stores.loggers.sinks import LoggedRun as LoggedRun
from shell.stores.loggers.sinks import LoggerName as LoggerName
from shell.stores.loggers.sinks import OpenSink as OpenSink
from shell.stores.loggers.sinks import Row as Row
from shell.stores.loggers.sinks import Sink as Sink
