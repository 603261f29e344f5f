"""What the Hugging Face Hub answers to those who may not read or write a data set repository, explained.

Nothing of the server's answer is repeated, since a careless server could repeat the token.
"""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import urlsplit

from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # lazy there

from store.errors import AccessError, FrostgridError, InputError, StorageError

Doing = Literal["read", "written"]

_TOKENS: Final = "https://huggingface.co/settings/tokens"
_BILLING: Final = "https://huggingface.co/settings/billing"
_LOGIN: Final = "set HF_TOKEN or run: hf auth login"
_AGAIN: Final = {
    "read": "Run the same command again.",
    "written": "Run the same command again: what has arrived is kept.",
}

# hf_xet raises the same ConnectionError for an answer of its storage as for none; only the first holds a status.
_XET_ANSWER: Final = re.compile(r"HTTP status \w+ error \((\d{3}) ")

# The Hub refuses for want of space, of a token's scope or of a right with the same 403 and no code; only its sentence
# tells them apart. Compared in lower case.
_NO_SPACE: Final = ("storage limit", "storage patterns", "storage quota", "exceeded your storage")
_READ_ONLY_TOKEN: Final = ("use a write token", "fine-grained token", "token permissions")


def explained(error: Exception, *, url: str, page: str, doing: Doing) -> FrostgridError:
    """Return the error to show for what huggingface_hub raised while the place ``url`` was read or written.

    ``page`` is the repository's page in a browser. The result is an ``AccessError`` where another account, token or
    setting would help, an ``InputError`` where the revision does not exist, a ``StorageError`` for everything that
    time, space or a network would mend.
    """
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub wraps what goes wrong in its upload threads
    if isinstance(error, HfHubHTTPError):
        return _answered(error, url=url, page=page, doing=doing)
    if isinstance(error, OfflineModeIsEnabled):
        return AccessError(
            "HF_HUB_OFFLINE forbids to ask the Hugging Face Hub", where=url, remedy="Unset HF_HUB_OFFLINE."
        )
    if isinstance(error, UnicodeEncodeError):  # from the request's headers, where the token goes
        return AccessError(
            "The Hugging Face token holds characters that no token has",
            where=url,
            remedy="Look at HF_TOKEN, for typographic quotes say, or run: hf auth login.",
        )
    kind = type(error).__name__
    if isinstance(error, OSError) and error.filename is not None:
        return StorageError(
            f"A file to send cannot be read ({error.strerror or kind})",
            where=str(error.filename),
            remedy="Check the disk and the rights to read it, and run the same command again.",
        )
    by_xet = _XET_ANSWER.search(str(error)) if isinstance(error, ConnectionError) else None
    if by_xet is None and (isinstance(error, OSError) or _is_transport_error(error)):
        return StorageError(
            f"The connection to the Hugging Face Hub failed ({kind})",
            where=url,
            remedy=f"Check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT. {_AGAIN[doing]}",
        )
    if doing == "written":
        return StorageError(
            f"The large file storage of the Hugging Face Hub did not take the files ({by_xet[1] if by_xet else kind})",
            where=url,
            remedy=f"{_AGAIN[doing]} If it happens again, set HF_HUB_DISABLE_XET=1, which sends them another way, and "
            f"look at {page} and {_BILLING}, logged in with the account of the token.",
        )
    return StorageError(
        f"The Hugging Face Hub, or something in between, answered what the Hub never answers ({kind})",
        where=url,
        remedy=f"Check a proxy (HTTPS_PROXY) and HF_ENDPOINT. {_AGAIN[doing]}",
    )


def is_missing(error: HfHubHTTPError) -> bool:
    """Return whether the Hub says, to somebody it knows, that there is no such repository."""
    known = "authorization" in error.response.request.headers
    return known and error.response.status_code == 404 and not isinstance(error, RevisionNotFoundError)


def _answered(error: HfHubHTTPError, *, url: str, page: str, doing: Doing) -> FrostgridError:
    """Explain an answer of the Hub, or of the storage that it sent us to, that is not success."""
    response = error.response
    status = response.status_code
    sentence = (error.server_message or "").lower()
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            "The repository has no such branch, tag or commit (404)",
            where=url,
            remedy=f"Look at {page}/tree/main for its branches; a commit that was listed is gone where somebody "
            "rewrote the history: run the same command again.",
        )
    if status == 429:
        return StorageError(
            "The Hugging Face Hub takes no more requests or commits of this account for now (429)",
            where=url,
            remedy=f"Wait {_wait(error)}. {_AGAIN[doing]}",
        )
    if status in (402, 413, 507) or any(words in sentence for words in _NO_SPACE):
        return StorageError(
            f"The Hugging Face Hub has no more room for this account ({status})",
            where=url,
            remedy=f"Look at {_BILLING}, remove what is not needed or ask for more. {_AGAIN[doing]}",
        )
    if urlsplit(str(response.url)).netloc != urlsplit(page).netloc or status >= 500 or status < 401:
        return StorageError(
            f"The Hugging Face Hub or its storage did not do what was asked ({status})",
            where=url,
            remedy=f"Look at https://status.huggingface.co and try again later. {_AGAIN[doing]}",
        )
    if response.headers.get("X-Error-Code") == "GatedRepo":
        return AccessError(
            f"The repository is gated and may not be {doing} with the rights at hand ({status})",
            where=url,
            remedy=f"Ask for access at {page}, logged in with the account of the token; then {_LOGIN}.",
        )
    what, remedy = _refused(error, sentence, page=page, doing=doing)
    return AccessError(f"{what} ({status})", where=url, remedy=remedy)


def _refused(error: HfHubHTTPError, sentence: str, *, page: str, doing: Doing) -> tuple[str, str]:
    """Return what is wrong with the rights and what to do next."""
    status = error.response.status_code
    anonymous = "authorization" not in error.response.request.headers
    if anonymous and (doing == "written" or status == 403):
        return (
            f"Nothing may be {doing} without a Hugging Face token, and none was found",
            f"Make one of type {'Write' if doing == 'written' else 'Read'} at {_TOKENS}, then {_LOGIN}.",
        )
    if anonymous:
        return (
            "The Hub shows no such data set repository to people without a Hugging Face token: it is private, or "
            "its name is wrong",
            f"Look whether {page} opens. If you may see it, {_LOGIN}.",
        )
    if status == 401:
        expired = "is expired" in sentence
        return (
            "The Hugging Face token has expired"
            if expired
            else "The Hub did not accept the Hugging Face token: it is misspelt, revoked or of another site",
            f"Make a new one at {_TOKENS}, then {_LOGIN}.",
        )
    if status == 404:
        return (
            "The Hub shows no such data set repository to the account of the token: it does not exist, or it is "
            "private and this account may not see it",
            f"Look whether {page} opens in a browser. If not, ask its owner to let you in, correct the name, or make "
            "the repository at https://huggingface.co/new-dataset (private).",
        )
    if any(words in sentence for words in _READ_ONLY_TOKEN):
        return (
            f"The Hugging Face token lacks the right under which this repository may be {doing}",
            f"Take a token of type {'Write' if doing == 'written' else 'Read'}, or tick that right of a fine-grained "
            f"one for this repository, at {_TOKENS}.",
        )
    return (
        f"The account of the Hugging Face token has no right under which this repository may be {doing}",
        f"Ask the owner of {page} for it, or name a repository of your own; the token's rights are at {_TOKENS}.",
    )


def _wait(error: HfHubHTTPError) -> str:
    """Return how long the Hub wants to be left alone, in words."""
    limit = parse_ratelimit_headers(error.response.headers)
    after = error.response.headers.get("Retry-After", "")
    if limit is not None and limit.remaining == 0:
        return f"{limit.reset_in_seconds} s"
    return (
        f"{after} s" if re.fullmatch(r"\d{1,6}", after) else "an hour (about 128 commits an hour are taken)"
    )


def _is_transport_error(error: Exception) -> bool:
    """Return whether the HTTP library under huggingface_hub, which is not ours to import, lost the connection."""
    return any(known.__name__ == "TransportError" for known in type(error).__mro__)
