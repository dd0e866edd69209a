"""Whether the Hugging Face hub answers, found out once and soon."""

import threading

import httpx2
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

# Long enough for a slow line, short enough that nobody wonders what is going on.
_LIMIT_SECONDS = 4.0


def why_unavailable(repo_id: str, *, kind: str = "model") -> str | None:
    """Asks the hub once for a repository.

    The client's own retries take most of a minute, and its time limit leaves out name look-ups;
    this limit holds for everything.

    Args:
        repo_id: owner/name.
        kind: "model" or "dataset".

    Returns:
        None if the hub would serve it to this user, else the reason in a sentence.
    """
    if is_offline_mode():
        return "HF_HUB_OFFLINE forbids asking the Hugging Face hub."
    failures: list[Exception] = []

    def ask() -> None:
        try:
            HfApi().repo_info(repo_id, repo_type=kind, timeout=_LIMIT_SECONDS)
        except (OSError, ValueError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            failures.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_LIMIT_SECONDS)
    if thread.is_alive():
        return f"The Hugging Face hub did not answer within {_LIMIT_SECONDS:g} seconds."
    return _sentence(failures[0], repo_id, kind) if failures else None


def _sentence(failure: Exception, repo_id: str, kind: str) -> str:
    if isinstance(failure, GatedRepoError):
        return f"{repo_id} needs its terms accepted on the hub, and a login (`hf auth login`)."
    if isinstance(failure, RepositoryNotFoundError):
        return f"The Hugging Face hub has no public {kind} {repo_id} (or it needs `hf auth login`)."
    reason = str(failure).strip() or "no reason given"
    return f"The Hugging Face hub cannot be reached ({type(failure).__name__}: {reason})."
