"""Downloads against a local server that misbehaves on purpose, and archives that try to leave their folder."""

import gzip
import hashlib
import http.server
import io
import random
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import types
import zipfile
from pathlib import Path

import pytest

from experiments import archives, downloads
from experiments.archives import ArchiveError, unpack
from experiments.downloads import DownloadError, download

ROOT = Path(__file__).parents[2]
SPEECH = ROOT.parent / "shared" / "data" / "fsdd" / "fsdd_idx00-19.tar.xz"
CONTENT = bytes(range(256)) * 1200  # 307,200 bytes: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request by the next behavior of the server's plan; the last one stays."""

    def do_GET(self):
        server = self.server
        with server.lock:
            behavior = server.plan.pop(0) if len(server.plan) > 1 else server.plan[0]
            server.ranges.append(self.headers.get("Range"))
        if isinstance(behavior, int):
            return self.send_error(behavior)
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and "no ranges" not in str(behavior) else 0
        if start >= len(CONTENT):
            return self.send_error(416)
        body = CONTENT[start:]
        if behavior == "other":
            body = body[::-1]
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if behavior == "other range" else start
            body = CONTENT[first:] if behavior == "other range" else body
            self.send_header("Content-Range", f"bytes {first}-{len(CONTENT) - 1}/{len(CONTENT)}")
        if behavior == "endless":
            self.end_headers()
            while not server.over.is_set():
                self.wfile.write(CONTENT)
            return None
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if behavior in ("truncated", "truncated, no ranges", "stalled", "reset"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
        if behavior == "stalled":
            server.over.wait(30)
        elif behavior == "reset":
            # A close with a linger time of 0 sends a reset instead of an end.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif behavior == "slow":
            for place in range(0, len(body), HALF // 4):
                self.wfile.write(body[place : place + HALF // 4])
                time.sleep(server.pause)
        elif "truncated" not in behavior:
            self.wfile.write(body)
        return None

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.ranges, self.pause = ["fine"], [], 0.05
        self.lock, self.over = threading.Lock(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/set.bin"

    def handle_error(self, *_):
        """A client that hangs up is part of the tests."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.01)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads by a plan and returns the target."""

    def fetch(*plan, **options):
        server.plan[:] = plan
        server.ranges.clear()
        return download(server.url, tmp_path / "sets" / "set.bin", **{"sha256": SHA256, **options})

    return fetch


@pytest.fixture
def part(tmp_path):
    return tmp_path / "sets" / ".set.bin.part"


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestDownload:
    @pytest.mark.parametrize("size", [None, len(CONTENT)])
    def test_a_file_arrives_whole_under_its_name_and_nothing_else_stays(self, fetch, size):
        target = fetch("fine", size=size)
        assert target.read_bytes() == CONTENT
        assert files(target.parent) == ["set.bin"]

    def test_a_file_that_is_there_is_not_asked_for_again(self, fetch, server):
        fetch("fine")
        assert fetch(404).read_bytes() == CONTENT
        assert server.ranges == []

    def test_a_damaged_file_is_replaced(self, fetch):
        target = fetch("fine")
        target.write_bytes(CONTENT[:-1] + b"x")
        assert fetch("fine").read_bytes() == CONTENT

    def test_a_truncated_answer_is_completed_from_where_it_ended(self, fetch, server):
        assert fetch("truncated", "truncated", "fine").read_bytes() == CONTENT
        assert server.ranges == [None, f"bytes={HALF}-", f"bytes={HALF + HALF // 2}-"]

    def test_a_reset_connection_is_tried_again(self, fetch, server):
        assert fetch("reset", "fine").read_bytes() == CONTENT
        assert len(server.ranges) == 2

    def test_a_silent_server_is_left_after_the_timeout_and_tried_again(self, fetch, server):
        start = time.monotonic()
        assert fetch("stalled", "fine", timeout=0.3).read_bytes() == CONTENT
        assert 0.3 <= time.monotonic() - start < 5
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_server_that_is_slow_but_not_silent_is_waited_for(self, fetch, server):
        # Seven pauses are longer than the timeout, and each is so much shorter that a busy machine does not matter.
        server.pause, start = 0.3, time.monotonic()
        assert fetch("slow", timeout=2).read_bytes() == CONTENT
        assert time.monotonic() - start > 2
        assert server.ranges == [None]

    def test_an_unavailable_server_is_tried_again(self, fetch, server):
        assert fetch(503, 500, "fine").read_bytes() == CONTENT
        assert len(server.ranges) == 3

    def test_a_server_without_ranges_sends_the_whole_file_again(self, fetch, server):
        assert fetch("truncated", "no ranges").read_bytes() == CONTENT
        assert server.ranges == [None, f"bytes={HALF}-"]

    def test_a_range_that_was_not_asked_for_is_not_appended(self, fetch):
        assert fetch("truncated", "other range", "fine").read_bytes() == CONTENT

    @pytest.mark.parametrize(
        ("behavior", "reason"),
        [(503, "HTTP 503 Service Unavailable"), ("truncated, no ranges", "cut off after 153,600 of 307,200 bytes")],
    )
    def test_failures_without_progress_end_after_the_given_attempts(self, fetch, server, behavior, reason):
        with pytest.raises(DownloadError, match=rf"set\.bin cannot be fetched \({reason}; 3 attempts\)"):
            fetch(behavior, retries=2)
        assert len(server.ranges) == 3

    def test_progress_makes_further_attempts_free(self, fetch, server):
        assert fetch(*["truncated"] * 6, "fine", retries=1).read_bytes() == CONTENT
        assert len(server.ranges) == 7

    def test_an_absent_file_is_not_tried_again_and_leaves_nothing(self, fetch, server, part):
        with pytest.raises(DownloadError, match=r"http://.*/set\.bin cannot be fetched \(HTTP 404 Not Found\)"):
            fetch(404)
        assert len(server.ranges) == 1
        assert files(part.parent) == []

    def test_a_wrong_checksum_names_both_and_removes_what_came(self, fetch, server, part):
        found = hashlib.sha256(CONTENT[::-1]).hexdigest()
        with pytest.raises(DownloadError, match=f"another file .*expected {SHA256}, found {found}"):
            fetch("other")
        assert files(part.parent) == []
        assert len(server.ranges) == 1

    def test_an_answer_longer_than_the_published_file_is_cut_off(self, fetch):
        with pytest.raises(DownloadError, match="another file than the published one"):
            fetch("endless", size=len(CONTENT))

    def test_a_part_of_an_earlier_run_is_resumed(self, fetch, server, part):
        part.parent.mkdir()
        part.write_bytes(CONTENT[:1000])
        assert fetch("fine").read_bytes() == CONTENT
        assert server.ranges == ["bytes=1000-"]

    @pytest.mark.parametrize("size", [None, len(CONTENT)])
    def test_a_damaged_part_is_fetched_anew_before_the_site_is_blamed(self, fetch, server, part, size):
        part.parent.mkdir()
        part.write_bytes(b"x" * 1000)
        assert fetch("fine", size=size).read_bytes() == CONTENT
        assert server.ranges == ["bytes=1000-", None]
        assert files(part.parent) == ["set.bin"]

    def test_a_damaged_part_of_the_whole_length_is_fetched_anew(self, fetch, server, part):
        part.parent.mkdir()
        part.write_bytes(CONTENT[:-1] + b"x")
        assert fetch("fine", size=len(CONTENT)).read_bytes() == CONTENT
        assert server.ranges == [None]

    def test_a_rest_of_another_file_is_fetched_anew(self, fetch, server):
        assert fetch("truncated", "other", "fine").read_bytes() == CONTENT
        assert server.ranges == [None, f"bytes={HALF}-", None]

    def test_a_site_with_another_file_is_asked_twice_at_most(self, fetch, server, part):
        part.parent.mkdir()
        part.write_bytes(CONTENT[:1000])
        found = hashlib.sha256(CONTENT[::-1]).hexdigest()
        with pytest.raises(DownloadError, match=f"serves another file .*found {found}"):
            fetch("other")
        assert server.ranges == ["bytes=1000-", None]
        assert files(part.parent) == []

    @pytest.mark.parametrize("size", [None, len(CONTENT)])
    def test_a_complete_part_takes_its_name(self, fetch, server, part, size):
        part.parent.mkdir()
        part.write_bytes(CONTENT)
        assert fetch("fine", size=size).read_bytes() == CONTENT
        assert len(server.ranges) == (0 if size else 2)

    def test_a_part_longer_than_the_file_starts_anew(self, fetch, server, part):
        part.parent.mkdir()
        part.write_bytes(CONTENT + b"more")
        assert fetch("fine", size=len(CONTENT)).read_bytes() == CONTENT
        assert server.ranges == [None]

    def test_an_interrupt_leaves_the_part_for_the_next_run(self, fetch, server, part, monkeypatch):
        read, chunks = downloads._read, []

        def interrupted(response):
            if sum(map(len, chunks)) > HALF // 2:
                raise KeyboardInterrupt
            chunks.append(read(response))
            return chunks[-1]

        monkeypatch.setattr(downloads, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("fine")
        came = b"".join(chunks)
        assert files(part.parent) == [".set.bin.part"]
        assert part.read_bytes() == came == CONTENT[: len(came)]
        monkeypatch.setattr(downloads, "_read", read)
        assert fetch("fine").read_bytes() == CONTENT
        assert server.ranges == [f"bytes={len(came)}-"]

    def test_processes_that_want_one_file_fetch_it_once(self, server, tmp_path):
        server.plan[:] = ["slow"]
        code = (
            "import sys; from pathlib import Path; from experiments.downloads import download\n"
            "download(sys.argv[1], Path(sys.argv[2]), sha256=sys.argv[3])"
        )
        target = tmp_path / "set.bin"
        command = [sys.executable, "-c", code, server.url, str(target), SHA256]
        processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
        assert [process.wait(30) for process in processes] == [0, 0, 0]
        assert target.read_bytes() == CONTENT
        assert server.ranges == [None]
        assert files(tmp_path) == ["set.bin"]

    def test_an_unreachable_host_is_not_waited_for(self, tmp_path, monkeypatch):
        waits = []
        monkeypatch.setattr(downloads, "time", types.SimpleNamespace(sleep=waits.append))
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound and not listening: refuses
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/set.bin"
            with pytest.raises(DownloadError, match=r"set\.bin cannot be reached \(Connection refused\)"):
                download(url, tmp_path / "set.bin", sha256=SHA256)
        assert waits == []
        assert files(tmp_path) == []

    def test_other_addresses_than_of_the_web_are_refused(self, tmp_path):
        with pytest.raises(ValueError, match="url must be an address of http or https, got 'file:///etc/hosts'"):
            download("file:///etc/hosts", tmp_path / "hosts", sha256=SHA256)

    @pytest.mark.parametrize("terminal", [True, False])
    def test_progress_is_shown_on_a_terminal_only(self, fetch, monkeypatch, terminal):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stderr", stream)
        fetch("fine")
        assert ("set.bin" in stream.getvalue()) == terminal
        assert ("307.2" in stream.getvalue()) == terminal


def tarball(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, f"w:{path.suffix[1:]}") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def of_type(name: str, kind: bytes, to: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def zipball(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, content in members:
            zipped.writestr(name, content)
    return path


def zip_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = 0o120777 << 16
    return member


class TestUnpack:
    @pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "zip"])
    def test_files_and_folders_come_out_and_nothing_else_stays(self, tmp_path, kind):
        archive = tmp_path / f"set.{kind}"
        if kind == "zip":
            zipball(archive, ("one/two.txt", b"2"), ("three.txt", b"3"))
        else:
            folder = of_type("one", tarfile.DIRTYPE)
            folder.mode = 0o755
            members = [(folder, b""), (tarfile.TarInfo("one/two.txt"), b"2"), (tarfile.TarInfo("three.txt"), b"3")]
            tarball(archive, *members)
        folder = unpack(archive, tmp_path / "out" / "set")
        assert (folder / "one" / "two.txt").read_bytes() == b"2"
        assert (folder / "three.txt").read_bytes() == b"3"
        assert files(tmp_path / "out") == ["set"]

    @pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt", "C:\\out.txt"])
    @pytest.mark.parametrize("kind", ["tar.xz", "zip"])
    def test_a_path_that_leads_out_is_refused_and_nothing_is_kept(self, tmp_path, name, kind):
        archive = tmp_path / f"set.{kind}"
        if kind == "zip":
            zipball(archive, ("good.txt", b"good"), (name, b"bad"))
        else:
            tarball(archive, (tarfile.TarInfo("good.txt"), b"good"), (tarfile.TarInfo(name), b"bad"))
        with pytest.raises(ArchiveError, match=r"set\.(tar\.xz|zip) is refused: .*out\.txt' leads out of its folder"):
            unpack(archive, tmp_path / "in" / "set")
        assert files(tmp_path / "in") == []
        assert not (tmp_path / "out.txt").exists()

    @pytest.mark.parametrize(
        "member",
        [
            of_type("link", tarfile.SYMTYPE, "/etc"),
            of_type("link", tarfile.SYMTYPE, "good.txt"),
            of_type("link", tarfile.LNKTYPE, "good.txt"),
            of_type("pipe", tarfile.FIFOTYPE),
            of_type("device", tarfile.CHRTYPE),
        ],
        ids=["link out", "link", "hard link", "pipe", "device"],
    )
    def test_links_and_devices_are_refused(self, tmp_path, member):
        archive = tarball(tmp_path / "set.tar.gz", (tarfile.TarInfo("good.txt"), b"good"), (member, b""))
        with pytest.raises(ArchiveError, match="is neither a file nor a folder"):
            unpack(archive, tmp_path / "set")
        assert files(tmp_path) == ["set.tar.gz"]

    def test_a_link_in_a_zip_archive_is_refused(self, tmp_path):
        archive = zipball(tmp_path / "set.zip", (zip_link("link"), b"/etc"))
        with pytest.raises(ArchiveError, match="'link' is neither a file nor a folder"):
            unpack(archive, tmp_path / "set")

    @pytest.mark.parametrize("name", ["set.tar.gz", "set.tar.xz", "set.zip"])
    @pytest.mark.parametrize("damage", ["cut", "changed", "other"])
    def test_a_damaged_archive_is_told_and_leaves_nothing(self, tmp_path, name, damage):
        archive = tmp_path / name
        noise = random.Random(0).randbytes(5000)
        if name == "set.zip":
            zipball(archive, ("noise", noise))
        else:
            tarball(archive, (tarfile.TarInfo("noise"), noise))
        content = archive.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        archive.write_bytes({"cut": content[:middle], "changed": flipped, "other": b"no archive"}[damage])
        with pytest.raises(ArchiveError, match=f"{name} is damaged"):
            unpack(archive, tmp_path / "set")
        assert files(tmp_path) == [name]

    def test_a_folder_that_is_there_and_an_unknown_kind_are_refused(self, tmp_path):
        (tmp_path / "set").mkdir()
        with pytest.raises(ArchiveError, match="set is already there"):
            unpack(zipball(tmp_path / "set.zip"), tmp_path / "set")
        (tmp_path / "set.gz").write_bytes(gzip.compress(b"x"))
        with pytest.raises(ArchiveError, match=r"set\.gz is no archive of a known kind"):
            unpack(tmp_path / "set.gz", tmp_path / "other")

    def test_an_interrupt_leaves_no_folder(self, tmp_path, monkeypatch):
        def interrupted(archive, folder):
            (folder / "half").write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(archives, "_unzip", interrupted)
        with pytest.raises(KeyboardInterrupt):
            unpack(tmp_path / "set.zip", tmp_path / "set")
        assert files(tmp_path) == []

    @pytest.mark.skipif(not SPEECH.is_file(), reason="the folder of data sets is not beside the repository")
    def test_the_speech_archive_holds_its_1200_recordings(self, tmp_path):
        names = files(unpack(SPEECH, tmp_path / "fsdd") / "recordings")
        speakers = {name.split("_")[1] for name in names}
        expected = {f"{digit}_{speaker}_{i}.wav" for digit in range(10) for speaker in speakers for i in range(20)}
        assert (len(names), len(speakers)) == (1200, 6)
        assert set(names) == expected
