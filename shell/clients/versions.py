"""What differs between the SDKs that can be used, from 0.24 to the newest."""

import asyncio
import inspect
from collections.abc import Awaitable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import tinker

try:
    from tinker.lib.base_url import DEFAULT_BASE_URL as DEFAULT_BASE_URL
except ModuleNotFoundError:
    # Earlier SDKs keep it inside a function.
    DEFAULT_BASE_URL = "https://tinker.thinkingmachines.dev/services/tinker-prod"

# Earlier SDKs have all the places of a prompt told, of which the last is looked at.
LAST_PLACE_ONLY = (
    {"prompt_logprobs_last_n": 1}
    if "prompt_logprobs_last_n" in inspect.signature(tinker.SamplingClient.sample).parameters
    else {}
)


@dataclass(frozen=True, slots=True)
class _Ready:
    """An answer that need not be waited for."""

    answer: Any

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        return self.answer


def awaitable(submitted: Any) -> Awaitable[Any]:
    """What a call of the SDK gave back, to be awaited.

    Of what is a future today, earlier SDKs make a plain one, or wait for it and return its result.
    """
    if isinstance(submitted, Awaitable):
        return submitted
    if isinstance(submitted, Future):
        return asyncio.wrap_future(submitted)
    return _Ready(submitted)


async def close(sdk: tinker.ServiceClient, status: str, *, timeout_seconds: float) -> None:
    """Ends the session, where the SDK can; otherwise the engine does when it falls silent."""
    if hasattr(sdk, "close"):
        await sdk.close(status).result_async(timeout=timeout_seconds)
