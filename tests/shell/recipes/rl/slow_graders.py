"""What graders do in the wild; called in worker processes, so in a module of its own."""

import os
import re
import sys
import time


def sleeping(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def counting_for_ever() -> int:
    # One operation of C that never lets go of the interpreter.
    return 9 ** (9**9)


def backtracking() -> object:
    return re.match(r"(a|a)*b", "a" * 60)


def dying(*answers: str) -> None:
    os._exit(3)


def exiting() -> None:
    raise SystemExit(4)


def raising() -> None:
    raise ValueError("no such answer")


def process_id() -> int:
    return os.getpid()


def length(text: str) -> int:
    return len(text)


def printing() -> str:
    sys.stdout.write("a word from a grader\n")
    sys.stdout.flush()
    return "said"


def unsendable() -> object:
    return lambda: None


def always(solution: str, reference: str) -> bool:
    return bool(solution and reference)


def never_ending(solution: str, reference: str) -> bool:
    while solution:
        pass
    return bool(reference)
