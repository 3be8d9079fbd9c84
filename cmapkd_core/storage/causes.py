"""By error code of S3 and by class of what botocore raises: cause and way out, with names of s3_failure's words.

No boto3 here: the names of error codes and classes are enough.
"""

from __future__ import annotations

STYLE = "AWS_S3_ADDRESSING_STYLE"

_RIGHTS = (
    "access is denied",
    "these credentials need s3:GetObject, s3:PutObject and s3:DeleteObject there, and s3:ListBucket on the bucket",
)
KEYS = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the profile or the role"
_WRONG = ("the credentials are wrong", KEYS)
_NONE = (
    "there are no credentials",
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give the pod a role",
)
_EXPIRED = (
    "the credentials have expired",
    "renew them (AWS_SESSION_TOKEN with both keys; of a profile: aws sso login) and start the same command again",
)
_UNFETCHED = ("the profile's or role's credentials cannot be had ({detail})", _NONE[1])
_PROFILE = ("{detail}", "correct AWS_PROFILE")
REGION = ("the bucket is in another region ({detail})", "set AWS_REGION to the bucket's")
_SILENT = ("{endpoint} does not answer ({detail})", "check AWS_ENDPOINT_URL and the network")
_WRITE = "write AWS_ENDPOINT_URL as http://host:port or https://host"
CUT = ("the connection to {endpoint} broke off ({detail})", "try again")
_CLOCK = ("the clocks of this machine and of {endpoint} differ ({detail})", "set this machine's clock, as by NTP")
_PATH_STYLE = ("the server refuses the bucket in the path ({detail})", f"set {STYLE}=virtual")
_FULL = ("the server's storage or quota is full ({detail})", "free some space there, or have the quota raised")
_SETTING = ("{detail}", "correct that setting")
_NOTHING = ("{endpoint} knows nothing there ({code}: {detail})", "correct the URL or AWS_ENDPOINT_URL")
_ASTRAY = ("{endpoint} does not answer as S3 does ({detail})", "set AWS_ENDPOINT_URL to the address of S3's API")
_BUSY = ("{endpoint} is overloaded", "try again later")
_FAILED = ("{endpoint} failed ({detail})", "try again later, or look into its log")

CAUSES: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("the bucket does not exist at {endpoint}", "create it, or correct the URL or AWS_ENDPOINT_URL"),
    "NoSuchKey": _NOTHING,
    "404": _NOTHING,
    "InvalidBucketName": ("the bucket's name is not valid", "correct the URL"),
    "ParamValidationError": ("the bucket's name is not valid", "correct the URL"),
    "AccessDenied": _RIGHTS,
    "403": _RIGHTS,
    "AccountProblem": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "InvalidAccessKeyId": _WRONG,
    "InvalidClientTokenId": _WRONG,
    "SignatureDoesNotMatch": _WRONG,
    "InvalidToken": _WRONG,
    "Unauthorized": _WRONG,
    "401": _WRONG,
    "InvalidIdentityToken": _WRONG,
    "NoCredentialsError": _NONE,
    "PartialCredentialsError": _NONE,
    "ProfileNotFound": _PROFILE,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "UnauthorizedSSOTokenError": _EXPIRED,
    "SSOTokenLoadError": _EXPIRED,
    "LoginRefreshRequired": _EXPIRED,
    "TokenRetrievalError": _EXPIRED,
    "CredentialRetrievalError": _UNFETCHED,
    "MetadataRetrievalError": _UNFETCHED,
    "NoAuthTokenError": _UNFETCHED,
    "RequestTimeTooSkewed": _CLOCK,
    "RequestExpired": _CLOCK,
    "RequestInTheFuture": _CLOCK,
    "PermanentRedirect": REGION,
    "301": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "IllegalLocationConstraintException": REGION,
    "InvalidRegion": REGION,
    "SecondLevelDomainForbidden": _PATH_STYLE,
    "PathStyleDomainForbidden": _PATH_STYLE,
    "InvalidPathAccess": _PATH_STYLE,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "507": _FULL,
    "XMinioStorageFull": _FULL,
    "NotImplemented": (
        "the server does not know this request ({detail})",
        "use one that has S3's PUT with If-None-Match and multipart uploads",
    ),
    "FlexibleChecksumError": ("the bytes do not have the checksum that the server gives ({detail})", "try again"),
    "EndpointConnectionError": _SILENT,
    "ConnectTimeoutError": _SILENT,
    "ReadTimeoutError": _SILENT,
    "ProxyConnectionError": (
        "the proxy does not lead to {endpoint} ({detail})",
        "correct {proxy}, or put {host} into NO_PROXY",
    ),
    "SSLError": (
        "{endpoint} has no valid certificate ({detail})",
        "set AWS_CA_BUNDLE to a file with its authority's certificate (PEM), or correct AWS_ENDPOINT_URL",
    ),
    "InvalidRegionError": ("{detail}", "correct AWS_REGION"),
    # What botocore says here repeats the address, and with it a login that nothing marks as one.
    "ValueError": ("the address of the S3 server is no URL", _WRITE),
    "EndpointResolutionError": ("{detail}", f"{_WRITE}, and correct AWS_REGION"),
    "ConnectionClosedError": CUT,
    "ConnectionError": CUT,
    "ResponseStreamingError": CUT,
    "IncompleteReadError": CUT,
    "HTTPClientError": CUT,
    "HTTPError": CUT,
    "LookupError": _ASTRAY,
    "SlowDown": _BUSY,
    "503": _BUSY,
    "TooManyRequests": _BUSY,
    "429": _BUSY,
    "InternalError": _FAILED,
    "500": _FAILED,
    "502": _FAILED,
    "504": _FAILED,
    "InvalidChecksumConfigError": _SETTING,
    "InvalidConfigError": _SETTING,
    "InvalidS3AddressingStyleError": _SETTING,
    "ConfigParseError": _SETTING,
    "ConfigNotFound": _SETTING,
}

# Cause -> name in exits.ENDS; of what is not here the server is the cause, or the way to it.
ENDS = {
    **dict.fromkeys((_WRONG, _NONE, _EXPIRED, _UNFETCHED, _PROFILE), "login"),
    _RIGHTS: "denied",
    _FULL: "full",
}

# What servers say that do not know the checksums in headers and trailers that botocore sends by default since 2025.
CHECKSUM_CODES = frozenset(
    (
        "XAmzContentSHA256Mismatch",
        "MissingContentLength",
        "NotImplemented",
        "InvalidArgument",
        "InvalidRequest",
        "SignatureDoesNotMatch",
        "Unauthorized",
        "BadDigest",
        "InvalidDigest",
        "IncompleteBody",
        "400",
        "401",
        "411",
        "501",
    )
)
