"""One worker process: calls what it is sent. Started by `workers`, never imported by it."""

import pickle
import signal
import sys
from multiprocessing.connection import Connection

# The one that asked kills at the limit; the alarm is for when it is no longer there to do so.
_GRACE_SECONDS = 1.0


def serve(connection: Connection) -> None:
    """Answers one call after another, until the other end is closed."""
    while True:
        try:
            called, loading_seconds, limit_seconds = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        _alarm(loading_seconds)
        connection.send_bytes(_answer(called, connection, limit_seconds=limit_seconds))
        signal.setitimer(signal.ITIMER_REAL, 0)


def _answer(called: bytes, connection: Connection, *, limit_seconds: float) -> bytes:
    """What a call returns or raises, made ready to be sent."""
    try:
        function, arguments = pickle.loads(called)
        connection.send(("began",))
        _alarm(limit_seconds)
        return pickle.dumps(("returned", function(*arguments)))
    # Whatever it raises, SystemExit too, is for the one who asked.
    except BaseException as error:
        return pickle.dumps(("raised", type(error).__name__, str(error)))


def _alarm(seconds: float) -> None:
    """Has the kernel end this process then, even in the midst of one endless operation."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + _GRACE_SECONDS)


if __name__ == "__main__":
    # Ctrl-C is for the process that started this one, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])))
