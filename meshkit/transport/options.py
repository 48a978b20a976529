"""How to connect: what the caller says, else what the environment says."""

import os
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from meshkit.errors import ConfigError

DEFAULT_URL = "nats://127.0.0.1:4222"
_SCHEMES = ("nats", "tls", "ws", "wss")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the NATS servers and who connects.

    Attributes:
        urls: The servers of one cluster.
        credentials: File with a user's JWT and key (`.creds`).
        nkey: File with an nkey seed.
        user: User name, with `password`.
        password: Password, with `user`.
        token: Token.
        tls: The TLS context, if the connection must be encrypted.
    """

    urls: list[str]
    credentials: str | None = None
    nkey: str | None = None
    user: str | None = None
    password: str | None = None
    token: str | None = None
    tls: ssl.SSLContext | None = None

    def for_nats(self) -> dict[str, Any]:
        """Who connects, as nats-py's `connect` takes it."""
        return {
            "user_credentials": self.credentials,
            "nkeys_seed": self.nkey,
            "user": self.user,
            "password": self.password,
            "token": self.token,
            "tls": self.tls,
        }


def options(
    url: str | list[str] | None,
    *,
    credentials: str | os.PathLike[str] | None = None,
    nkey: str | os.PathLike[str] | None = None,
    user: str | None = None,
    password: str | None = None,
    token: str | None = None,
    tls_ca: str | os.PathLike[str] | None = None,
    tls_cert: str | os.PathLike[str] | None = None,
    tls_key: str | os.PathLike[str] | None = None,
) -> Options:
    """Options for a connection; what is not given comes from the environment.

    The variables are those of the `nats` command: NATS_URL, NATS_CREDS, NATS_NKEY, NATS_USER, NATS_PASSWORD,
    NATS_TOKEN, NATS_CA, NATS_CERT, NATS_KEY.

    Raises:
        ConfigError: A URL is none, a file is missing or of no use, or two ways to log in are mixed.
    """
    env = os.environ.get
    urls = _urls(url or env("NATS_URL") or DEFAULT_URL)
    if len({urlsplit(one).scheme in {"ws", "wss"} for one in urls}) > 1:
        raise ConfigError(f"{', '.join(map(redacted, urls))}: WebSocket addresses and others do not mix")
    origin = "given"
    if not any((credentials, nkey, user, password, token)):
        # Who says how to log in means that, and not half of what the environment says.
        origin = "in the environment, as NATS_CREDS, NATS_NKEY, NATS_USER, NATS_TOKEN,"
        credentials, nkey, user = env("NATS_CREDS"), env("NATS_NKEY"), env("NATS_USER")
        password, token = env("NATS_PASSWORD"), env("NATS_TOKEN")
    logins = {
        "credentials": _login("credentials", credentials, b"-----BEGIN NATS USER JWT-----"),
        "nkey": _login("nkey", nkey, b"SU"),
        "user": user,
        "token": token,
    }
    several = [name for name, value in logins.items() if value]
    if len(several) > 1:
        raise ConfigError(f"{' and '.join(several)} are {origin}: log in to NATS with one of them")
    if bool(password) != bool(user):
        raise ConfigError("a NATS user and a password go together; one of them is missing")
    tls = _tls(tls_ca or env("NATS_CA"), tls_cert or env("NATS_CERT"), tls_key or env("NATS_KEY"))
    if tls is None and any(urlsplit(one).scheme in {"tls", "wss"} for one in urls):
        tls = ssl.create_default_context()
    return Options(urls=urls, password=password, tls=tls, **logins)


def redacted(url: str) -> str:
    """A URL without user and password."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _urls(given: str | list[str]) -> list[str]:
    urls = [one.strip() for one in (given.split(",") if isinstance(given, str) else given)]
    return [_url(one) for one in urls if one] or [DEFAULT_URL]


def _url(given: str) -> str:
    url = given if "://" in given else f"nats://{given}"
    try:
        parts = urlsplit(url)
        valid = (
            parts.scheme in _SCHEMES
            and bool(parts.hostname)
            and not re.search(r"\s", url)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        valid = False
    if not valid:
        shown = url.rpartition("@")[2]  # without a password
        raise ConfigError(f"{shown!r} is no address of a NATS server; write nats://host:4222")
    return url


def _login(what: str, given: str | os.PathLike[str] | None, begins: bytes) -> str | None:
    path = _file(what, given)
    if path and not Path(path).read_bytes().lstrip().startswith(begins):
        raise ConfigError(f"{what} file {path!r} is none: it does not begin with {begins.decode()}")
    return path


def _file(what: str, given: str | os.PathLike[str] | None) -> str | None:
    if not given:
        return None
    path = Path(given).expanduser()
    if not path.is_file():
        raise ConfigError(f"{what} file {str(path)!r} does not exist")
    return str(path)


def _tls(
    ca: str | os.PathLike[str] | None,
    cert: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
) -> ssl.SSLContext | None:
    ca, cert, key = _file("TLS CA", ca), _file("TLS certificate", cert), _file("TLS key", key)
    if key and not cert:
        raise ConfigError("a TLS key is given without its certificate")
    if not ca and not cert:
        return None
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert:
            context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        raise ConfigError(
            f"the TLS files ({', '.join(filter(None, (ca, cert, key)))}) are of no use: {error.reason}"
        ) from None
    return context
