"""Data sets by name: from Python and scikit-learn, from a folder (`--data`), or from their own sites into a cache.

A set's files lie at the paths of `Entry.files` below the folder, or below the cache. What is read is checked by its
SHA-256 (of the content, that is after decompression), so that a damaged or different file is refused instead of
measured. The cache is the folder NAGJAX_CACHE, or nagjax in XDG_CACHE_HOME, or ~/.cache/nagjax; nothing is fetched
where NAGJAX_OFFLINE is set. A further set is one entry of `DATA_SETS`.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from experiments import data_formats, downloads
from experiments.data_formats import A9A_FEATURES, TEXT_CAP, Images, Split
from experiments.output import UsageError

# TEXT_CAP and A9A_FEATURES are what the experiments need to know of two sets.
__all__ = (
    "A9A_FEATURES",
    "DATA_SETS",
    "TEXT_CAP",
    "Entry",
    "Images",
    "Site",
    "Split",
    "cache_folder",
    "check",
    "fingerprint",
    "load",
)


class Site(NamedTuple):
    """One file on its data set's own site."""

    url: str
    sha256: str  # of what the site serves
    size: int  # bytes
    prepare: Callable[[bytes], bytes] | None = None  # from its content to that of the file in a folder


@dataclass(frozen=True)
class Entry:
    """One data set: `read` takes the checked content of `files`, a map from path to SHA-256, and returns the set."""

    title: str
    read: Callable[[Mapping[str, bytes]], Images | Split | str]
    files: Mapping[str, str] = field(default_factory=dict)  # empty: the set is bundled
    sites: Mapping[str, Site] = field(default_factory=dict)  # by the paths of `files`
    source: str = ""  # who made it, and its license


def load(name: str, folder: Path | None = None) -> Images | Split | str:
    """Returns a data set: bundled, or read from the folder, or without one from the cache, filled where necessary.

    A folder may hold a site's own file, by its own name, in place of the one of `Entry.files`.

    Raises:
        UsageError: A file is absent, unreadable or not the published one, or cannot be fetched.
    """
    entry = DATA_SETS[name]
    check(name, folder)
    read = _content if folder else _cached
    return entry.read({path: read(name, entry, folder or cache_folder(), path) for path in entry.files})


def check(name: str, folder: Path | None) -> None:
    """Sees to it that a data set's files are at hand, before any work; without a folder, the cache's are fetched."""
    entry = DATA_SETS[name]
    for path in entry.files:
        if folder is None:
            if _find(entry, cache_folder(), path) is None:
                _fetch(name, entry, path)
        elif _find(entry, folder, path) is None:
            raise UsageError(f"the data set {name} needs the file {path}, which --data {folder} does not hold.")


def cache_folder() -> Path:
    """Returns the folder of what was fetched; it need not exist."""
    if given := os.environ.get("NAGJAX_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nagjax"


def fingerprint(value: Images | Split | str) -> str:
    """Returns a short hash of a data set's content."""
    digest = hashlib.sha256()
    if isinstance(value, str):
        digest.update(value.encode())
    else:
        for part in value if isinstance(value, Split) else (value,):
            for array in part:
                digest.update(f"{array.shape}{array.dtype}".encode())
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _own_name(site: Site) -> str:
    return PurePosixPath(site.url).name


def _find(entry: Entry, folder: Path, path: str) -> Path | None:
    """Returns the file, or the site's own in its place, or None."""
    names = [path]
    if path in entry.sites:
        names.append(str(PurePosixPath(path).with_name(_own_name(entry.sites[path]))))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _content(
    name: str, entry: Entry, folder: Path, path: str, place: str = "--data", file: Path | None = None
) -> bytes:
    file = file or _find(entry, folder, path) or folder / path
    shown = f"{file.relative_to(folder)} in {place} {folder}"
    try:
        content = file.read_bytes()
        if file.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"the data set {name} cannot be read from {shown} ({error}).") from None
    if path in entry.sites and file.name == _own_name(entry.sites[path]) and (prepare := entry.sites[path].prepare):
        content = prepare(content)
    found = hashlib.sha256(content).hexdigest()
    if found != entry.files[path]:
        raise UsageError(
            f"the data set {name} expects another file than {shown}: the SHA-256 of its content is "
            f"{found[:12]}..., not {entry.files[path][:12]}...; fetch the published file again."
        )
    return content


def _cached(name: str, entry: Entry, folder: Path, path: str) -> bytes:
    try:
        return _content(name, entry, folder, path, "the cache")
    except UsageError as error:  # damaged since it was fetched, or another file of this name
        if path not in entry.sites:
            raise
        found = str(error)
    # The file stays until the published one is there: a cache may be a folder of the user's own.
    return _content(name, entry, folder, path, "the cache", _fetch(name, entry, path, found))


def _fetch(name: str, entry: Entry, path: str, found: str = "") -> Path:
    """Fetches one file of a set from its site into the cache; `found` says what is wrong with the one there."""
    needs = f"the data set {name} needs its files; give --data DIR, the folder that holds {path}"
    site = entry.sites.get(path)
    if site is None:
        raise UsageError(f"{needs}, made from {entry.source}: it cannot be fetched as it is.")
    refused = found or f"{needs}, or try again with a network: the cache {cache_folder()} does not hold it, and"
    if os.environ.get("NAGJAX_OFFLINE", "0") not in ("", "0"):
        raise UsageError(f"{refused} NAGJAX_OFFLINE forbids to fetch {site.url}.")
    target = cache_folder() / PurePosixPath(path).with_name(_own_name(site))
    try:
        return downloads.download(site.url, target, sha256=site.sha256, size=site.size)
    except downloads.DownloadError as error:
        raise UsageError(f"{refused} {error}.") from None
    except OSError as error:
        raise UsageError(
            f"{needs}: the cache {cache_folder()} cannot be written ({error}); or set NAGJAX_CACHE."
        ) from None


def _sites(files: Mapping[str, str], base: str, *served: Site) -> dict[str, Site]:
    """Pairs the files of a set with what a site serves, whose addresses are given below `base`."""
    return {path: site._replace(url=f"{base}/{site.url}") for path, site in zip(files, served, strict=True)}


# SHA-256 of the content after decompression.
FASHION_MNIST = {
    "fashion_mnist/train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "fashion_mnist/train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "fashion_mnist/t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "fashion_mnist/t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MNIST = {
    "mnist/train20k-images-idx3-ubyte.gz": "a11a4e2732abb0fa4e8f31a13a8d7556412b39452f305e80c7f4b77edc889936",
    "mnist/train20k-labels-idx1-ubyte.gz": "eb92585ea9285fed1427500c49eefcc06f159cc858b6d825728649a46f3f0ff8",
    "mnist/t10k-images-idx3-ubyte.gz": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "mnist/t10k-labels-idx1-ubyte.gz": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
A9A = {
    "a9a/a9a.gz": "f5d5ffd8d865ff41328e7ee043e4b020816914ff6843ff15b98905ddbedce906",
    "a9a/a9a.t.gz": "1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
}
TINY_SHAKESPEARE = {"text/tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"}
PRIDE_AND_PREJUDICE = {
    "text/pride_and_prejudice.txt": "dfc684d4f857fa938268f9ab9c5567b64bd0691251eca959644adeabe6287a4d"
}

FASHION_MNIST_SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
MNIST_SITE = "https://ossci-datasets.s3.amazonaws.com/mnist"
LIBSVM_SITE = "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary"
CHAR_RNN_SITE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"

DATA_SETS: dict[str, Entry] = {
    "digits": Entry("handwritten digits of scikit-learn", data_formats.digits, source="scikit-learn; UCI, CC BY 4.0"),
    "python_source": Entry(
        "source of Python's standard library", data_formats.python_source, source="Python, PSF license"
    ),
    "python_topics": Entry(
        "topics of Python's documentation", data_formats.python_topics, source="Python, PSF license"
    ),
    "mnist": Entry(
        "MNIST, the first 20,000 rows for training",
        data_formats.idx_split,
        MNIST,
        _sites(
            MNIST,
            MNIST_SITE,
            Site(
                "train-images-idx3-ubyte.gz",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9_912_422,
                data_formats.first_rows,
            ),
            Site(
                "train-labels-idx1-ubyte.gz",
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                28_881,
                data_formats.first_rows,
            ),
            Site(
                "t10k-images-idx3-ubyte.gz",
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                1_648_877,
            ),
            Site(
                "t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542
            ),
        ),
        source="Y. LeCun, C. Cortes, C. Burges, The MNIST database, CC BY-SA 3.0",
    ),
    "fashion_mnist": Entry(
        "Fashion-MNIST",
        data_formats.idx_split,
        FASHION_MNIST,
        _sites(
            FASHION_MNIST,
            FASHION_MNIST_SITE,
            Site(
                "train-images-idx3-ubyte.gz",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26_421_880,
            ),
            Site(
                "train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515
            ),
            Site(
                "t10k-images-idx3-ubyte.gz",
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                4_422_102,
            ),
            Site(
                "t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148
            ),
        ),
        source="Zalando SE, zalandoresearch/fashion-mnist, MIT license",
    ),
    "a9a": Entry(
        "a9a (Adult, binarized)",
        data_formats.a9a,
        A9A,
        _sites(
            A9A,
            LIBSVM_SITE,
            Site("a9a", A9A["a9a/a9a.gz"], 2_329_875),
            Site("a9a.t", A9A["a9a/a9a.t.gz"], 1_164_628),
        ),
        source="LIBSVM data sets, from UCI Adult, CC BY 4.0",
    ),
    "tinyshakespeare": Entry(
        "Tiny Shakespeare",
        data_formats.text,
        TINY_SHAKESPEARE,
        _sites(
            TINY_SHAKESPEARE,
            CHAR_RNN_SITE,
            Site("input.txt", TINY_SHAKESPEARE["text/tinyshakespeare.txt"], 1_115_394),
        ),
        source="karpathy/char-rnn, public domain",
    ),
    "pride_and_prejudice": Entry(
        "Pride and Prejudice",
        data_formats.text,
        PRIDE_AND_PREJUDICE,
        source="the text of GITenberg/Pride-and-Prejudice_1342 without its header and footer, public domain in the US",
    ),
}
