"""Storage faults: exceptions of all backends sorted into a few kinds, each with a one-line message without secrets."""

from __future__ import annotations

import asyncio
import errno
import http.client
import sys
from dataclasses import dataclass
from typing import Any, Literal

from raymat.errors import StorageError, one_line
from raymat.storage.urls import redact_text

Kind = Literal[
    "missing", "bucket", "denied", "credentials", "settings", "full", "readonly", "clash", "unreachable", "stranger",
    "busy", "other",
]  # fmt: skip


class MissingFileError(StorageError):
    """Error for a file, or a part of one, that is missing from the storage."""


class MissingBucketError(StorageError):
    """Error for a bucket that does not exist."""


class DeniedError(StorageError):
    """Refusal of the storage: this account may not do that, or its keys are not accepted."""


class SettingsError(OSError):
    """Error in what the environment or a provider's files say of a storage; nothing was asked of it."""


@dataclass(frozen=True)
class Fault:
    """Classified exception of a backend; a `transient` fault may pass when retried."""

    kind: Kind
    transient: bool
    detail: str

    def error(self, action: str, url: str) -> StorageError:
        """Return the exception for the user: `action` as in "read" or "write", `url` without secrets."""
        if self.kind == "missing":
            return MissingFileError(f"cannot {action} {url}: it does not exist")
        named = {"bucket": MissingBucketError, "denied": DeniedError}
        kind = named.get(self.kind, StorageError)
        return kind(f"cannot {action} {url}: {self.advice}")

    @property
    def advice(self) -> str:
        """What happened and what to do, for the end of a message."""
        return _ADVICE[self.kind].format(self.detail)

    @property
    def refuses_keys(self) -> bool:
        """Whether the account's keys are not accepted, whatever was asked."""
        return self.kind == "credentials" or self.detail in _REFUSED_KEYS


_ADVICE: dict[Kind, str] = {
    "bucket": "there is no bucket or container of that name; create it, or correct the URL",
    "denied": "permission denied ({}); give this account the rights that it needs there, or use another URL",
    "credentials": "no usable credentials ({}); give the machine a role, or set the provider's variables or files",
    "settings": "the provider's settings cannot be used ({}); correct its variables (AWS_...) or files (~/.aws)",
    "full": "no space left there ({}); free some, a run can keep fewer checkpoints",
    "readonly": "it is read-only; use another URL",
    "clash": "a file lies where a folder should be, or the other way round ({}); use another name or URL",
    "unreachable": "the storage does not answer ({}); check the network and the endpoint, and the proxy if there is one",
    "stranger": "what answers is no storage of that kind ({}); check the endpoint, and the proxy if there is one",
    "busy": "the storage is overloaded or fails ({}); wait, or look at the provider's state",
    "other": "{}",
}

_FOREIGN = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "botocore.parsers": ("ResponseParserError",),
    "aiohttp": ("ClientError",),
    "gcsfs.retry": ("HttpError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "requests.exceptions": ("RequestException",),
    "azure.core.exceptions": ("AzureError",),
}

_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "SSOError",
    "LoginError",
    "TokenRetrievalError",
    "RefreshWithMFAUnsupportedError",
)
_SETTINGS = (
    "SettingsError",
    "BaseEndpointResolverError",
    "ConfigNotFound",
    "ConfigParseError",
    "EndpointProviderError",
    "InvalidChecksumConfigError",
    "InvalidConfigError",
    "InvalidDefaultsMode",
    "InvalidEndpointConfigurationError",
    "InvalidIMDSEndpointError",
    "InvalidIMDSEndpointModeError",
    "InvalidProxiesConfigError",
    "InvalidRegionError",
    "InvalidRetryConfigurationError",
    "InvalidS3AddressingStyleError",
    "InvalidS3UsEast1RegionalEndpointConfigError",
    "InvalidSTSRegionalEndpointsConfigError",
    "ProfileNotFound",
    "UnknownRegionError",
    "UnsupportedS3ConfigurationError",
)
_REFRESH = ("CredentialRetrievalError", "RefreshError", "TransportError")
_UNREACHABLE = (
    "EndpointConnectionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "SilentError",
    "ConnectionClosedError",
    "ProxyConnectionError",
    "SSLError",
    "HTTPClientError",
    "ClientConnectionError",
    "ClientPayloadError",
    "IncompleteReadError",
    "ServiceRequestError",
    "ServiceResponseError",
)
_REFUSED_KEYS = {
    *("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "InvalidSecurity", "NotSignedUp"),
    *("RequestExpired", "RequestTimeTooSkewed", "SignatureDoesNotMatch", "TokenRefreshRequired"),
    *("AuthenticationFailed", "InvalidAuthenticationInfo"),  # Azure's
}  # fmt: skip
"""Codes for keys that expired, were revoked or are mistyped; on S3 some come with status 400."""
_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem", *_REFUSED_KEYS}
_NOT_OFFERED = {"MethodNotAllowed", "NotImplemented"}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "InvalidBucketName")
_FULL_CODES = {
    *("QuotaExceeded", "InsufficientStorage", "EntityTooLarge", "AccountBeingCreated"),
    *("XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"),
}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLASH = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP}
_BUSY = {429, 500, 502, 503, 504}
_MAY_PASS = {408, 409, 425}
"""Further statuses that may pass; any other of 400 to 499, and 501, answers the same request in the same way for ever."""
_BROKEN_ON_THE_WAY = {"BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch"}
"""Codes with status 400 for requests that did not arrive whole."""
_PERMANENT = {errno.ENAMETOOLONG, errno.ENOTSUP, errno.ENODEV}


def backend_errors(*more: type[BaseException]) -> tuple[type[BaseException], ...]:
    """Return every exception type by which a storage backend may report a fault, and `more`, for an except clause.

    Classes of a provider's package are looked up only if that package is loaded, so that none is
    needed.
    """
    found = [*more, OSError, asyncio.TimeoutError, http.client.HTTPException]
    for module, names in _FOREIGN.items():
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


def classify(error: BaseException, action: str = "read") -> Fault:
    """Classify an exception of `backend_errors()`: by the provider's code, then by type, then by errno.

    `action`: what was tried; only what is read can be missing.
    """
    error = unasked_fault(error) or error
    code, status = _code(error), _status(error)
    hidden = _status(error.__cause__)  # where s3fs does not know the code
    detail = redact_text(one_line(error))
    names = {kind.__name__ for kind in type(error).__mro__}
    number = error.errno if isinstance(error, OSError) else None
    if code in _NO_BUCKET:
        return Fault("bucket", False, detail)
    if "ResponseParserError" in names or _is_web_page(error, action):
        passes = (status or hidden or 500) >= 500
        return Fault("stranger", passes, "a web page came, no XML")
    if isinstance(error, FileNotFoundError) or status == 404:
        return Fault("missing" if action == "read" else "other", False, detail)
    if names & {*_CREDENTIALS, *_REFRESH}:
        return Fault("credentials", bool(names & set(_REFRESH)), detail)
    if names & set(_SETTINGS):
        return Fault("settings", False, detail)
    unsent = getattr(error, "kwargs", {}).get("error")  # what an HTTP client raised
    if isinstance(unsent, ValueError):
        return Fault("settings", False, redact_text(one_line(unsent)))
    # Before permissions: an exceeded quota comes as 403. Some providers give a status without a code.
    if number in _FULL or code in _FULL_CODES or "507" in (code, str(status)):
        named = code and code not in detail  # s3fs replaces some codes by a number of this system
        return Fault("full", False, f"{code}: {detail}" if named else detail)
    if code in _NOT_OFFERED or 405 in (status, hidden):  # s3fs makes them a PermissionError
        return Fault("other", False, f"{code or 405}: {detail}")
    if isinstance(error, PermissionError) or code in _DENIED or {status, hidden} & {401, 403}:
        return Fault("denied", False, code or detail)
    if number == errno.EROFS:
        return Fault("readonly", False, detail)
    if number in _CLASH or isinstance(error, (FileExistsError, NotADirectoryError)):
        return Fault("clash", False, detail)
    if isinstance(error, (ConnectionError, TimeoutError, asyncio.TimeoutError)):
        return Fault("unreachable", True, detail)
    if names & set(_UNREACHABLE):
        return Fault("unreachable", True, detail)
    status = status or hidden or 0
    if status in _BUSY:
        return Fault("busy", True, detail)
    refused = (400 <= status < 500 or status == 501) and status not in _MAY_PASS
    permanent = number in _PERMANENT or "ParamValidationError" in names
    permanent = permanent or (refused and code not in _BROKEN_ON_THE_WAY)
    return Fault("other", not permanent, f"{type(error).__name__}: {detail}")


def unasked_fault(error: BaseException) -> OSError | None:
    """Return why a server could not be asked for a file that is said to be missing, as fsspec's web file system says then."""
    cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
    names = {kind.__name__ for kind in type(cause).__mro__}
    unanswered = isinstance(cause, (ConnectionError, TimeoutError)) or names & set(_UNREACHABLE)
    return cause if isinstance(cause, OSError) and unanswered else None


def reason(error: BaseException) -> str:
    """Return what a foreign exception says, as one short line without secrets; its class's name if it says nothing."""
    if isinstance(error, OSError) and error.strerror:
        return redact_text(str(error.strerror))
    return redact_text(one_line(error))


def _is_web_page(error: BaseException, action: str) -> bool:
    """Return whether a web page came in the place of an object store's answer: a login page, or a proxy's complaint.

    It may also tell of rights, or that a file is missing.
    """
    found = [_metadata(error), _metadata(error.__cause__)]
    told = {401, 403, *((404,) if action == "read" else ())}
    return any(
        each.get("HTTPHeaders", {}).get("content-type", "").startswith("text/html")
        and each.get("HTTPStatusCode") not in told
        for each in found
    )


def _metadata(error: BaseException | None) -> dict[str, Any]:
    """Return what botocore keeps of an answer beside its body; empty where there was none."""
    response = getattr(error, "response", None)
    return response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}


def _code(error: BaseException) -> str:
    """Return the provider's error code, as S3 and Azure give it; s3fs hides it in the cause."""
    for candidate in (error, error.__cause__):
        response = getattr(candidate, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        code = getattr(candidate, "error_code", None)
        if isinstance(code, str):
            return code
    return ""


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status, or None if the exception has none."""
    found = (
        _metadata(error).get("HTTPStatusCode"),
        getattr(error, "status_code", None),
        getattr(error, "status", None) or getattr(error, "code", None),
    )
    for status in found:
        if isinstance(status, int | str) and str(status).isdigit():
            return int(status)
    return None
