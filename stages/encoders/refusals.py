"""What the Hugging Face Hub answers to those who may not read a repository, told apart and explained."""

from __future__ import annotations

from typing import Final, Literal

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from store.errors import AccessError, FrostgridError, InputError

Reason = Literal[
    "no token",
    "token not valid",
    "token expired",
    "token lacks the scope",
    "access not requested",
    "access not yet granted",
    "access rejected",
    "forbidden",
    "private or missing",
    "offline",
    "unreachable",
    "failed",
]

_SETTINGS: Final = "https://huggingface.co/settings/tokens"
_SCOPE: Final = "Read access to contents of all public gated repos you can access"

# The Hub gives all refusals of a gated repository one error code ("GatedRepo") or none; only its sentence tells them
# apart. Compared in lower case; it comes in the header X-Error-Message and again in the body.
_SENTENCES: Final[tuple[tuple[str, Reason], ...]] = (
    ("enable access to public gated repositories", "token lacks the scope"),
    ("fine-grained token settings", "token lacks the scope"),
    ("is awaiting a review", "access not yet granted"),
    ("has been rejected", "access rejected"),
    ("not in the authorized list", "access not requested"),
    ("has been reset", "access not requested"),
)


class RefusedByHub(AccessError):
    """The weights are on the Hub and do not come from there now; ``reason`` says why in two or three words."""

    def __init__(self, reason: Reason, what: str, *, where: str, remedy: str) -> None:
        self.reason = reason
        super().__init__(what, where=where, remedy=remedy)


def is_network_error(error: Exception, kind: str) -> bool:
    """Return whether ``error`` is a ``kind`` of the HTTP library that huggingface_hub brings along.

    By name, since that library is not ours to import: it was httpx in 1.0 and is httpx2 now.
    """
    return any(known.__name__ == kind for known in type(error).__mro__)


def page_of(repo: str) -> str:
    """Return the page where people ask for access to a repository."""
    return f"https://huggingface.co/{repo}"


def explained(
    error: Exception, name: str, repo: str, revision: str, files: tuple[str, ...], given: str
) -> FrostgridError:
    """Return the error to show for what huggingface_hub raised when ``files`` of ``repo`` were asked for.

    ``given`` ends the sentence on how they can be given by hand.

    A :class:`RefusedByHub` where another token, some patience or a network would help, an ``InputError`` where the
    repository, the revision or the files do not exist. Nothing of the server's answer is repeated in it, since a
    careless server could repeat the token.
    """
    page = page_of(repo)
    by_hand = f"Or download it from {page} elsewhere and give the file {given}"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled) and constants.HF_HUB_OFFLINE:
        return RefusedByHub(
            "offline",
            f"the weights of {name} are not in the local cache and HF_HUB_OFFLINE forbids to download them",
            where=repo,
            remedy=f"Unset HF_HUB_OFFLINE. {by_hand}",
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return InputError(
            f"the repository has no file {' or '.join(files)} (404)",
            where=f"{repo}@{revision}",
            remedy=f"Look at {page}, or give the file with --weights.",
        )
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            "there is no such revision on the Hub (404)",
            where=f"{repo}@{revision}",
            remedy=f"Look at {page}.",
        )
    if isinstance(error, UnicodeEncodeError):  # from the request's headers, where the token goes
        return RefusedByHub(
            "token not valid",
            f"the Hugging Face token holds characters that no token has, so that {name} cannot be asked for",
            where=repo,
            remedy="Look at HF_TOKEN, for typographic quotes say, or run: hf auth login.",
        )
    if not isinstance(error, HfHubHTTPError):
        reached = not (isinstance(error, OSError) or is_network_error(error, "TransportError"))
        return RefusedByHub(
            "failed" if reached else "unreachable",
            f"the weights of {name} cannot be downloaded ({type(error).__name__})"
            if reached
            else f"the Hugging Face Hub cannot be reached for {name} ({type(error).__name__})",
            where=repo,
            remedy=f"Check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT, and try again. {by_hand}",
        )
    reason = _reason(error)
    if reason is None:
        return InputError(
            "there is no such repository on the Hub (404)",
            where=f"{repo}@{revision}",
            remedy=f"Look at {page}.",
        )
    what, remedy = _words(reason, name, page)
    status = error.response.status_code
    return RefusedByHub(reason, f"{what} ({status})", where=repo, remedy=f"{remedy} {by_hand}")


def _reason(error: HfHubHTTPError) -> Reason | None:
    """Return why the Hub refused; None where it says that there is no such repository."""
    status = error.response.status_code
    sentence = (error.server_message or "").lower()
    if status == 401 and "authorization" not in error.response.request.headers:
        return "no token" if isinstance(error, GatedRepoError) else "private or missing"
    if status == 401:
        return "token expired" if "is expired" in sentence else "token not valid"
    if status == 403:
        return next((reason for phrase, reason in _SENTENCES if phrase in sentence), "forbidden")
    return None if isinstance(error, RepositoryNotFoundError) else "failed"


def _words(reason: Reason, name: str, page: str) -> tuple[str, str]:
    """Return what is wrong and what to do next."""
    new_token = f"Make a new one at {_SETTINGS} and set HF_TOKEN, or run: hf auth login."
    words: dict[Reason, tuple[str, str]] = {
        "no token": (
            f"the weights of {name} need a login and no Hugging Face token was found",
            f"Ask for access at {page}, then set HF_TOKEN or run: hf auth login.",
        ),
        "private or missing": (
            f"the Hub shows no such repository for {name} to people without a Hugging Face token: it is private, "
            "or its name is wrong",
            f"Look whether {page} opens. If it is yours, set HF_TOKEN or run: hf auth login.",
        ),
        "token not valid": (
            f"the Hub did not accept the Hugging Face token for {name}: it is misspelt, revoked or of another site",
            f"{new_token} Then look whether {page} opens.",
        ),
        "token expired": (
            f"the Hugging Face token has expired and the weights of {name} need one",
            f"{new_token} Then look whether {page} opens.",
        ),
        "token lacks the scope": (
            f"the Hugging Face token may not read gated repositories, as {name} is: it is a fine-grained token "
            "without that permission",
            f"Tick “{_SCOPE}” for it at {_SETTINGS}, or take a token of type Read; access itself is asked for "
            f"at {page}.",
        ),
        "access not requested": (
            f"the account of the Hugging Face token has not asked for access to the weights of {name}",
            f"Log in with that account at {page} and accept the terms there.",
        ),
        "access not yet granted": (
            f"access to the weights of {name} was asked for and its authors have not granted it yet",
            f"Wait for their answer, which comes by mail and shows at {page}; then run this again.",
        ),
        "access rejected": (
            f"the authors of {name} rejected this account's request for its weights",
            f"Write to them ({page}/discussions), or use another encoder.",
        ),
        "forbidden": (
            f"the account of the Hugging Face token may not read the weights of {name}",
            f"Look at {page}, logged in with that account, and at the token's rights ({_SETTINGS}).",
        ),
        "failed": (f"the Hub did not deliver the weights of {name}", "Try again later."),
    }
    return words[reason]
