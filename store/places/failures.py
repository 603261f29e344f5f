"""What file systems elsewhere say when they refuse, in our words: what is wrong, where, and what to do."""

from __future__ import annotations

import asyncio
import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from store.errors import AccessError, FrostgridError, InputError, StorageError

# Exceptions of these packages say that something elsewhere failed; any other is a fault of ours and not explained.
_SERVICES = {
    *("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "adlfs", "requests", "urllib3"),
    *("httpx", "paramiko", "smbprotocol", "fsspec", "s3fs"),
}
_NO_CREDENTIALS = {
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
    *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "ProfileNotFound", "NoAuthTokenError"),
    *("DefaultCredentialsError", "RefreshError", "ClientAuthenticationError", "AuthenticationException"),
}
_NO_BUCKET = {"NoSuchBucket", "InvalidBucketName"}
_DENIED = {"401", "403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_AGAIN = "Check the network and the address, then run the same command again."
KEPT = "What has arrived is kept. "  # to be said only where something is copied
_CREDENTIALS = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`.",
    "gs": "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS.",
    "az": "Set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY.",
}
_FAMILY = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}


@contextmanager
def explained(protocol: str, where: str, *, copying: bool = False) -> Iterator[None]:
    """Turn what an fsspec file system of ``protocol`` raises in the block into our errors, about ``where``.

    ``copying``: files are on their way in the block, and the message is to say that those that arrived are kept.

    ``FileNotFoundError`` and ``FileExistsError`` pass through, unless a bucket is missing. What no file system raises
    passes through as well.
    """
    try:
        yield
    except FrostgridError:
        raise
    except Exception as error:
        explanation = _explanation(error, family(protocol), where, KEPT if copying else "")
        if explanation is None:
            raise
        raise explanation from error


def family(protocol: str) -> str:
    """Return the common name of protocols that are one: ``s3a`` is ``s3``, ``gcs`` is ``gs``, ``abfs`` is ``az``."""
    return _FAMILY.get(protocol, protocol)


def code_of(error: BaseException) -> str:
    """Return the error code of the service behind an exception ("NoSuchBucket", "403"), empty where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return str(response["Error"].get("Code", ""))
        for name in ("status", "status_code", "code"):
            value = getattr(seen, name, None)
            if isinstance(value, int):
                return str(value)
        seen = seen.__cause__
    return ""


def raise_unless_absent(error: FileNotFoundError) -> None:
    """Raise ``error`` again if it is the bucket that is missing, and not just a file in it."""
    if code_of(error) in _NO_BUCKET:
        raise error


READ_ONLY = "Pull from it, and push to a bucket, a data set repository or a folder."


def without_secrets(text: str) -> str:
    """Return a URL, or a text with URLs in it, without user names, passwords and signed queries."""
    text = re.sub(r"(\w://)[^/@\s]*@", r"\1", text)
    return re.sub(r"(\w://[^\s?\"']*)\?[^\s\"']*", r"\1", text)


def _explanation(error: Exception, protocol: str, where: str, kept: str) -> FrostgridError | None:
    code, said = code_of(error), without_secrets(str(error)) or type(error).__name__
    if _is_no_name(error):
        return InputError(
            "This is not the name of a bucket",
            where=where,
            remedy="Names of buckets have 3 to 63 lower case letters, digits, dots and hyphens: s3://my-bucket/folder.",
        )
    if code in _NO_BUCKET:
        remedy = "Check the name, or create the bucket first."
        return InputError("There is no bucket of this name", where=where, remedy=remedy)
    if type(error).__name__ in _NO_CREDENTIALS or "CREDENTIALS_MISSING" in said:
        remedy = _CREDENTIALS.get(protocol, "Give them the way the file system of this protocol expects.")
        return AccessError(
            f"There are no usable credentials for this place ({said})", where=where, remedy=remedy
        )
    if isinstance(error, PermissionError) or code in _DENIED:
        more = f" {_CREDENTIALS[protocol]}" if protocol in _CREDENTIALS else ""
        return AccessError(
            f"The place refuses this with the credentials at hand ({code or said})",
            where=where,
            remedy="Ask its owner for the right to list and read it, and for a push to write it; "
            f"or use other credentials.{more}",
        )
    if isinstance(error, FileNotFoundError | FileExistsError):
        return None
    if isinstance(error, NotImplementedError):
        return InputError("A place of this kind can only be read", where=where, remedy=READ_ONLY)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = f"{kept}Make room there, then run the same command again."
        return StorageError("The place is full", where=where, remedy=remedy)
    if _is_of_a_service(error):
        return StorageError(
            f"The place does not answer as it should: {said}", where=where, remedy=kept + _AGAIN
        )
    return None


def _is_no_name(error: BaseException | None) -> bool:
    """Whether botocore has refused the name of a bucket before it asked anybody."""
    while error is not None:
        if type(error).__name__ == "ParamValidationError":
            return "bucket name" in str(error).lower()
        error = error.__cause__
    return False


def _is_of_a_service(error: Any) -> bool:
    if isinstance(error, OSError | asyncio.TimeoutError | EOFError):
        return True
    return any(kind.__module__.partition(".")[0] in _SERVICES for kind in type(error).__mro__)
