"""Data sets by name: bundled, from a folder, from the cache, and from their sites (a local server stands for them)."""

import dataclasses
import functools
import gzip
import hashlib
import http.server
import struct
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments import data, data_formats, downloads
from experiments.output import UsageError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of data sets is not beside the repository")

TRAIN, TRAIN_LABELS, TEST, TEST_LABELS = data.MNIST


def idx(array: np.ndarray) -> bytes:
    """The IDX format, from its definition: two zeros, 8 for bytes, the rank, the lengths, the values."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path):
    """A site that serves the folder `site`; its address, and what was asked for."""
    (tmp_path / "site").mkdir()
    handler = functools.partial(Handler, directory=tmp_path / "site")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.asked = []
        server.folder = tmp_path / "site"
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of its own for each test."""
    monkeypatch.setenv("NAGJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NAGJAX_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def no_network(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(downloads, "download", fail)


@pytest.fixture
def served(site, monkeypatch):
    """A small text as a data set whose site has it as `other.txt`; returns the served content."""
    content = b"It is a truth universally acknowledged"
    (site.folder / "other.txt").write_bytes(content)
    entry = data.Entry(
        "a text",
        data_formats.text,
        {"text/small.txt": sha256(content)},
        {"text/small.txt": data.Site(f"{site.url}/other.txt", sha256(content), len(content))},
        source="nobody",
    )
    monkeypatch.setitem(data.DATA_SETS, "small", entry)
    return content


@pytest.fixture
def official_mnist(tmp_path, monkeypatch):
    """A folder with the four official files of a small MNIST, one with its cut layout, and the cut arrays."""
    random = np.random.default_rng(0)
    monkeypatch.setattr(data_formats, "MNIST_ROWS", 20)
    images, labels = random.integers(0, 256, (60, 4, 3), np.uint8), random.integers(0, 10, 60, np.uint8)
    arrays = [images[:20], labels[:20], images[40:], labels[40:]]
    official = dict(
        zip(("train-images", "train-labels", "t10k-images", "t10k-labels"), [images, labels, *arrays[2:]], strict=True)
    )
    cut = {path: gzip.compress(idx(array)) for path, array in zip(data.MNIST, arrays, strict=True)}
    for path, content in cut.items():
        (tmp_path / "cut" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cut" / path).write_bytes(content)
    (tmp_path / "official" / "mnist").mkdir(parents=True)
    for name, array in official.items():
        rank = array.ndim
        (tmp_path / "official" / "mnist" / f"{name}-idx{rank}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    entry = dataclasses.replace(
        data.DATA_SETS["mnist"],
        files={path: sha256(gzip.decompress(content)) for path, content in cut.items()},
    )
    monkeypatch.setitem(data.DATA_SETS, "mnist", entry)
    return tmp_path / "official", tmp_path / "cut", arrays


class TestTable:
    def test_the_named_sets_are_there_and_say_where_they_are_from(self):
        names = "digits python_source python_topics mnist fashion_mnist tinyshakespeare pride_and_prejudice a9a"
        assert set(names.split()) <= set(data.DATA_SETS)
        assert all(entry.source and entry.title for entry in data.DATA_SETS.values())

    def test_a_site_belongs_to_a_file_and_has_its_length_and_checksum(self):
        for entry in data.DATA_SETS.values():
            assert set(entry.sites) <= set(entry.files)
            for site in entry.sites.values():
                assert site.url.startswith("http")
                assert len(bytes.fromhex(site.sha256)) == 32
                assert site.size > 0

    def test_every_set_of_files_but_the_novel_has_a_site(self):
        without = {name for name, entry in data.DATA_SETS.items() if set(entry.sites) != set(entry.files)}
        assert without == {"pride_and_prejudice"}

    @needs_shared
    def test_the_sites_checksums_and_lengths_are_those_of_the_files_kept_unchanged(self):
        unchanged = [
            (SHARED / path, site)
            for name in ("fashion_mnist", "mnist")
            for path, site in data.DATA_SETS[name].sites.items()
            if site.prepare is None
        ]
        assert len(unchanged) == 6
        for path, site in unchanged:
            assert (path.stat().st_size, sha256(path.read_bytes())) == (site.size, site.sha256)


class TestBundled:
    @pytest.mark.parametrize("name", ["digits", "python_source", "python_topics"])
    def test_a_bundled_set_needs_neither_folder_nor_network(self, name, no_network):
        assert data.fingerprint(data.load(name)) == data.fingerprint(data.load(name, Path("nowhere")))

    def test_the_topics_of_python_are_ascii_in_the_order_of_their_names(self):
        from pydoc_data.topics import topics

        text = data.load("python_topics")
        places = [
            text.index(f"{name}\n\n{topics[name][:40]}") for name in sorted(topics) if topics[name][:40].isascii()
        ]
        assert len(places) > 50
        assert places == sorted(places)
        assert text.isascii()
        assert len(text) <= data.TEXT_CAP


class TestFolder:
    @needs_shared
    def test_mnist_has_its_published_counts(self):
        split = data.load("mnist", SHARED)
        assert [part.inputs.shape for part in split] == [(20_000, 784), (10_000, 784)]
        # The official counts of the test labels 0 to 9.
        counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert np.bincount(split.test.labels).tolist() == counts
        assert split.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]

    @needs_shared
    def test_the_novel_is_the_published_text(self):
        text = data.load("pride_and_prejudice", SHARED)
        assert (len(text), text.count("\n"), len(set(text))) == (684_768, 13_030, 75)
        assert text.startswith("PRIDE AND PREJUDICE\n\nBy Jane Austen\n")

    def test_both_layouts_of_mnist_give_the_same_rows(self, official_mnist):
        official, cut, arrays = official_mnist
        one, two = data.load("mnist", official), data.load("mnist", cut)
        assert data.fingerprint(one) == data.fingerprint(two)
        np.testing.assert_array_equal(one.train.inputs, (arrays[0].reshape(20, 12) / 255).astype(np.float32))
        np.testing.assert_array_equal(one.train.labels, arrays[1])
        np.testing.assert_array_equal(one.test.labels, arrays[3])

    @pytest.mark.parametrize("rows", [0, 19, 20])
    @pytest.mark.parametrize("shape", [(), (4, 3)])
    def test_an_official_file_without_further_rows_stays_as_it_is(self, official_mnist, rows, shape):
        content = idx(np.ones((rows, *shape), np.uint8))
        assert data_formats.first_rows(content) == content

    @pytest.mark.parametrize("shape", [(), (4, 3)])
    def test_an_official_file_is_cut_after_the_rows_that_are_used(self, official_mnist, shape):
        array = np.random.default_rng(1).integers(0, 256, (21, *shape), np.uint8)
        assert data_formats.first_rows(idx(array)) == idx(array[:20])

    @pytest.mark.parametrize("length", [0, 3, 4, 9, 15])
    def test_an_official_file_cut_within_its_header_is_refused(self, official_mnist, length):
        official, _, _ = official_mnist
        path = official / "mnist" / "train-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:length]))
        with pytest.raises(UsageError, match=r"mnist expects another file than mnist/train-images-idx3-ubyte\.gz in"):
            data.load("mnist", official)

    def test_an_official_file_with_another_row_is_refused(self, official_mnist):
        official, _, _ = official_mnist
        path = official / "mnist" / "train-images-idx3-ubyte.gz"
        content = bytearray(gzip.decompress(path.read_bytes()))
        content[16 + 7] ^= 1
        path.write_bytes(gzip.compress(bytes(content)))
        with pytest.raises(UsageError, match=r"mnist expects another file than mnist/train-images-idx3-ubyte\.gz in"):
            data.load("mnist", official)

    def test_a_folder_is_never_filled_from_the_network(self, served, no_network, tmp_path):
        with pytest.raises(UsageError, match=f"set small needs the file text/small.txt, which --data {tmp_path} does"):
            data.load("small", tmp_path)

    def test_a_folder_may_hold_the_sites_own_file(self, served, no_network, tmp_path):
        (tmp_path / "text").mkdir()
        (tmp_path / "text" / "other.txt").write_bytes(served)
        assert data.load("small", tmp_path) == served.decode()

    @pytest.mark.parametrize("damage", ["one bit", "noise", "cut", "empty", "no archive"])
    def test_a_damaged_file_is_refused_by_name(self, official_mnist, damage):
        _, cut, _ = official_mnist
        content = (cut / TRAIN).read_bytes()
        middle = len(content) // 2
        (cut / TRAIN).write_bytes(
            {
                "one bit": content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :],
                "noise": content[:10] + b"\xff" * 50,
                "cut": content[:middle],
                "empty": b"",
                "no archive": gzip.decompress(content),
            }[damage]
        )
        with pytest.raises(UsageError, match=rf"data set mnist .*mnist/train20k-images.* in --data {cut}"):
            data.load("mnist", cut)


class TestCache:
    def test_the_cache_is_the_given_folder_or_that_of_the_platform(self, monkeypatch, cache, tmp_path):
        assert data.cache_folder() == cache
        monkeypatch.delenv("NAGJAX_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert data.cache_folder() == tmp_path / "xdg" / "nagjax"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert data.cache_folder() == tmp_path / "home" / ".cache" / "nagjax"

    def test_a_set_is_fetched_once(self, served, site, cache):
        assert data.load("small") == served.decode()
        assert (cache / "text" / "other.txt").read_bytes() == served
        assert data.load("small") == served.decode()
        assert site.asked == ["/other.txt"]

    def test_what_the_cache_holds_needs_no_network(self, served, cache, no_network):
        (cache / "text").mkdir(parents=True)
        (cache / "text" / "small.txt").write_bytes(served)
        assert data.load("small") == served.decode()

    @pytest.mark.parametrize("name", ["other.txt", "small.txt"])
    def test_a_damaged_file_of_the_cache_is_fetched_again(self, served, site, cache, name):
        (cache / "text").mkdir(parents=True)
        (cache / "text" / name).write_bytes(served[:-1] + b"?")
        assert data.load("small") == served.decode()
        assert site.asked == ["/other.txt"]
        assert (cache / "text" / "other.txt").read_bytes() == served

    @pytest.mark.parametrize("name", ["other.txt", "small.txt"])
    def test_a_file_of_the_cache_that_is_not_the_published_one_stays_where_none_can_be_fetched(
        self, served, site, cache, monkeypatch, name
    ):
        (cache / "text").mkdir(parents=True)
        (cache / "text" / name).write_bytes(b"of the user's own")
        mismatch = rf"small expects another file than text/{name} in the cache {cache}: the SHA-256"
        monkeypatch.setenv("NAGJAX_OFFLINE", "1")
        with pytest.raises(UsageError, match=rf"{mismatch}.* NAGJAX_OFFLINE forbids to fetch {site.url}/other\.txt"):
            data.load("small")
        monkeypatch.delenv("NAGJAX_OFFLINE")
        (site.folder / "other.txt").unlink()
        with pytest.raises(UsageError, match=rf"{mismatch}.* cannot be fetched \(HTTP 404"):
            data.load("small")
        assert [(path.name, path.read_bytes()) for path in (cache / "text").iterdir()] == [(name, b"of the user's own")]

    def test_a_file_by_another_name_than_the_sites_is_never_removed(self, served, site, cache):
        (cache / "text").mkdir(parents=True)
        (cache / "text" / "small.txt").write_bytes(b"of the user's own")
        assert [data.load("small"), data.load("small")] == [served.decode()] * 2
        assert (cache / "text" / "small.txt").read_bytes() == b"of the user's own"
        assert site.asked == ["/other.txt"]

    def test_a_damaged_file_of_a_cache_that_cannot_be_written_is_told(self, served, cache, monkeypatch):
        (cache / "text").mkdir(parents=True)
        (cache / "text" / "other.txt").write_bytes(b"damaged")

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(downloads, "download", refuse)
        with pytest.raises(
            UsageError, match=r"cache .* cannot be written \(.*Permission denied\); or set NAGJAX_CACHE"
        ):
            data.load("small")
        assert (cache / "text" / "other.txt").read_bytes() == b"damaged"

    def test_all_files_are_fetched_before_any_work(self, served, site, cache):
        data.check("small", None)
        assert site.asked == ["/other.txt"]
        assert (cache / "text" / "other.txt").is_file()

    def test_mnist_from_its_site_is_cut_to_the_rows_of_the_folder(self, official_mnist, site, monkeypatch):
        official, cut, _ = official_mnist
        entry, sites = data.DATA_SETS["mnist"], {}
        for path, old in entry.sites.items():
            name = old.url.rpartition("/")[2]
            content = (official / "mnist" / name).read_bytes()
            (site.folder / name).write_bytes(content)
            sites[path] = old._replace(url=f"{site.url}/{name}", sha256=sha256(content), size=len(content))
        monkeypatch.setitem(data.DATA_SETS, "mnist", dataclasses.replace(entry, sites=sites))
        assert data.fingerprint(data.load("mnist")) == data.fingerprint(data.load("mnist", cut))
        assert len(site.asked) == 4

    def test_offline_the_message_says_set_site_and_flag(self, served, site):
        entry = data.DATA_SETS["small"]
        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
            url = f"http://127.0.0.1:{closed.server_port}/other.txt"
        sites = {path: old._replace(url=url) for path, old in entry.sites.items()}
        data.DATA_SETS["small"] = dataclasses.replace(entry, sites=sites)
        message = (
            r"set small needs its files; give --data DIR, the folder that holds text/small\.txt, or try again with"
        )
        with pytest.raises(
            UsageError, match=rf"{message} a network: .* {url} cannot be reached \(Connection refused\)\."
        ):
            data.load("small")

    def test_a_site_that_serves_another_file_is_refused(self, served, site, cache):
        (site.folder / "other.txt").write_bytes(served[::-1])
        with pytest.raises(UsageError, match=r"small .*--data DIR.*serves another file than the published one"):
            data.load("small")
        assert list((cache / "text").iterdir()) == []

    def test_where_it_is_forbidden_nothing_is_fetched(self, served, no_network, monkeypatch):
        monkeypatch.setenv("NAGJAX_OFFLINE", "1")
        with pytest.raises(UsageError, match=r"small needs its files; give --data DIR.* NAGJAX_OFFLINE forbids"):
            data.load("small")

    def test_a_set_without_a_site_names_its_project(self, no_network):
        match = (
            r"give --data DIR.*text/pride_and_prejudice\.txt, made from the text of GITenberg/Pride-and-Prejudice_1342"
        )
        with pytest.raises(UsageError, match=match):
            data.load("pride_and_prejudice")

    def test_a_cache_that_cannot_be_written_is_told(self, served, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("in the way")
        monkeypatch.setenv("NAGJAX_CACHE", str(tmp_path / "file"))
        with pytest.raises(UsageError, match=r"cache .*file cannot be written .* or set NAGJAX_CACHE"):
            data.load("small")
