"""A client of a running service: samples in, answers out, over the source's HTTP interface.

It needs nothing but Python and numpy; pictures that are given as arrays need pillow.
"""

from __future__ import annotations

import asyncio
import http.client
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from portend.errors import DeploymentError, InvalidValue

__all__ = ["Client", "Inferred"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inferred:
    """What the service says of one sample.

    Attributes:
        label: number of the class. confidence: of the exit that answered, 0–1: one minus its score.
        exit: the partition after which the sample left, from 1. latency: since the source accepted it, s.
        id: of the sample. plan: which plan answered: 0 the wanted one, others its fallbacks.
    """

    label: int
    confidence: float
    exit: int
    latency: float
    id: str
    plan: int


class Client:
    """Asks a service for answers; threads may share it.

    Args:
        url: of the source's HTTP interface (`portend agent --http`), such as ``http://127.0.0.1:8080``.
        timeout_s: longest wait for one answer.

    Raises:
        InvalidValue: the address is not one.

    Example:
        >>> client = pt.Client("http://127.0.0.1:8080")
        >>> client.infer("picture.png")
        Inferred(label=3, confidence=0.98, exit=1, latency=0.0042, id='...', plan=0)
    """

    def __init__(self, url: str, *, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
            raise InvalidValue(f"the address of a service is like http://127.0.0.1:8080, but got {url!r}")
        self._host, self._port, self._timeout_s = parts.hostname, parts.port or 80, timeout_s

    def infer(self, sample: bytes | str | Path | NDArray[Any], *, id: str | None = None) -> Inferred:
        """Return the service's answer to one sample.

        Args:
            sample: the bytes of a file, as the network was trained on (PNG, WAV, ...); the path of one; or an array:
                uint8 of [height, width] or [height, width, 3] is sent as a PNG, any other as its numbers (fractions as
                float32, whole numbers as int64), for networks whose samples are tensors.
            id: a name by which the answer may be asked for again; the same bytes under the same name are answered
                once. By default each call has its own.

        Raises:
            DeploymentError: there is no service, it is full, or it has no answer; the message says which.
            InvalidValue: the sample cannot be used.
        """
        where = "/v1/samples" + (f"?id={quote(id, safe='')}" if id is not None else "")
        status, answer = self._post(where, _body(sample))
        if status == 200:
            return Inferred(
                label=answer["label"], confidence=answer["confidence"], exit=answer["exit"],
                latency=1e-3 * answer["latency_ms"], id=answer["id"], plan=answer["plan"],
            )  # fmt: skip
        reason = str(answer.get("reason") or answer.get("error") or f"status {status}")
        raise (InvalidValue if status in (400, 409, 413, 415, 422) else DeploymentError)(reason)

    async def infer_async(self, sample: bytes | str | Path | NDArray[Any], *, id: str | None = None) -> Inferred:
        """Return what ``infer`` returns, without blocking the event loop."""
        return await asyncio.to_thread(self.infer, sample, id=id)

    def _post(self, where: str, body: bytes) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", where, body, {"Content-Type": "application/octet-stream"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DeploymentError(
                f"the service at {self._host}:{self._port} does not answer ({error or type(error).__name__}); is "
                "`portend agent --http` running there?"
            ) from error
        finally:
            connection.close()


def _body(sample: bytes | str | Path | NDArray[Any]) -> bytes:
    if isinstance(sample, bytes | bytearray | memoryview):
        return bytes(sample)
    if isinstance(sample, str | Path):
        try:
            return Path(sample).read_bytes()
        except OSError as error:
            raise InvalidValue(
                f"{sample} cannot be read ({error.strerror}); give a file, its bytes, or an array"
            ) from None
    array = np.asarray(sample)
    if array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] == 3)):
        from portend.data.encodings import png

        return png(array)
    if array.dtype.kind not in "fiu":
        raise InvalidValue(f"a sample is bytes, a path, or an array of numbers, but got an array of {array.dtype}")
    return np.ascontiguousarray(array, dtype="<f4" if array.dtype.kind == "f" else "<i8").tobytes()
