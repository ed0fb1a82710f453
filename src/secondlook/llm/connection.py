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

LONGEST_CONNECT = 10.0
"""Seconds until a connection counts as not made."""


def address(url: str) -> httpx.URL:
    """Where questions are sent, of an endpoint's base address. Raises InputError for one that is
    none."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"judge: url is {url!r}; it must begin with http:// or https://")
    try:
        base = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(
            f"judge: url is {url!r}, which is no address ({error}); write it as http://localhost:8000/v1"
        ) from error
    if base.port is not None and not 0 < base.port < 2**16:
        raise InputError(
            f"judge: url is {url!r}, whose port is {base.port}; it must lie between 1 and 65535"
        )
    if not base.host or " " in url:
        raise InputError(
            f"judge: url is {url!r}, which names no host; write it as http://localhost:8000/v1"
        )
    return base.copy_with(
        path=base.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    )


def shown(url: httpx.URL | str) -> str:
    """An address without the password that it may hold."""
    return short(str(httpx.URL(url).copy_with(userinfo=b"")))


def key_in(variable: str) -> str:
    """The key that an environment variable holds, or "". Raises InputError for one that no header
    can carry."""
    key = os.environ.get(variable, "").strip()
    for c in key:
        if not "!" <= c <= "~":
            raise InputError(
                f"judge: {variable} holds {c!r}, which no key does; set it to the key alone, "
                "without quotation marks"
            )
    return key


def client(to: httpx.URL, key_variable: str, timeout: float, connections: int) -> httpx.AsyncClient:
    """A client for one address: with its key, and with the environment's proxy and certificates
    where they concern it.

    Raises InputError that names the variable which does not serve.
    """
    key, (proxy, variable) = key_in(key_variable), proxy_of(to)
    encrypted = "https" in (to.scheme, (proxy or "").partition(":")[0])
    certificates = _certificates() if encrypted else False
    try:
        return httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            proxy=proxy,
            verify=certificates,
            # what the environment says is read here, where it concerns this address
            trust_env=False,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise InputError(
            f"judge: {variable} holds a proxy that is not to be used ({short(str(error))}); "
            f"correct it, or name {to.host} in NO_PROXY"
        ) from error


def proxy_of(to: httpx.URL) -> tuple[str | None, str]:
    """The proxy that the environment gives for an address, and the variable that says so; None
    where there is none."""
    if urllib.request.proxy_bypass(to.netloc.decode("ascii")):
        return None, ""
    given = urllib.request.getproxies()
    name = to.scheme if given.get(to.scheme) else "all"
    proxy = given.get(name)
    if not proxy:
        return None, ""
    variable = f"{name}_proxy"
    return (
        proxy if "://" in proxy else f"http://{proxy}",
        variable if variable in os.environ else variable.upper(),
    )


def _certificates() -> ssl.SSLContext:
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl's errors are among these
        file = os.environ.get("SSL_CERT_FILE", "")
        raise InputError(
            f"judge: SSL_CERT_FILE is {file!r}, which is no file of certificates ({error}); "
            "correct or unset it"
        ) from error


def cause(error: BaseException) -> tuple[str, bool]:
    """Why a connection was not made, in words, and whether waiting may help."""
    left: list[BaseException | None] = [error]
    met: list[BaseException] = []
    while left:
        one = left.pop()
        if one is not None and one not in met:
            met.append(one)
            left += [*getattr(one, "exceptions", ()), one.__cause__, one.__context__]
    for one in met:
        if isinstance(one, socket.gaierror):
            return f"its host is unknown ({one.strerror})", False
        if isinstance(one, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not accepted ({one.verify_message}); SSL_CERT_FILE may name "
                "others",
                False,
            )
        if isinstance(one, ssl.SSLError):
            return (
                f"it does not speak TLS ({one.reason or one}); is its address http:// in place of https://?",
                False,
            )
    for one in met:
        if isinstance(one, ConnectionRefusedError):
            return "connection refused", True
    for one in met:
        if isinstance(one, OSError) and one.errno:
            return os.strerror(one.errno).lower(), True
    return short(str(error)) or type(error).__name__, True
