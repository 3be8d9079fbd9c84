"""What a storage call raises, and what S3 and botocore say in words a user can act on.

No boto3 here: the names of error codes and classes are enough.
"""

from __future__ import annotations

from cmapkd_core.errors import InputError
from cmapkd_core.logins import without_login


class StorageError(InputError):
    """A place cannot be reached, read or written; the message names the URL, the cause and the way out."""


_RIGHTS = (
    "access is denied",
    "these credentials need s3:GetObject, s3:PutObject and s3:DeleteObject there, and s3:ListBucket on the bucket",
)
_WRONG = ("the credentials are wrong", "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role")
_NONE = (
    "there are no credentials",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the pod a role",
)
_EXPIRED = ("the credentials have expired", "renew them and start the same command again")
_REGION = ("the bucket is in another region", "set AWS_REGION to the bucket's")
_SILENT = ("{endpoint} does not answer ({detail})", "check AWS_ENDPOINT_URL and the network")
_WRITE = "write AWS_ENDPOINT_URL as http://host:port or https://host"
_CUT = ("the connection to {endpoint} broke off ({detail})", "try again")

# By error code of the service, and by class of what botocore raises: cause and way out.
_CAUSES: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("the bucket does not exist at {endpoint}", "create it, or correct the URL or AWS_ENDPOINT_URL"),
    "InvalidBucketName": ("the bucket's name is not valid", "correct the URL"),
    "ParamValidationError": ("the bucket's name is not valid", "correct the URL"),
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "AccountProblem": _RIGHTS,
    "InvalidAccessKeyId": _WRONG,
    "InvalidClientTokenId": _WRONG,
    "SignatureDoesNotMatch": _WRONG,
    "InvalidToken": _WRONG,
    "NoCredentialsError": _NONE,
    "PartialCredentialsError": _NONE,
    "ProfileNotFound": ("{detail}", "correct AWS_PROFILE"),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set it"),
    "PermanentRedirect": _REGION,
    "301": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "EndpointConnectionError": _SILENT,
    "ConnectTimeoutError": _SILENT,
    "ReadTimeoutError": _SILENT,
    "ProxyConnectionError": _SILENT,
    "SSLError": ("{endpoint} has no valid certificate ({detail})", "set AWS_CA_BUNDLE, or correct AWS_ENDPOINT_URL"),
    "InvalidRegionError": ("{detail}", "correct AWS_REGION"),
    # What botocore says here repeats the address, and with it a login that nothing marks as one.
    "ValueError": ("the address of the S3 server is no URL", _WRITE),
    "EndpointResolutionError": ("{detail}", f"{_WRITE}, and correct AWS_REGION"),
    "ConnectionClosedError": _CUT,
    "ConnectionError": _CUT,
    "ResponseStreamingError": _CUT,
    "IncompleteReadError": _CUT,
    "SlowDown": ("{endpoint} is overloaded", "try again later"),
}


def s3_failure(action: str, url: str, endpoint: str, error: Exception) -> StorageError:
    """The StorageError for `error`, met when `action` ("read", "write", ..) was tried on `url`."""
    error = getattr(error, "last_exception", error)  # what lies behind s3transfer's RetriesExceededError
    answer = (getattr(error, "response", None) or {}).get("Error", {})
    detail = answer.get("Message") or str(error).strip()
    names = [answer.get("Code", "")] + [kind.__name__ for kind in type(error).__mro__]
    cause, way_out = next(
        (_CAUSES[name] for name in names if name in _CAUSES), (" ".join(names[:1]) + ": {detail}", "")
    )
    told = without_login(cause.format(endpoint=endpoint, detail=detail)).removeprefix(": ")
    return StorageError(f"cannot {action} {url}: {told}" + (f"; {way_out}" if way_out else ""))
