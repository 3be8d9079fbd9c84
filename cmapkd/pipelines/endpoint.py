"""Reaching a Kubeflow Pipelines endpoint; every failure becomes one message that names it and what to check."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import ssl
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import kfp
import kfp_server_api
import requests
import urllib3

from cmapkd.pipelines.site import Site
from cmapkd_core.errors import InputError
from cmapkd_core.logins import refuse_login, without_login

REACH_SECONDS = 5

ANSWERS = {
    401: "it wants a token: put one into the environment variable KF_PIPELINES_TOKEN, or a newer one if it has expired",
    403: "you may not do this there: check `namespace` in the site file and your role in it",
    404: "the Pipelines API is there, but not what was asked of it: check that it was not deleted, that Kubeflow"
    " Pipelines is version 2, and that a proxy passes on all below /apis/v2beta1",
}
FAILING = "it is up but failing: try again in a minute, and look at the ml-pipeline pod's log"
NO_API = "there is no Pipelines API at this address: check `endpoint` in the site file (often https://HOST/pipeline)"
# What etcd, its client and Kubernetes' API say of an object that is too large.
TOO_LARGE = re.compile(r"request is too large|message larger than max|entity too large", re.IGNORECASE)
NO_RETRY = (
    "Kubeflow Pipelines cannot retry this run: it writes the states of all tasks into one object, uncompressed, and"
    " they are too large for it, as from about 30 finished tasks on. Submit it again as it was, with the same --run:"
    " finished stages stand, the others go on from their checkpoints"
)
ENDPOINT = "the endpoint (`endpoint` in the site file, or KF_PIPELINES_ENDPOINT)"


class EndpointError(Exception):
    """The endpoint cannot be reached or refuses; the message names it and what to check, and no login."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(without_login(message))
        self.status = status
        self.passing = status == 0 or status >= 500  # worth asking again


class Client(kfp.Client):  # type: ignore[misc]  # kfp has no types
    """kfp's client, but for three things.

    version: of Kubeflow Pipelines, such as "2.17.0", as its API says; "" where it does not.
    """

    version = ""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        api = self._run_api.api_client  # the one that all services have
        api.deserialize = functools.partial(_read, api.deserialize, given["host"])

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """The first answer; kfp asks five times with pauses."""
        return self._healthz_api.healthz_service_get_healthz()

    def retry_run(self, run_id: str) -> None:
        """The API's retry, for which kfp has no method.

        Raises:
            EndpointError: the run is too large for it; other refusals are kfp's ApiException.
        """
        try:
            self._run_api.run_service_retry_run(run_id)
        except kfp_server_api.ApiException as error:
            if (match := TOO_LARGE.search(str(error.body))) is None:
                raise
            raise EndpointError(f"{NO_RETRY} (it says: {match[0]})", 413) from None


def address(site: Site) -> str:
    """KF_PIPELINES_ENDPOINT, or the site's endpoint.

    Raises:
        InputError: neither is given, or it holds a login.
    """
    endpoint = os.environ.get("KF_PIPELINES_ENDPOINT") or site.endpoint
    if not endpoint:
        raise InputError(
            "no endpoint: copy site.example.toml to site.toml and fill in `endpoint`, or set KF_PIPELINES_ENDPOINT;"
            " --local runs the pipeline on this machine"
        )
    url = (endpoint if "://" in endpoint else f"https://{endpoint}").rstrip("/")
    refuse_login(ENDPOINT, url, "put a token into the environment variable KF_PIPELINES_TOKEN")
    return url


def connect(site: Site) -> Client:
    """A client whose endpoint answers; the token is KF_PIPELINES_TOKEN, or what kfp finds by its own means.

    Raises:
        InputError: no endpoint, or a `ca_file` that is none.
        EndpointError: no answer within seconds, or a refusal.
    """
    endpoint = address(site)
    if site.ca_file:
        _check_ca_file(site.ca_file)
    token = _token()
    known = {"authorization": f"Bearer {token}"} if token else {}
    with speaking_to(endpoint), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        health = f"{endpoint}/apis/v2beta1/healthz"
        answer = requests.get(health, headers=known, timeout=REACH_SECONDS, verify=site.ca_file or True)
        if answer.status_code == 404:
            raise EndpointError(f"{endpoint} answers 404: {NO_API}", 404)
        if answer.ok and not answer.headers.get("content-type", "").startswith("application/json"):
            raise _page(endpoint)
        made = Client(
            host=endpoint,
            namespace=site.namespace or "kubeflow",  # kfp's word for "not given"
            existing_token=token or None,
            ssl_ca_cert=site.ca_file or None,
        )
        with contextlib.suppress(ValueError, AttributeError):  # kfp's own model of this answer leaves the version out
            made.version = str(answer.json().get("tag_name") or "")
        return made


@contextlib.contextmanager
def speaking_to(endpoint: str) -> Iterator[None]:
    """Turn what goes wrong inside into an EndpointError, and keep kfp from printing its own links."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except kfp_server_api.ApiException as error:
        raise EndpointError(
            f"{endpoint} answers {error.status or 'nothing'}: {_meaning(error)}", error.status or 0
        ) from error
    except (kfp_server_api.OpenApiException, UnicodeDecodeError) as error:
        raise EndpointError(
            f"{endpoint} answers, but not as the Pipelines API v2beta1 does ({_first_line(str(error))}): check that"
            " Kubeflow Pipelines there is version 2, and that no proxy changes its answers"
        ) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        reason = getattr(error, "reason", None) or error
        raise EndpointError(
            f"{endpoint} does not answer ({_first_line(str(reason))}): check `endpoint` in the site file or"
            " KF_PIPELINES_ENDPOINT, the network or VPN, and that a port-forward still runs"
        ) from error
    except OSError as error:  # a file of this machine
        raise EndpointError(
            f"{endpoint} cannot be asked from here ({_first_line(str(error))}): check the files that REQUESTS_CA_BUNDLE"
            " and CURL_CA_BUNDLE name"
        ) from error


def _token() -> str:
    """KF_PIPELINES_TOKEN; what cannot stand in a header would be repeated by the errors of every layer below."""
    token = os.environ.get("KF_PIPELINES_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise InputError(
            "KF_PIPELINES_TOKEN is no token: it has blanks, line breaks or letters that no token has; put the token"
            " alone into it, without the word Bearer"
        )
    return token


def _check_ca_file(path: str) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as error:
        raise InputError(
            f"ca_file '{path}' of the site file cannot be used ({error.strerror or error}): name a file with the"
            " certificates (PEM) of the endpoint's authority, or leave it empty for a public one"
        ) from None


def _read(deserialize: Callable[[Any, str], Any], endpoint: str, response: Any, kind: str) -> Any:
    """What kfp makes of an answer. By itself it takes a page for an object without fields, and goes on with it."""
    try:
        json.loads(response.data)
    except ValueError:
        raise _page(endpoint) from None
    return deserialize(response, kind)


def _page(endpoint: str) -> EndpointError:
    return EndpointError(f"{endpoint} answers with a page and not as an API: is it a login page? {ANSWERS[401]}", 401)


def _meaning(error: kfp_server_api.ApiException) -> str:
    """What to do, and what the server says."""
    status, detail = error.status or 0, ""
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        answer = json.loads(error.body)
        detail = _first_line(str(answer.get("error") or answer.get("message") or ""))
    meaning = ANSWERS.get(status, FAILING if status >= 500 else "")
    if not meaning:
        return detail or _first_line(str(error.reason or "")) or "no reason given"
    return f"{meaning} (it says: {detail})" if detail else meaning


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300] if text.strip() else ""
