"""Public data sets: fetched once from a local fake of the hub, checked, and refused in one line where that fails."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from test_data import encoded, write_parquet

from tpbench.errors import DataError
from tpbench.recipe import Data, load, with_data_at
from tpbench.training import data

CPU = torch.device("cpu")
FOLDER = "/datasets/someone/pictures/resolve/main/plain_text"


@dataclass
class Hub:
    """The part of the hub's HTTP interface that a download uses. cut: how many answers end after half of the file."""

    files: dict[str, bytes]
    cut: int = 0
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        content = self.files.get(request.path.partition("?")[0])
        if request.path.startswith("/datasets/"):
            self.asked.append(request.command)
        if content is None:
            request.send_response(404)
            request.send_header("X-Error-Code", "RepoNotFound")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        start = 0
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        checksum = hashlib.sha256(content).hexdigest()
        for name, value in {
            "Content-Length": len(content) - start,
            "ETag": f'"{checksum}"',
            "X-Linked-ETag": f'"{checksum}"',
            "X-Linked-Size": len(content),
            "X-Repo-Commit": "0" * 40,
            "Accept-Ranges": "bytes",
        }.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command == "GET":
            self.send(request, content[start:])

    def send(self, request: BaseHTTPRequestHandler, content: bytes) -> None:
        if not self.cut:
            request.wfile.write(content)
            return
        self.cut -= 1
        request.wfile.write(content[: len(content) // 2])
        request.wfile.flush()
        request.close_connection = True
        request.connection.close()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[Hub]:
    """A hub with one data set of eight images a side, which this process asks instead of the public one."""
    source = tmp_path / "source"
    other = tmp_path / "other"
    for number, folder in enumerate((source, other)):
        folder.mkdir()
        write_parquet(folder, [encoded(level=8 * number + level) for level in range(8)], [0, 1] * 4)
    (other / "test.parquet").replace(source / "test.parquet")
    sides = ("train", "test")
    fake = Hub({f"{FOLDER}/{side}-00000-of-00001.parquet": (source / f"{side}.parquet").read_bytes() for side in sides})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fake.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(constants, "ENDPOINT", fake.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield fake
        server.shutdown()


@pytest.fixture
def lines(tmp_path) -> Data:
    return Data(
        "parquet",
        root=str(tmp_path / "nowhere"),
        hub="someone/pictures/plain_text",
        image_size=8,
        classes=2,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        validation=0.25,
    )


def test_images_are_fetched_once(hub, lines, tmp_path):
    first = data.load(lines, CPU)
    assert first.images == {"train": 6, "validation": 2, "test": 8}
    assert hub.asked.count("GET") == 2
    asked = list(hub.asked)
    again = data.load(lines, CPU)
    assert hub.asked == asked, "what is in the cache is not even asked for"
    assert again.fingerprint == first.fingerprint
    own = data.load(replace(lines, root=str(tmp_path / "source"), hub=""), CPU)
    assert own.fingerprint == first.fingerprint, "they are the images of the files"


def test_files_under_root_come_first(hub, lines, tmp_path):
    data.load(replace(lines, root=str(tmp_path / "source")), CPU)
    assert hub.asked == []


def test_offline_it_says_which_files_to_put_where(hub, lines, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(DataError, match=r"train\.parquet and test\.parquet .* into .*nowhere.* --data") as caught:
            data.load(lines, CPU)
        assert "\n" not in str(caught.value)
        assert hub.asked == []
    data.load(lines, CPU)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert data.load(lines, CPU).images["test"] == 8, "control: what is in the cache needs no network"


def test_a_data_set_that_is_not_there_is_one_line(hub, lines):
    with pytest.raises(DataError, match=r"someone/other cannot be fetched from the hub \(.*404") as caught:
        data.load(replace(lines, hub="someone/other/plain_text"), CPU)
    assert "\n" not in str(caught.value)
    assert hub.asked


def test_an_interrupted_download_is_taken_up_again(hub, lines, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.cut = 1
    assert data.load(lines, CPU).images["test"] == 8
    assert hub.asked.count("GET") == 3, "the file that was cut was asked for again"


def test_a_download_that_failed_restarts_cleanly(hub, lines, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.cut = 1_000
    with pytest.raises(DataError, match="cannot be fetched"):
        data.load(lines, CPU)
    hub.cut = 0
    assert data.load(lines, CPU).images["test"] == 8


@pytest.mark.usefixtures("hub")
def test_a_damaged_file_is_named_and_fetched_again_when_it_is_gone(lines, tmp_path):
    data.load(lines, CPU)
    blob = max((tmp_path / "cache").rglob("blobs/*"), key=lambda path: path.stat().st_size)
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)
    with pytest.raises(DataError, match=r"is damaged \(checksum .*; delete ") as caught:
        data.load(lines, CPU)
    assert str(blob) in str(caught.value)
    blob.unlink()
    assert data.load(lines, CPU).images["test"] == 8


def test_a_folder_that_was_named_is_the_only_place(tmp_path):
    recipe = with_data_at(load("cifar10-cpu"), tmp_path)
    assert load("cifar10-cpu").data.hub
    with pytest.raises(DataError, match=r"train\.parquet does not exist"):
        data.load(recipe.data, CPU)


@pytest.mark.slow
def test_the_hubs_own_variables_hold(hub, tmp_path):
    """In a process of its own, which reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE as a user's does."""
    script = (
        "import sys\n"
        "from tpbench.errors import DataError\n"
        "from tpbench.recipe import Data\n"
        "from tpbench.training.data.hub import parquet_path\n"
        "try: print(parquet_path(Data('parquet', root='nowhere', hub='someone/pictures/plain_text'), 'test'))\n"
        "except DataError as error: sys.exit(str(error))\n"
    )
    surroundings = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    for offline, says in (("1", "offline mode is enabled"), ("0", "test-00000-of-00001.parquet"), ("1", str(tmp_path))):
        own = surroundings | {"HF_HUB_OFFLINE": offline}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=own, check=False)
        assert says in done.stdout + done.stderr, done.stderr[-2000:]
    assert hub.asked.count("GET") == 1
