"""Variables of our own for S3, which go before AWS's: a pod's container has others in it that read those.

Kubeflow Pipelines' launcher is one: where its own store is S3 by a role, AWS_ENDPOINT_URL and keys meant for the
artifacts would send its uploads to the wrong store.
"""

from __future__ import annotations

from collections.abc import Mapping

from cmapkd_core.errors import InputError

PREFIX = "CMAPKD_S3_"
# Parameter of boto3's client -> what it is called after AWS_ and after PREFIX. A value that is not set is AWS's.
_NAMES = {
    "endpoint_url": "ENDPOINT_URL",
    "region_name": "REGION",
    "aws_access_key_id": "ACCESS_KEY_ID",
    "aws_secret_access_key": "SECRET_ACCESS_KEY",
    "aws_session_token": "SESSION_TOKEN",
    "verify": "CA_BUNDLE",
}
_KEYS = ("aws_access_key_id", "aws_secret_access_key")


def parameters(environment: Mapping[str, str]) -> dict[str, str]:
    """What the client is given explicitly: values of our variables that are set.

    Raises:
        InputError: one of the two keys without the other, or a session's token without both.
    """
    values = {name: environment.get(PREFIX + of, "") for name, of in _NAMES.items()}
    keys = [name for name in _KEYS if values[name]]
    if len(keys) == 1 or (values["aws_session_token"] and not keys):
        both = " and ".join(PREFIX + _NAMES[name] for name in _KEYS)
        raise InputError(f"set both of {both}, or neither: then AWS's own variables, profile or role count")
    return {name: value for name, value in values.items() if value}


def renamed(environment: Mapping[str, str]) -> dict[str, str]:
    """AWS's variables that ours stand in for -> ours, for messages that name the one to correct."""
    given = {of for of in _NAMES.values() if environment.get(PREFIX + of)}
    return {f"AWS_{of}": PREFIX + of for of in sorted(given)}
