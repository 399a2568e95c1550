"""The server as programs and people meet it: a real one on its own port, with a tiny network."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from conftest import toy, write_folder
from fitting import fit_tiny, options
from regraft.errors import UserError
from regraft.inference.classifier import load_classifier
from regraft.runs.folder import load_run
from regraft.runs.layout import SCORES, WEIGHTS
from regraft.serving.batching import Batcher, QueueFull
from regraft.serving.options import ServeOptions
from regraft.serving.server import serve
from regraft.serving.similar import find_images, with_stop_event

EVIL = """<img src=x onerror="document.title='run'">"""  # what somebody may call a class
SMALL = {
    "body": 3_000_000,
    "pixels": 4_000_000,
    "batch": 16,
    "requests": 64,
    "waiting": 100,
    "seconds": 2.0,
}


CHILD = """
import json, sys, time
from pathlib import Path
from regraft.inference.cam import activation_maps
from regraft.inference.classifier import Classifier, load_classifier
from regraft.options import CacheOptions, Options, Runtime
from regraft.runs.folder import load_run
from regraft.serving.limits import Limits
from regraft.serving.server import Backend, ServeOptions, serve
from regraft.system.progress import ProgressReporter

words = json.loads(sys.argv[1])
gate = words["gate"]

class Gated(Classifier):
    def logits(self, images):
        images = list(images)
        with open(gate + ".log", "a") as log:
            log.write(f"{len(images)}\\n")
        while not Path(gate).exists():
            time.sleep(0.01)
        return super().logits(images)

def load(path, device):
    return Gated(load_run(Path(path)), device) if gate else load_classifier(path, device)

def compute_maps(classifier, images, classes):
    Path(words["run"] + ".asked").write_text(str(classes))
    return activation_maps(classifier, images, classes)

class Printing(ProgressReporter):
    def log(self, text):
        print(text, file=sys.stderr, flush=True)

limits = Limits(**words["limits"])
serve(
    words["run"],
    ServeOptions(port=0, data=words["data"], similar=not gate, limits=limits),
    Options(cache=CacheOptions(words["home"]), runtime=Runtime(reporter=Printing())),
    backend=Backend(load, compute_maps),
)
"""


@dataclass
class Running:
    """A server in a process of its own."""

    child: subprocess.Popen[bytes]
    told: Path
    run: Path

    @property
    def address(self) -> str:
        return self.told.read_text().split(" at ")[1].split(";")[0]

    @property
    def port(self) -> int:
        return int(self.address.rsplit(":", 1)[1])

    def wait(self) -> Running:
        """Return it when it answers."""
        deadline = time.monotonic() + 90
        while True:
            try:
                httpx.get(self.address + "/health", timeout=60).raise_for_status()
                return self
            except (IndexError, httpx.TransportError):
                assert self.child.poll() is None, self.told.read_text()
                assert time.monotonic() < deadline, self.told.read_text()
                time.sleep(0.05)

    def post(self, path: str, **words: object) -> httpx.Response:
        return httpx.post(self.address + path, timeout=30, **words)  # type: ignore[arg-type]

    def end(self, how: int) -> str:
        """Send a signal; returns what the server said when it ended cleanly."""
        self.child.send_signal(how)
        code, said = self.child.wait(20), self.told.read_text()
        assert code == 0, said
        assert said.endswith("Stopped.\n")
        assert "Traceback" not in said
        return said


@contextmanager
def running(words: list[str], folder: Path, run: Path) -> Iterator[Running]:
    """Start a process, and end it whatever happens."""
    folder.mkdir()
    with (folder / "told").open("wb") as told:
        child = subprocess.Popen(
            [sys.executable, *words],
            stdout=told,
            stderr=told,
            env={**os.environ, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"},
        )
        try:
            yield Running(child, folder / "told", run)
        finally:
            child.kill()
            child.wait()


def with_limits(
    fitted: tuple[Path, Path, Path], limits: dict[str, float], gate: Path | str = ""
) -> list[str]:
    given = {"run": fitted[0], "data": fitted[1], "home": fitted[2], "gate": gate}
    return [
        "-c",
        CHILD,
        json.dumps({name: str(value) for name, value in given.items()} | {"limits": limits}),
    ]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A run, its images and a cache."""
    top = tmp_path_factory.mktemp("serve")
    photos = write_folder(top / "photos", replace(toy(), classes=(EVIL, "class1", "class2")))
    run = fit_tiny(photos, options(top / "cache", top / "run"))
    return run.path, photos, top / "cache"


@pytest.fixture(scope="module")
def server(
    fitted: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """A server with small limits, for most of what follows."""
    with running(
        with_limits(fitted, SMALL), tmp_path_factory.mktemp("server") / "here", fitted[0]
    ) as one:
        yield one.wait()


def encoded(image: np.ndarray, kind: str = "PNG", **words: object) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **words)
    return buffer.getvalue()


def various(count: int = 30) -> list[bytes]:
    """Image files of many sizes and kinds, one of them to be turned upright."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        height, width = rng.integers(5, 90, 2)
        pixels = np.repeat(
            np.repeat(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8), height, 0), width, 1
        )
        exif = Image.Exif()
        exif[0x0112] = 6
        kind = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")[number % 6]
        found.append(encoded(pixels, kind, **({"exif": exif} if kind == "JPEG" else {})))
    return found


def test_answers_are_those_of_predict_one_by_one_many_in_one_and_many_at_once(
    server: Running, tmp_path: Path
) -> None:
    files = various()
    for number, content in enumerate(files):
        (tmp_path / f"{number}.png").write_bytes(content)
    loaded = load_classifier(server.run)
    wanted = loaded.predict_proba([tmp_path / f"{number}.png" for number in range(len(files))])
    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda content: server.post("/predict", files={"image": ("a.png", content)}),
                files * 4,
            )
        )
    assert [answer.status_code for answer in answers] == [200] * 120
    for number, answer in enumerate(answers):
        said, row = answer.json(), wanted[number % len(files)]
        assert said["label"] == loaded.classes[int(row.argmax())] == said["classes"][0]["label"]
        assert {
            one["label"]: pytest.approx(one["probability"], abs=1e-4) for one in said["classes"]
        } == dict(zip(loaded.classes, row, strict=True))
    sent = [("images", (f"{number}.png", content)) for number, content in enumerate(files[:15])] + [
        ("images", ("bad.png", b"<svg/>"))
    ]
    rows = server.post("/predict/batch?top=1", files=sent).json()["predictions"]
    assert [one["name"] for one in rows] == [name for _, (name, _) in sent]
    assert [one["label"] for one in rows] == [
        *(loaded.classes[int(row.argmax())] for row in wanted[:15]),
        None,
    ]
    assert [len(one["classes"]) for one in rows] == [1] * 15 + [0]
    assert "not an image" in rows[-1]["error"]
    assert {one["error"] for one in rows[:-1]} == {None}
    assert server.post("/predict/batch", files=sent[-1:]).json()["predictions"][0]["label"] is None


def test_it_describes_itself(server: Running) -> None:
    health = httpx.get(server.address + "/health").json()
    assert health | {"similar": ""} == {
        "status": "ok",
        "run": "run",
        "backbone": "test_resnet",
        "classes": [EVIL, "class1", "class2"],
        "waiting": 0,
        "similar": "",
    }
    described = httpx.get(server.address + "/openapi.json").json()
    assert set(described["paths"]) == {"/predict", "/predict/batch", "/health"}
    assert {"200", "408", "413", "422", "503"} == set(
        described["paths"]["/predict"]["post"]["responses"]
    )
    assert "probability" in described["components"]["schemas"]["Prediction"]["properties"]
    assert (
        httpx.get(server.address + "/docs").status_code == 404
    )  # its page would come from elsewhere
    assert f"Serving {server.run} at {server.address}" in server.told.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.2:{server.port}/health")  # bound to one address


def sending(port: int, head: str, piece: bytes, most: int) -> tuple[int, bytes]:
    """Send a request piece by piece until there is an answer, or the other side hangs up.

    Returns the number of bytes sent, and the answer.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sent:
        sent.sendall(head.encode())
        count, answer = 0, b""
        while count < most and not answer:
            try:
                sent.sendall(piece)
                count += len(piece)
                sent.settimeout(0.002)
                answer = sent.recv(65536)
                sent.settimeout(20)
                while more := sent.recv(65536):
                    answer += more
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                break
            finally:
                sent.settimeout(20)
        return count, answer


@pytest.mark.parametrize(
    "path", ["/predict", "/predict/batch", "/gradio_api/upload", "/gradio_api/queue/join"]
)
def test_a_body_that_is_too_large_is_refused_without_being_read_whole(
    server: Running, path: str
) -> None:
    kind = (
        "Content-Type: multipart/form-data; boundary=x\r\n"
        if "queue" not in path
        else "Content-Type: application/json\r\n"
    )
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{kind}"
    count, answer = sending(
        server.port, head + "Content-Length: 200000000\r\n\r\n", b"x" * 10_000, 200_000_000
    )
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than the 3 MB allowed" in answer
    assert count < 2_000_000
    piece = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        + b"y" * 100_000
    )
    count, answer = sending(
        server.port,
        head + "Transfer-Encoding: chunked\r\n\r\n",
        f"{len(piece):x}\r\n".encode() + piece + b"\r\n",
        200_000_000,
    )
    assert count < 50_000_000
    assert answer.startswith(b"HTTP/1.1 413 ") or not answer  # hung up on while still sending
    assert httpx.get(server.address + "/health").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(server: Running) -> None:
    head = (
        "POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sent:
        sent.sendall(head.encode() + b"--x\r\n")
        answer = b"".join(iter(lambda: sent.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"was not complete after 2 s" in answer


def header_only(side: int) -> bytes:
    """A PNG that claims to be very large, and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def bombs() -> dict[str, tuple[bytes, str]]:
    buffer = io.BytesIO()
    Image.new("1", (2100, 2100)).save(buffer, "PNG")
    image = encoded(np.zeros((40, 40, 3), np.uint8))
    return {
        "a little too large": (
            buffer.getvalue(),
            "2,100 × 2,100 pixels, more than the 4,000,000 allowed",
        ),
        "where Pillow warns": (header_only(12_000), "more"),
        "where Pillow refuses": (header_only(60_000), "more pixels than the 4,000,000 allowed"),
        "a lie": (header_only(1500), "cannot be decoded"),
        "svg": (
            b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg">'
            b"<script>alert(1)</script></svg>",
            "not an image that can be read",
        ),
        "html": (b"<!doctype html><html><img src=x onerror=alert(1)></html>", "not an image"),
        "postscript": (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
            "not an image",
        ),
        "zip": (b"PK\x03\x04" + bytes(200), "not an image"),
        "empty": (b"", "not an image"),
        "half": (image[: len(image) // 2], "cannot be decoded"),
    }


@pytest.mark.parametrize("name", bombs())
def test_what_is_no_image_or_too_many_pixels_is_refused_in_a_sentence(
    server: Running, name: str
) -> None:
    content, text = bombs()[name]
    for called in ("photo.png", "photo.jpg"):
        answer = server.post("/predict", files={"image": (called, content, "image/png")})
        assert answer.status_code == 422, answer.text
        assert text in str(answer.json()["detail"])
    assert (
        server.post(
            "/predict", files={"image": ("a.png", encoded(np.zeros((9, 9, 3), np.uint8)))}
        ).status_code
        == 200
    )


def test_requests_that_make_no_sense_are_said_to_be_so(server: Running) -> None:
    image = encoded(np.zeros((9, 9, 3), np.uint8))
    assert server.post("/predict", files={"picture": ("a.png", image)}).status_code == 422
    assert server.post("/predict", content=image).status_code == 422
    assert server.post("/predict?top=0", files={"image": ("a.png", image)}).status_code == 422
    many = server.post("/predict/batch", files=[("images", ("a.png", image))] * 17)
    assert (many.status_code, many.json()["detail"]) == (
        422,
        "17 images were sent. Expected at most 16 in one request. Send them in several.",
    )
    assert httpx.get(server.address + "/predict").status_code in (404, 405)
    assert httpx.get(server.address + "/gradio_api/file=/etc/passwd").status_code in (403, 404)


@pytest.mark.slow
def test_beyond_the_queue_it_says_come_again_and_goes_on_afterwards(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    image, gate, log = (
        encoded(np.zeros((9, 9, 3), np.uint8)),
        tmp_path / "gate",
        tmp_path / "gate.log",
    )
    words = with_limits(fitted, {"requests": 30, "waiting": 20}, gate)
    with running(words, tmp_path / "served", fitted[0]) as started, ThreadPoolExecutor(60) as pool:
        here = started.wait()
        assert "Similar training images were switched off" in here.told.read_text()
        first = pool.submit(here.post, "/predict", files={"image": ("a.png", image)})
        while not log.exists():
            time.sleep(0.01)
        rest = [
            pool.submit(here.post, "/predict", files={"image": ("a.png", image)}) for _ in range(50)
        ]
        deadline = time.monotonic() + 20
        while (
            sum(one.done() for one in rest) < 30
            or httpx.get(here.address + "/health").json()["waiting"] < 20
        ) and time.monotonic() < deadline:
            time.sleep(0.01)
        refused = [one.result() for one in rest if one.done()]
        assert httpx.get(here.address + "/health").json()["waiting"] == 20
        gate.touch()
        answers = [one.result() for one in (first, *rest)]
        assert len(refused) == 30
        assert {answer.status_code for answer in refused} == {503}
        assert all(
            answer.headers["retry-after"] == "1"
            and "Try again in a second" in answer.json()["detail"]
            for answer in refused
        )
        assert [answer.status_code for answer in answers].count(200) == 21
        assert log.read_text().split() == ["1", "20"]  # those that waited went through together
        assert here.post("/predict", files={"image": ("a.png", image)}).status_code == 200
        many = here.post("/predict/batch", files=[("images", ("a.png", image))] * 21)
        assert many.status_code == 503
        here.end(signal.SIGINT)


def test_the_queue_collects_splits_forgets_those_who_left_and_passes_errors_on() -> None:
    sizes: list[int] = []

    def predict(images):  # type: ignore[no-untyped-def]
        sizes.append(len(images))
        time.sleep(0.02)
        if any(image.max() == 255 for image in images):
            raise RuntimeError("the network broke")
        return np.stack([image.reshape(-1)[:2] for image in images])

    async def check_batcher() -> None:
        batcher = Batcher(predict, capacity=50, max_batch=8, max_wait=0.01)
        await batcher.start()
        images = [np.full((1, 2), number, np.uint8) for number in range(20)]
        said = await asyncio.gather(*[batcher.submit([image]) for image in images])
        assert [int(row[0, 0]) for row in said] == list(range(20))
        assert sizes == [8, 8, 4]
        assert (await batcher.submit(images))[:, 0].tolist() == list(range(20))
        with pytest.raises(QueueFull):
            await batcher.submit(images * 3)
        sizes.clear()
        tasks = [asyncio.create_task(batcher.submit([image])) for image in images[:16]]
        await asyncio.sleep(0.015)
        for task in tasks[10:]:
            task.cancel()
        assert (
            len(
                [
                    one
                    for one in await asyncio.gather(*tasks, return_exceptions=True)
                    if isinstance(one, np.ndarray)
                ]
            )
            == 10
        )
        assert sizes == [8, 2]
        with pytest.raises(RuntimeError, match="the network broke"):
            await batcher.submit([np.full((1, 2), 255, np.uint8)])
        assert (await batcher.submit(images[:1])).tolist() == [[0, 0]]
        await batcher.stop()

    asyncio.run(asyncio.wait_for(check_batcher(), 30))


def test_a_port_that_is_taken_and_other_mistakes_end_in_a_sentence(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Path, **asked: Any) -> str:
        with pytest.raises(UserError) as caught:
            serve(run, ServeOptions(**{"port": 0, **asked}))
        return str(caught.value)

    assert (
        f"Port {server.port} of 127.0.0.1 cannot be listened on (Address already in use). "
        "Expected a free port." in refused(server.run, port=server.port)
    )
    assert "cannot be listened on" in refused(server.run, host="no.such.host.invalid")
    assert "is no run" in refused(tmp_path)
    assert "neither a known dataset nor an existing file" in refused(server.run, data="nowhere")
    assert "holds none of the training images of" in refused(server.run, data="digits")
    copy = tmp_path / "copy"
    shutil.copytree(server.run, copy)
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-5] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    assert f"was altered after it was finished ({WEIGHTS})" in refused(copy)
    (copy / WEIGHTS).write_bytes(content[:1000])
    assert "was altered" in refused(copy)
    for module in ("gradio", "uvicorn"):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, module=module: None if name == module else object(),
        )
        text = refused(server.run)
        assert f"`regraft serve` needs {module}, which is not installed" in text
        assert "pip install 'regraft[serve]'" in text


def test_a_mistake_on_the_command_line_is_one_sentence(server: Running, regraft) -> None:  # type: ignore[no-untyped-def]
    done = regraft("serve", server.run, "--port", server.port)
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "cannot be listened on" in done.err


@pytest.mark.slow
def test_it_ends_cleanly_whoever_is_connected(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    words = ["-m", "regraft", "serve", str(fitted[0]), "--port", "0", "--cache", str(fitted[2])]
    with running(words, tmp_path / "served", fitted[0]) as started:
        here = started.wait()
        assert (
            here.post(
                "/predict", files={"image": ("a.png", encoded(np.zeros((9, 9, 3), np.uint8)))}
            ).status_code
            == 200
        )
        with socket.create_connection(("127.0.0.1", here.port)):
            here.end(signal.SIGTERM)
    assert [
        path.name
        for path in (tmp_path / "served").iterdir()
        if path.name.startswith("regraft-serve")
    ] == []


STOPPED_AT_ONCE = """
import sys
from regraft.options import CacheOptions, Options, Runtime
from regraft.serving.server import ServeOptions, serve
from regraft.system.progress import ProgressReporter

class Printing(ProgressReporter):
    def log(self, text):
        print(text)

def stop(server, port):
    print("started at", port)
    server.should_exit = True

chosen = Options(cache=CacheOptions(sys.argv[2]), runtime=Runtime(reporter=Printing()))
serve(sys.argv[1], ServeOptions(port=0, similar=False), chosen, on_start=stop)
"""


def test_whoever_starts_the_server_hears_of_it_and_can_stop_it(
    fitted: tuple[Path, Path, Path],
) -> None:
    words = [sys.executable, "-c", STOPPED_AT_ONCE, fitted[0], fitted[2]]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    serving, switched_off, started, stopped = done.stdout.splitlines()
    assert f"http://127.0.0.1:{started.removeprefix('started at ')};" in serving
    assert switched_off == "Similar training images were switched off."
    assert stopped == "Stopped."


def test_serving_help_loads_neither_torch_nor_gradio() -> None:
    code = """
import runpy, sys
sys.argv = ["regraft", "serve", "--help"]
try:
    runpy.run_module("regraft", run_name="__main__")
except SystemExit:
    pass
print("torch" in sys.modules, "gradio" in sys.modules)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == "False False"


def test_similar_images_are_the_run_s_training_images(fitted: tuple[Path, Path, Path]) -> None:
    run, _, home = fitted
    classifier = load_classifier(run)
    settings = options(home)
    similar = find_images(classifier, None, settings)
    assert (similar.state, len(similar.examples)) == ("preparing", 3)
    assert "are being prepared" in similar.note
    similar.prepare(settings)
    assert (similar.state, similar.note) == ("ready", "")
    train = similar.train
    assert train is not None
    rows = [image for image in load_run(run).split() if image.part == "train"]
    names = [train.classes[label] for label in train.labels]
    assert set(zip(train.keys, names, strict=True)) == {(row.key, row.label) for row in rows}
    for row in (0, 20, 40):
        image = train.images.read(np.array([row]))[0]
        neighbours = similar.find_similar(image)
        assert np.array_equal(neighbours[0][0], image)  # itself first
        assert neighbours[0][1] == f"{names[row]} 1.00"
        assert len(neighbours) == 6
    new = find_images(classifier, None, settings)
    new.prepare(settings, max_bytes=4 * similar.features.shape[1] * 12)  # type: ignore[union-attr]
    assert len(new.features) == len(new.train) == 12  # type: ignore[arg-type]
    assert set(new.train.labels) == {0, 1, 2}  # type: ignore[union-attr]


def test_similar_images_that_cannot_be_had_are_left_out_with_a_sentence(
    fitted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    run, photos, home = fitted
    classifier = load_classifier(run)
    settings = options(home)
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    scores = json.loads((run / SCORES).read_text())
    for origin, text in (
        (str(tmp_path / "gone"), "is not on this machine"),
        (None, "does not know where its images came from"),
        ("cifar10", "is not on this machine"),
    ):
        scores["origin"]["data"] = origin
        (moved / SCORES).write_text(json.dumps(scores))
        left_out = find_images(load_classifier(moved), None, settings)
        assert (left_out.state, left_out.examples, text in left_out.note) == ("none", [], True)
        assert left_out.find_similar(np.zeros((9, 9, 3), np.uint8)) == []
    assert find_images(load_classifier(moved), photos, settings).state == "preparing"
    scores["origin"]["data"] = "digits"
    (moved / SCORES).write_text(json.dumps(scores))
    other = find_images(load_classifier(moved), None, settings)
    assert "holds none of the training images" in other.note
    with pytest.raises(UserError, match="holds none of the training images"):
        find_images(classifier, "digits", settings)

    stop = threading.Event()
    stop.set()
    empty_cache = options(tmp_path / "cache")
    stopped = find_images(classifier, None, empty_cache)
    stopped.prepare(with_stop_event(empty_cache, stop))
    message = "No similar training images: the server is stopping"
    assert (stopped.state, stopped.note) == ("none", message)


@dataclass
class Browsing:
    """The server's page in a browser, and what it asked for and complained of."""

    page: Any
    seen: list[str]
    faults: list[str]

    def drop(self, path: Path) -> None:
        """Give the page an image instead of the one before."""
        if self.page.locator("#image button[aria-label='Remove Image']").count():
            self.page.click("#image button[aria-label='Remove Image']")
        self.page.set_input_files("#image input[type=file]", path)


@pytest.fixture
def browsing(server: Running) -> Iterator[Browsing]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not on this machine")
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        one = Browsing(browser.new_page(), [], [])
        one.page.set_default_timeout(30_000)
        one.page.on("request", lambda request: one.seen.append(request.url))
        one.page.on(
            "console",
            lambda message: one.faults.append(message.text) if message.type == "error" else None,
        )
        one.page.on("pageerror", lambda error: one.faults.append(str(error)))
        one.page.goto(server.address)
        one.page.wait_for_selector("#image")
        yield one
        browser.close()
    assert one.faults == []


@pytest.mark.slow
def test_a_person_drops_an_image_and_sees_classes_map_and_similar_images_from_here_only(
    server: Running, browsing: Browsing, tmp_path: Path
) -> None:
    (tmp_path / "two.png").write_bytes(of_class(2))
    (tmp_path / "none.png").write_bytes(b"<svg/>")
    page = browsing.page
    assert "validation accuracy" in page.inner_text("body")
    assert page.locator("#map img").count() == 0
    browsing.drop(tmp_path / "two.png")
    page.wait_for_selector("#classes >> text=class2")
    page.wait_for_selector("#map img")
    page.wait_for_selector("#similar img")
    assert page.locator("#similar img").count() == 6
    assert "class2 1.00" in page.inner_text("#similar")
    browsing.drop(tmp_path / "none.png")
    page.wait_for_selector("text=not an image that can be read")
    assert page.locator("#map img").count() == 0
    assert server.run.with_suffix(".asked").read_text() == "[2]"
    assert len(browsing.seen) > 20
    assert [
        url for url in browsing.seen if not url.startswith((server.address, "data:", "blob:"))
    ] == []


@pytest.mark.slow
def test_names_of_classes_are_text_on_the_page(browsing: Browsing, tmp_path: Path) -> None:
    (tmp_path / "zero.png").write_bytes(of_class(0))
    page = browsing.page
    browsing.drop(tmp_path / "zero.png")
    page.wait_for_selector("#similar img")
    assert EVIL in page.inner_text("#classes")
    assert f"{EVIL} 1.00" in page.inner_text("#similar")
    assert page.locator("img[src=x]").count() == 0
    assert page.title() != "run"


def of_class(label: int) -> bytes:
    """Return the file of an image of a class."""
    images = toy()
    return encoded(images.images.read(np.flatnonzero(images.labels == label)[:1])[0])


@pytest.mark.parametrize(
    "path", ["outside", "http://127.0.0.1:9/a.png", "https://example.org/a.png", "../../a.png"]
)
@pytest.mark.parametrize("more", [{}, {"is_stream": True}, {"url": "https://example.org/a.png"}])
def test_the_page_reads_no_file_of_the_machine_and_fetches_no_address(
    server: Running, path: str, more: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(various(1)[0])
    path = str(tmp_path / "a.png") if path == "outside" else path
    said = []
    for event in (
        one
        for one in httpx.get(server.address + "/config").json()["dependencies"]
        if len(one["inputs"]) == 1
    ):
        asked = {
            "data": [{"path": path, "meta": {"_type": "gradio.FileData"}, **more}],
            "fn_index": event["id"],
            "session_hash": f"s{event['id']}",
        }
        assert httpx.post(server.address + "/gradio_api/queue/join", json=asked).status_code == 200
        with httpx.stream(
            "GET", f"{server.address}/gradio_api/queue/data?session_hash=s{event['id']}", timeout=30
        ) as answers:
            lines = [
                json.loads(line.removeprefix("data: "))
                for line in answers.iter_lines()
                if line.startswith("data: ")
            ]
        done = next(line for line in lines if line["msg"] == "process_completed")
        assert not done["success"], done
        said.append(done["output"]["error"])
    assert len(said) == 2
    assert [one for one in said if "nothing else is read here, and nothing fetched" in one], said


def test_the_page_tells_the_browser_to_ask_nobody_else(server: Running) -> None:
    answer = httpx.get(server.address + "/")
    assert answer.status_code == 200
    policy = answer.headers["content-security-policy"]
    assert "http" not in policy
    assert "default-src 'self'" in policy
    assert "fonts.g" not in answer.text
