"""An operation that was submitted and not yet answered."""

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from shell.clients.errors import translated
from shell.stores.tracing import span

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending(Generic[Answer]):
    """A submitted operation; `await` it for its result, in any order and as late as you like.

    Operations on one trainer happen in the order of their submission, whenever they are awaited.

    Args:
        future: the SDK's future.
        convert: what makes the library's record of the SDK's answer.
        doing: the action as a phrase, for error messages.
    """

    future: Awaitable[Any]
    convert: Callable[[Any], Answer]
    doing: str

    def __await__(self) -> Generator[Any, None, Answer]:
        with span(self.doing), translated(self.doing):
            answer = yield from self.future.__await__()
        return self.convert(answer)
