"""What the engine signs: JSON Web Tokens (RFC 7519), by HMAC with a secret of this process."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from shell.engine.sessions import Unknown

_HEADER = {"alg": "HS256", "typ": "JWT"}


class Signer:
    """Makes tokens and recognises its own; those of an earlier process are strangers'."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def sign(self, claims: Mapping[str, Any], *, seconds: float) -> str:
        """A token that stands for these claims for so long."""
        now = int(time.time())
        dated = dict(claims) | {"iat": now, "exp": now + int(seconds)}
        content = f"{_encoded(_HEADER)}.{_encoded(dated)}"
        return f"{content}.{self._signature(content)}"

    def read(self, token: str) -> Mapping[str, Any]:
        """The claims of a token.

        Raises:
            Unknown: it is none of ours, or its time is over.
        """
        content, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(content).encode()):
            raise Unknown("this token is not of this engine's making; the engine was restarted?")
        claims = json.loads(_decoded(content.partition(".")[2]))
        if claims["exp"] <= time.time():
            raise Unknown("the time of this token is over; ask for another")
        return claims

    def _signature(self, content: str) -> str:
        return _base64(hmac.digest(self._secret, content.encode(), hashlib.sha256))


def _encoded(values: Mapping[str, Any]) -> str:
    return _base64(json.dumps(values).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
