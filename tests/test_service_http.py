"""What a local program can do to the HTTP interface: others' samples are answered in time all the same, and rightly."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import io
import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from portend.data import headers
from portend.data.decoding import AudioDecoder
from portend.data.encodings import png
from portend.service.operator import Agents
from service_hosts import Hosts, Workload, until


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory, work: Workload) -> Iterator[Hosts]:
    """An agent alone that takes samples; one block on the source."""
    with (
        Hosts(tmp_path_factory.mktemp("edge"), ["edge"]) as hosts,
        Agents(hosts.topology, None, patience_s=30) as agents,
    ):
        work.release(agents, work.plans[-1:], deadline_s=120.0)
        yield hosts


def post(hosts: Hosts, body: bytes, path: str = "/v1/samples", **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", hosts.http["edge"], timeout=120)
    try:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


class Honest:
    """Ten samples a second from a program that means well, while something else goes on in the context."""

    def __init__(self, hosts: Hosts, work: Workload) -> None:
        self._hosts, self._work = hosts, work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.statuses: list[int] = []
        self.wrong: list[object] = []

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            number = (number + 1) % len(self._work.samples)
            status, told = post(self._hosts, self._work.samples[number])
            self.statuses.append(status)
            if told.get("label") != self._work.expected(self._work.plans[-1], number)[0]:
                self.wrong.append(told)
            self._stop.wait(0.1)

    def __enter__(self) -> Honest:
        self._thread.start()
        until(lambda: len(self.statuses) > 2)
        return self

    def __exit__(self, *_: object) -> None:
        until(lambda: len(self.statuses) > 4)
        self._stop.set()
        self._thread.join(120)
        assert set(self.statuses) == {200}
        assert self.wrong == []


def picture(kind: str, side: int) -> bytes:
    """A plain picture that is small as a file."""
    file = io.BytesIO()
    Image.new("L", (side, side), 100).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "side"),
    [("WEBP", 2500), *(pytest.param(kind, 7000, marks=pytest.mark.slow) for kind in ("WEBP", "PNG", "JPEG", "GIF"))],
)
def test_pictures_that_take_long_to_decode_keep_no_other_waiting(
    edge: Hosts, work: Workload, kind: str, side: int
) -> None:
    bomb = picture(kind, side)
    with ThreadPoolExecutor(64) as pool, Honest(edge, work):
        told = list(pool.map(lambda _: post(edge, bomb)[0], range(64)))
    assert set(told) <= {200, 408, 503}  # 408: others came in while it did, and took its place
    assert told.count(200) >= 1
    assert 503 in told  # not all of them take a place


def clip(frames: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((frames, 8), np.int16), 48_000, format=kind)
    return file.getvalue()


def test_headers_say_how_much_a_file_unpacks_to() -> None:
    for kind, options in (
        ("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
        ("WEBP", {"lossless": True}), ("WEBP", {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0"}),
    ):  # fmt: skip
        file = io.BytesIO()
        Image.new("RGB", (300, 200), (1, 2, 3)).save(file, kind, **options)
        assert headers.pixels(file.getvalue()) == headers.pixels(memoryview(file.getvalue())) == 60_000, (kind, options)
    assert headers.values(clip(1000, "FLAC")) == 8000
    assert 8000 <= (headers.values(clip(1000, "WAV")) or 0) < 100_000
    for none in (b"", b"no picture", b"\xff\xd8\xff", b"RIFF", b"RIFF1234WEBPVP8 ", bytes(100)):
        assert headers.values(none) is None


def test_a_picture_of_two_sizes_is_refused(edge: Hosts) -> None:
    small, large = png(np.zeros((16, 16), np.uint8)), picture("PNG", 2500)
    both = small[:33] + large[8:]  # the header of one before all of the other
    status, told = post(edge, both)
    assert (status, told["failed"]) == (422, "sample")


# -- sounds ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hears(tmp_path_factory: pytest.TempPathFactory, work: Workload) -> Iterator[tuple[Hosts, Workload]]:
    """An agent alone that takes sounds of half a second, and such sounds."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, (8, 8_000))
    work = replace(
        work,
        decoder=AudioDecoder(bands=16, frames=16),
        samples=tuple(sound(np.sin(np.arange(8_000) * n / 10) * noise[n], 16_000, "WAV") for n in range(8)),
    )
    with (
        Hosts(tmp_path_factory.mktemp("hears"), ["edge"]) as hosts,
        Agents(hosts.topology, None, patience_s=30) as agents,
    ):
        work.release(agents, work.plans[-1:], deadline_s=120.0)
        yield hosts, work


def sound(samples: np.ndarray, rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def silence(seconds: int, kind: str, channels: int = 1) -> bytes:
    """A file that unpacks to so many seconds of zeros."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 48_000, channels, format=kind) as out:
        for _ in range(seconds):
            out.write(np.zeros((48_000, channels), np.float32))
    return file.getvalue()


def changed(data: bytes, at: int, more: bytes) -> bytes:
    return data[:at] + more + data[at + len(more) :]


def sound_bombs(seconds: int) -> dict[str, bytes]:
    """Files that say that they are huge, or that are."""
    wave, flac = sound(np.zeros(800), 16_000, "WAV"), sound(np.zeros(800), 16_000, "FLAC")
    rate_and_count = int.from_bytes(flac[18:26], "big")
    return {
        "FLAC of hours by its header": changed(flac, 18, (rate_and_count | ((1 << 36) - 1)).to_bytes(8, "big")),
        "FLAC of no length": changed(flac, 18, (rate_and_count & ~((1 << 36) - 1)).to_bytes(8, "big")),
        "FLAC of silence": silence(seconds, "FLAC"),
        "FLAC of 8 channels of silence": silence(seconds // 8 + 1, "FLAC", 8),
        "FLAC of silence and no length": changed(silence(seconds, "FLAC"), 21, bytes([0xF0, 0, 0, 0, 0])),
        "Ogg of silence": silence(seconds, "OGG"),
        "WAV of 65,535 channels": changed(wave, 22, b"\xff\xff"),
        "WAV of no channels": changed(wave, 22, b"\0\0"),
        "WAV of 4 GHz": changed(wave, 24, b"\xff\xff\xff\xff"),
        "WAV of 0 Hz": changed(wave, 24, bytes(4)),
        "WAV of 1 Hz": changed(silence(1, "WAV"), 24, b"\1\0\0\0"),
        "WAV of 4 GB": changed(changed(wave, 4, b"\xf0\xff\xff\xff"), 40, b"\xc0\xff\xff\xff"),
        "WAV of frames of no bytes": changed(wave, 32, bytes(4)),
    }


def peak_mb(hosts: Hosts) -> float:
    """The most memory that the agent has had since the last call."""
    folder = Path(f"/proc/{hosts.processes['edge'].pid}")
    lines = (folder / "status").read_text().splitlines()
    (folder / "clear_refs").write_text("5")
    return next(float(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    ("seconds", "times"), [(60, 1), *(pytest.param(seconds, 5, marks=pytest.mark.slow) for seconds in (400, 430))]
)
def test_sounds_that_are_huge_or_say_so_keep_no_other_waiting(
    hears: tuple[Hosts, Workload], seconds: int, times: int
) -> None:
    """7 minutes of silence at 48 kHz are beyond the limit of 20 million samples."""
    hosts, work = hears
    bombs = [bomb for bomb in sound_bombs(seconds).items() for _ in range(times)]
    before = peak_mb(hosts)
    with ThreadPoolExecutor(16) as pool, Honest(hosts, work):
        found = list(pool.map(lambda bomb: (bomb[0], *post(hosts, bomb[1])), bombs))
    statuses = {name: {status for each, status, _ in found if each == name} for name, _ in bombs}
    print(statuses, before, peak := peak_mb(hosts))
    assert set.union(*statuses.values()) <= {200, 422, 503}
    assert all(told.get("failed") == "sample" for _, status, told in found if status == 422)
    huge = [name for name in statuses if "of silence" not in name and name != "WAV of 4 GB"]
    assert all(200 not in statuses[name] for name in huge), statuses
    if seconds > 420:
        assert all(200 not in statuses[name] for name in statuses if name in ("FLAC of silence", "Ogg of silence"))
    assert peak < before + 400


def test_slow_bodies_and_headers_take_no_places(edge: Hosts, work: Workload) -> None:
    start = b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\n"
    with contextlib.ExitStack() as held:
        slow = [held.enter_context(socket.create_connection(("127.0.0.1", edge.http["edge"]))) for _ in range(200)]
        for number, one in enumerate(slow):
            one.sendall(start + (b"Content-Length: 1000\r\n\r\nx" if number % 2 else b"X-Slow: "))
        with Honest(edge, work):
            for _ in range(3):
                for one in slow:
                    try:
                        one.sendall(b"x")
                    except OSError:  # it was hung up on
                        continue
                time.sleep(0.1)
        ended = 0
        for one in slow[1::2]:
            one.settimeout(0.01)
            try:
                ended += b" 408 " in one.recv(100)
            except OSError:
                continue
    assert ended >= 40  # the oldest went for the next


@pytest.mark.slow
def test_who_sends_no_request_is_hung_up_on(edge: Hosts) -> None:
    with socket.create_connection(("127.0.0.1", edge.http["edge"]), timeout=60) as one:
        one.sendall(b"POST /v1/samples HTTP/1.1\r\nX-Slow: ")
        assert one.recv(100) == b""


def test_compressed_bodies_are_refused_before_they_are_unpacked(edge: Hosts, work: Workload) -> None:
    bomb = gzip.compress(bytes(50 << 20))
    with Honest(edge, work):
        for _ in range(3):
            assert post(edge, bomb, **{"Content-Encoding": "gzip"})[0] == 415


def test_huge_headers_and_endless_chunks_end(edge: Hosts, work: Workload) -> None:
    with Honest(edge, work):
        for lines in (b"X-Large: " + b"x" * (1 << 20), b"\r\n".join(b"X-%d: y" % i for i in range(50_000))):
            with socket.create_connection(("127.0.0.1", edge.http["edge"]), timeout=60) as one:
                try:
                    one.sendall(b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n\r\n")
                    told = one.recv(100)
                except OSError:  # it hung up before all was sent
                    told = b" 400 "
                assert b" 400 " in told or told == b""
        with socket.create_connection(("127.0.0.1", edge.http["edge"]), timeout=60) as one:
            one.sendall(b"POST /v1/samples HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(10_000):
                one.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                if select.select([one], [], [], 0)[0]:  # it answers before the end, which never comes
                    break
            assert b" 413 " in one.recv(100)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_small_requests_on_kept_connections_are_all_answered(edge: Hosts, work: Workload, count: int) -> None:
    def ask(number: int) -> list[tuple[int, int, object]]:
        connection, found = http.client.HTTPConnection("127.0.0.1", edge.http["edge"], timeout=120), []
        for at in range(number, count, 50):
            while True:
                connection.request("POST", f"/v1/samples?id=many-{count}-{at}", work.samples[at % len(work.samples)])
                answer = connection.getresponse()
                told = json.loads(answer.read())
                if answer.status != 503:
                    break
                time.sleep(0.05)
            found.append((at, answer.status, told.get("label")))
        connection.close()
        return found

    with ThreadPoolExecutor(50) as pool:
        found = sorted(each for one in pool.map(ask, range(50)) for each in one)
    labels = [work.expected(work.plans[-1], i)[0] for i in range(len(work.samples))]
    assert found == [(at, 200, labels[at % len(labels)]) for at in range(count)]


def test_requests_in_a_row_on_one_connection_are_answered_in_order(edge: Hosts, work: Workload) -> None:
    one = b"".join(
        b"POST /v1/samples?id=row-%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (i, len(s), s)
        for i, s in enumerate(work.samples)
    )
    with socket.create_connection(("127.0.0.1", edge.http["edge"]), timeout=60) as connection:
        connection.sendall(one + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    labels = [json.loads(part[: part.index(b"}") + 1])["label"] for part in got.split(b"\r\n\r\n")[1:-1]]
    assert labels == [work.expected(work.plans[-1], i)[0] for i in range(len(work.samples))]
