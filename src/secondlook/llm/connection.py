"""How an endpoint is reached: its address, the key, proxies and certificates of the environment,
and why it is not reached."""

from __future__ import annotations

import os
import socket
import ssl
import urllib.request

import httpx

from secondlook.errors import InputError
from secondlook.llm.replies import short

MAX_CONNECT_SECONDS = 10.0
"""After these a connection counts as not made."""
COMPLETIONS = "/chat/completions"


def completions_url(base_url: str) -> httpx.URL:
    """Where questions are sent, of an endpoint's base address (or of this address itself). Raises
    InputError for one that is none."""
    if not base_url.startswith(("http://", "https://")):
        raise InputError(f"judge: url is {base_url!r}; it must begin with http:// or https://")
    try:
        parsed_url = httpx.URL(base_url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(
            f"judge: url is {base_url!r}, which is no address ({error}); write it as "
            "http://localhost:8000/v1"
        ) from error
    port = parsed_url.port
    if port is not None and not 0 < port < 2**16:
        raise InputError(
            f"judge: url is {base_url!r}, whose port is {port}; it must lie between 1 and 65535"
        )
    if not parsed_url.host or " " in base_url:
        raise InputError(
            f"judge: url is {base_url!r}, which names no host; write it as http://localhost:8000/v1"
        )
    base_path = parsed_url.path.rstrip("/").removesuffix(COMPLETIONS)
    return parsed_url.copy_with(path=base_path + COMPLETIONS)


def without_password(url: httpx.URL | str) -> str:
    """An address as it is shown: without the password that it may hold."""
    return short(str(httpx.URL(url).copy_with(userinfo=b"")))


def key_in(variable: str) -> str:
    """The key that an environment variable holds, or "". Raises InputError for one that no header
    can carry."""
    key = os.environ.get(variable, "").strip()
    for character in key:
        if not "!" <= character <= "~":  # the visible characters of ASCII
            raise InputError(
                f"judge: {variable} holds {character!r}, which no key does; set it to the key "
                "alone, without quotation marks"
            )
    return key


def open_client(
    url: httpx.URL, key_variable: str, timeout: float, connections: int
) -> httpx.AsyncClient:
    """A client for one address: with its key, and with the environment's proxy and certificates
    where they concern it. ``timeout`` is in seconds.

    Raises InputError that names the variable which does not serve.
    """
    key = key_in(key_variable)
    proxy, variable = proxy_of(url)
    proxy_scheme = (proxy or "").partition(":")[0]
    is_encrypted = "https" in (url.scheme, proxy_scheme)
    certificates = _certificates() if is_encrypted else False
    try:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, MAX_CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            proxy=proxy,
            verify=certificates,
            # what the environment says is read here, where it concerns this address
            trust_env=False,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"judge: {variable} holds a proxy that is not to be used ({short(str(error))}); "
            f"correct it, or name {url.host} in NO_PROXY"
        ) from error


def proxy_of(url: httpx.URL) -> tuple[str | None, str]:
    """The proxy that the environment gives for an address, and the variable that says so; None and
    "" where there is none."""
    if urllib.request.proxy_bypass(url.netloc.decode("ascii")):
        return None, ""
    proxies = urllib.request.getproxies()  # {"http": …, "https": …, "all": …}
    scheme = url.scheme if proxies.get(url.scheme) else "all"
    proxy = proxies.get(scheme)
    if not proxy:
        return None, ""
    variable = f"{scheme}_proxy"
    if variable not in os.environ:  # both spellings are common
        variable = variable.upper()
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy, variable


def _certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl's errors are among these
        certificate_file = os.environ.get("SSL_CERT_FILE", "")
        raise InputError(
            f"judge: SSL_CERT_FILE is {certificate_file!r}, which is no file of certificates "
            f"({error}); correct or unset it"
        ) from error


def failure_cause(error: BaseException) -> tuple[str, bool]:
    """Why a connection was not made, in words, and whether waiting may help."""
    causes = _causes(error)
    # what waiting does not help comes first, wherever in the chain it stands
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return f"its host is unknown ({cause.strerror})", False
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not accepted ({cause.verify_message}); SSL_CERT_FILE may name "
                "others",
                False,
            )
        if isinstance(cause, ssl.SSLError):
            return (
                f"it does not speak TLS ({cause.reason or cause}); is its address http:// in place "
                "of https://?",
                False,
            )
    # a host of several addresses fails with several errors, of which a refusal says most
    for cause in causes:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused", True
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower(), True
    return short(str(error)) or type(error).__name__, True


def _causes(error: BaseException) -> list[BaseException]:
    """An error, and all that it is a group of, comes from or was raised amid."""
    unvisited: list[BaseException | None] = [error]
    causes: list[BaseException] = []
    while unvisited:
        cause = unvisited.pop()
        if cause is not None and cause not in causes:
            causes.append(cause)
            parts = getattr(cause, "exceptions", ())  # of an ExceptionGroup
            unvisited += [*parts, cause.__cause__, cause.__context__]
    return causes
