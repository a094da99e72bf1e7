"""Who may talk to whom: one CURVE key pair for each agent and operator, in a folder.

A folder holds ``NAME.key``, the public key of everyone who is trusted, and ``NAME.key_secret`` of those who work on
this machine. A connection is encrypted and both sides prove who they are; a key that is not in the folder is refused.
Taking a file away ends its owner's right to connect, without a restart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.auth import create_certificates, load_certificate
from zmq.auth.asyncio import AsyncioAuthenticator

from portend.errors import ConfigError, StorageError, law

__all__ = ["OPERATOR", "Keys", "Who", "authenticate", "check_name", "is_loopback", "load_keys", "make_keys"]

OPERATOR: Final = "coordinator"
"""Name of the key that may give agents orders and samples; tiers' keys may only send data."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOMAIN: Final = "portend"


def check_name(name: str) -> str:
    """Return ``name`` if it can name a key and its files; InvalidValue if not."""
    law(
        _NAME.fullmatch(name) is not None,
        f"a name has 1–64 letters, digits, dots, underscores or hyphens and begins with a letter or digit, "
        f"but got {name!r:.80}",
    )
    return name


def is_loopback(host: str) -> bool:
    """Whether nobody outside this machine reaches ``host``."""
    return host in ("localhost", "::1", "[::1]") or re.fullmatch(r"127\.\d+\.\d+\.\d+", host) is not None


def make_keys(folder: str | Path, names: Iterable[str]) -> dict[str, bool]:
    """Make a key pair for each name that has none yet; return whether each was made now.

    Secret keys can be read by their owner alone (0600), and so can the folder if it is made here (0700).

    Raises:
        InvalidValue: a name cannot be that of a file. StorageError: the folder cannot be written.
    """
    place, made = Path(folder), {}
    for name in map(check_name, names):
        made[name] = not _public(place, name).exists()
        if not made[name]:
            continue
        before = os.umask(0o077)
        try:
            place.mkdir(parents=True, exist_ok=True)
            create_certificates(place, name)
            _public(place, name).chmod(0o644)
        except OSError as error:
            raise StorageError(f"cannot write keys to {place} ({error}); choose another folder") from None
        finally:
            os.umask(before)
    return made


@dataclass(frozen=True, slots=True)
class Keys:
    """Our own key pair, and the folder that says who else is trusted.

    Attributes:
        name: ours. public, secret: 40 characters of Z85 each.
    """

    name: str
    public: bytes
    secret: bytes
    folder: Path

    def __repr__(self) -> str:
        return f"Keys({self.name!r})"  # no secret in a log

    def trusted(self) -> dict[bytes, str]:
        """Return the names of all who are trusted, by public key, as the folder is now."""
        return {_read(path)[0]: path.stem for path in sorted(self.folder.glob("*.key"))}

    def serve(self, socket: zmq.Socket[Any]) -> None:
        """Let only those in who are trusted, before the socket is bound; ``authenticate`` has to run."""
        socket.curve_server = True
        socket.curve_secretkey = self.secret
        socket.zap_domain = _DOMAIN.encode()

    def call(self, socket: zmq.Socket[Any], name: str) -> None:
        """Connect to nobody but the one that is called ``name``.

        Raises:
            ConfigError: the folder has no public key of that name.
        """
        path = _public(self.folder, check_name(name))
        if not path.is_file():
            raise ConfigError(
                f"there is no public key {path}; copy it from where `portend keys` made it, or make it there"
            )
        socket.curve_publickey, socket.curve_secretkey = self.public, self.secret
        socket.curve_serverkey = _read(path)[0]


def load_keys(folder: str | Path, name: str) -> Keys:
    """Return the key pair of ``name``.

    Raises:
        ConfigError: there is none, or others could read it.
    """
    path = Path(folder) / f"{check_name(name)}.key_secret"
    if not path.is_file():
        raise ConfigError(f"there is no secret key {path}; make one with `portend keys {folder} {name}`")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        raise ConfigError(f"others than its owner may read {path}; run `chmod 600 {path}`, or make new keys")
    public, secret = _read(path)
    if secret is None:
        raise ConfigError(f"{path} holds no secret key; make one with `portend keys`")
    return Keys(name, public, secret, Path(folder))


def _public(folder: Path, name: str) -> Path:
    return folder / f"{name}.key"


def _read(path: Path) -> tuple[bytes, bytes | None]:
    try:
        public, secret = load_certificate(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as a key ({error}); copy it again") from None
    if any(len(key) != 40 for key in (public, secret) if key is not None):
        raise ConfigError(f"{path} holds no CURVE key of 40 characters; copy it again")
    return public, secret


class Who(AsyncioAuthenticator):
    """Answers ZeroMQ's question whether a key may connect, and names its owner in each message."""

    def __init__(self, context: Any, keys: Keys) -> None:
        super().__init__(context)
        self._keys = keys
        self.refused = 0
        """How many connections with keys that are not trusted were refused."""
        self.configure_curve_callback(_DOMAIN, self)

    def callback(self, _domain: str, key: bytes) -> bool:
        """Whether the key may connect."""
        try:
            known = key in self._keys.trusted()
        except ConfigError:
            known = False
        self.refused += not known
        return known

    def curve_user_id(self, client_public_key: bytes) -> str:
        from zmq.utils import z85

        return self._keys.trusted().get(z85.encode(client_public_key), "")


def authenticate(context: Any, keys: Keys) -> Who:
    """Start to answer for a context, within a running event loop; stop it with ``stop``."""
    who = Who(context, keys)
    who.start()
    return who
