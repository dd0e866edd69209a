"""What the SDK raises, as the library's errors: what was being done, what came, what to do."""

from collections.abc import Iterator
from contextlib import contextmanager

import tinker
from tinker.types import RequestErrorCategory

from cookbook_fx.errors import ServiceError

_SKYRL = "with SkyRL's server, use tinker 0.24.1"


class CheckpointNotFound(ServiceError):
    """The engine does not have, or will not load, the checkpoint asked for."""


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turns whatever the SDK raises while `doing` something into a ServiceError.

    Args:
        doing: the action as a phrase, such as "training step".
    """
    try:
        yield
    except tinker.RequestFailedError as error:
        advice = (
            "correct the request"
            if error.category == RequestErrorCategory.User
            else "see the engine's log, then run the same command again"
        )
        raise ServiceError(f"{doing} failed: {failure(error)}; {advice}") from error
    except (tinker.AuthenticationError, tinker.PermissionDeniedError) as error:
        raise ServiceError(
            f"{doing} was refused: the engine does not accept this key ({body(error)}); set "
            "TINKER_API_KEY to the key of the engine at --base-url"
        ) from error
    except tinker.APIStatusError as error:
        # Refusals of what the engine does not know, rather than of what it was asked.
        advice = (
            f"; if the engine is of another kind or age than this SDK ({tinker.__version__}), it "
            f"may not offer this; {_SKYRL}"
            if error.status_code in (404, 405, 422, 500, 501)
            else ""
        )
        raise ServiceError(
            f"{doing} was refused with HTTP status {error.status_code}: {body(error)}{advice}"
        ) from error
    except tinker.APIConnectionError as error:
        raise ServiceError(
            f"{doing} failed: the connection to the engine broke ({error}); check that it runs, "
            "then run the same command again"
        ) from error
    except tinker.TinkerError as error:
        raise ServiceError(f"{doing} failed: {error}") from error
    except AssertionError as error:
        # So the SDK calls an answer that lacks what its own engine always sends.
        raise ServiceError(
            f"{doing} failed: the engine's answer lacks what this SDK ({tinker.__version__}) needs "
            f"({error}); the engine speaks an earlier protocol; {_SKYRL}"
        ) from error
    except ValueError as error:
        # So the SDK calls a result that the engine does not have, as after a restart, and one of
        # an earlier form.
        advice = (
            _SKYRL
            if "only supports as proto" in str(error)
            else "see the engine's log, then run the same command again"
        )
        raise ServiceError(f"{doing} failed: {error}; {advice}") from error


def failure(error: tinker.RequestFailedError) -> str:
    """What the engine said, without the SDK's own bookkeeping around it."""
    return error.message.removeprefix("Request failed: ").partition(" for self.request_id=")[0]


def body(error: tinker.APIStatusError) -> str:
    """What an HTTP error says, without the SDK's own words around it."""
    values = error.body
    return str(values.get("detail", values)) if isinstance(values, dict) else str(values or error)
