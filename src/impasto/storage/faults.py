"""Turns a failed request to an object store into one of Impasto's errors.

A fault of one object is an OSError, as for a file: the object is missing, or was received
incompletely. A fault of the store is a StorageError, which ends the work, since every other object
would fail too: no permission, expired credentials, no bucket, no answer.

Messages of libraries are not passed on: some contain signed URLs.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from impasto.errors import MissingDependencyError, StorageError
from impasto.invocation import install_packages
from impasto.remote_paths import key_of, scheme_of, shown

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
_UNKNOWN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidSecurity",
            "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "RefreshError",
            "DefaultCredentialsError", "UnauthorizedSSOTokenError"}  # fmt: skip
_DENIED = {"AccessDenied", "AllAccessDisabled", "PermissionError", "GatedRepoError", "Forbidden"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestLimitExceeded", "Throttling",
         "ThrottlingException", "TooManyRequests", "RequestTimeout"}  # fmt: skip
_WRONG_CLOCK = {"RequestTimeTooSkewed"}
_ARCHIVED = {"InvalidObjectState"}
_NO_BUCKET = {"NoSuchBucket", "RepositoryNotFoundError"}
_CUT_SHORT = {"ClientPayloadError", "IncompleteReadError", "ResponseStreamingError",
              "ContentLengthError", "IncompleteRead", "ProtocolError"}  # fmt: skip
_UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "gaierror",
                "ConnectionClosedError", "ClientConnectorError", "ServerDisconnectedError",
                "ConnectionRefusedError", "ConnectionResetError", "ConnectionError",
                "ServerTimeoutError", "TimeoutError", "FSTimeoutError", "ConnectError",
                "ConnectTimeout", "ReadTimeout", "NameResolutionError"}  # fmt: skip
_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface-hub", "memory": "fsspec"}
_VARIABLES = {
    "s3": "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "hf": "HF_TOKEN",
    "memory": "it asks for none",
}
_MOST_CAUSES = 8


@contextlib.contextmanager
def told(location: Path) -> Iterator[None]:
    """Turn errors with a location into ones that say what failed and why.

    Raises:
        OSError: One object is missing, or was received incompletely.
        StorageError: The store cannot be used.
        MissingDependencyError: The package for this kind of store is not installed.
    """
    try:
        yield
    except (StorageError, MissingDependencyError):
        raise
    except Exception as error:  # each store's library has its own exception classes
        raise fault_of(error, location) from error


def fault_of(
    error: BaseException, location: Path
) -> OSError | StorageError | MissingDependencyError:
    """Return the error to raise for one that a library raised."""
    if isinstance(error, (StorageError, MissingDependencyError)):
        return error
    names, url = names_of(error), shown(location)
    if isinstance(error, ImportError):
        scheme = scheme_of(location)
        return MissingDependencyError(
            f"{url} is read with the package {_PACKAGES[scheme]}, which is not installed. Install "
            f"it with: {install_packages(_PACKAGES[scheme])}",
            extra="remote",
        )
    bucket, scheme = key_of(location).split("/")[0], scheme_of(location)
    elsewhere = ", and AWS_ENDPOINT_URL if the store is not Amazon's" if scheme == "s3" else ""
    retries = " (AWS_MAX_ATTEMPTS and AWS_RETRY_MODE say how many)" if scheme == "s3" else ""
    if names & _ARCHIVED:  # libraries report it as a lack of permission
        return OSError(errno.EIO, "is in an archive of the store; restore it there first", url)
    for known, sentence in (
        (_WRONG_CLOCK, "the clock of this machine differs too much from the store's. Set it"),
        (_EXPIRED, "the credentials in the environment have expired. Renew them and start again"),
        (_UNKNOWN, "the store does not know the credentials in the environment, or there are none. "
                   f"Set them as for its own programs: {_VARIABLES[scheme]}"),
        (_NO_BUCKET, f"there is no bucket {bucket}. Check its name{elsewhere}"),
        (_DENIED, "the credentials in the environment do not permit this. Reading needs permission "
                  "to list the bucket and to get objects; caches and runs also need permission to "
                  "put and to delete"),
        (_BUSY, f"the store is too busy, also after all retries{retries}. Start again later; "
                "finished work is kept"),
    ):  # fmt: skip
        if names & known:
            return StorageError(f"{url}: {sentence}.")
    of_object = _fault_of_object(error, names, url)
    if of_object is not None:
        return of_object
    if names & _UNREACHABLE:
        return StorageError(f"{url}: the store cannot be reached. Check the network{elsewhere}.")
    return StorageError(f"{url}: the store answered with {' / '.join(sorted(names))}.")


def _fault_of_object(error: BaseException, names: set[str], url: str) -> OSError | None:
    """Return the error for a fault of one object, or None if the store is at fault."""
    if isinstance(error, FileNotFoundError) or names & {"NoSuchKey", "404", "EntryNotFoundError"}:
        return FileNotFoundError(errno.ENOENT, "not in the object store", url)
    if names & {"InvalidRange", "416"}:
        return OSError(errno.ERANGE, "is shorter than the requested range", url)
    if names & _CUT_SHORT:
        return OSError(errno.EIO, "was received incompletely from the object store", url)
    return None


def names_of(error: BaseException) -> set[str]:
    """Return the class names of an error and of its causes, and the store's error codes."""
    names: set[str] = set()
    seen: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if seen is None:
            break
        names.add(type(seen).__name__)
        if type(seen) is OSError and str(seen).startswith("Forbidden"):  # gcsfs/retry.py
            names.add("Forbidden")
        names |= _codes_of(seen)
        seen = seen.__cause__ or seen.__context__
    return names


def _codes_of(error: BaseException) -> set[str]:
    """Return the codes of botocore's, gcsfs's and the Hub's errors, and those of HTTP statuses."""
    response = getattr(error, "response", None)
    codes: set[str] = set()
    status = getattr(response, "status_code", None) or getattr(error, "code", None)
    if isinstance(response, dict):
        codes.add(str(response.get("Error", {}).get("Code", "")))
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    meant = {401: "InvalidToken", 403: "AccessDenied", 404: "404", 416: "416", 429: "SlowDown",
             500: "InternalError", 502: "ServiceUnavailable", 503: "SlowDown",
             504: "ServiceUnavailable"}  # fmt: skip
    if isinstance(status, (int, str)) and str(status).isdigit() and int(status) in meant:
        codes.add(meant[int(status)])
    return codes - {""}
