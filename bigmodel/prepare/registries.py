"""Packages as archives of data: downloaded by their own clients (pip, npm, apt-get), checked, read in place.

Nothing is installed and nothing is unpacked to disk: members are read straight out of the wheel, tarball or .deb.
No registry's address is named here; each client knows its own, mirrors and proxies included.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bigmodel.errors import Retry, UsageError

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


def described(*packages: Package) -> dict[str, str]:
    """Of packages of one registry, what `bigmodel prepare list` says: registry, client, package, version."""
    first = packages[0]
    names = "+".join(p.name for p in packages)
    return {
        "registry": first.registry, "client": CLIENTS[first.registry], "package": names, "version": first.version,
    }  # fmt: skip


def source(package: Package, archive: Archive) -> dict[str, str]:
    """Of one package, what a manifest says of where its data is from."""
    return {
        "registry": package.registry, "package": package.name, "version": archive.version, "sha256": archive.sha256,
    }  # fmt: skip


def cache_folder(cache: str | None = None) -> Path:
    """`cache`, else $BIGMODEL_CACHE, else ~/.cache/bigmodel/corpora."""
    return Path(cache or os.environ.get("BIGMODEL_CACHE") or "~/.cache/bigmodel/corpora").expanduser()


def fetch(package: Package, cache: str | None = None, pip_only: str = "") -> Archive:
    """The package's archive, from the cache or its registry's client.

    Args:
      pip_only: what to suggest where a client is missing ('news, chinese-news').

    Raises:
      UsageError: no client, no network, unwritable cache, another checksum than the pinned one.
    """
    folder = cache_folder(cache) / package.registry / re.sub(r"[^\w.-]", "_", f"{package.name}-{package.version}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(p for p in folder.iterdir() if p.is_file()):
            digest = sha256(path)
            if package.sha256 in ("", digest):
                return Archive(path, package.version or deb_version(path), digest)
            path.unlink()  # a damaged download: fetched again
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            download(package, Path(temporary), pip_only)
            found = sorted(p for p in Path(temporary).iterdir() if p.suffix in (".whl", ".gz", ".tgz", ".zip", ".deb"))
            if len(found) != 1:
                client = CLIENTS[package.registry]
                raise UsageError(f"{client} downloaded {len(found)} archives of {package.name}, not 1")
            digest = sha256(found[0])
            if package.sha256 not in ("", digest):
                raise UsageError(
                    f"{found[0].name} has sha256 {digest[:16]}..., not the pinned {package.sha256[:16]}...: not used"
                )
            path = folder / found[0].name
            os.replace(found[0], path)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Retry(f"disk full in cache {str(folder)!r}; free some space, and the same command continues") from e
        raise UsageError(f"cache {str(folder)!r}: {e.strerror or e}; set BIGMODEL_CACHE or pass cache=") from e
    return Archive(path, package.version or deb_version(path), digest)


def download(package: Package, folder: Path, pip_only: str) -> None:
    """Runs the client of the package's registry; leaves one archive in `folder`."""
    client = CLIENTS[package.registry]
    command: list[str] = []
    if package.registry == "pypi":
        kind = "--no-binary=:all:" if package.sdist else "--only-binary=:all:"
        pinned = f"{package.name}=={package.version}"
        command = [*pip(), "download", "--quiet", "--no-deps", "--no-cache-dir", kind, "-d", str(folder), pinned]
    elif shutil.which(client) is None:
        raise UsageError(f"{package.name} needs {client}, which isn't on PATH; corpora that need only pip: {pip_only}")
    elif package.registry == "npm":
        command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    else:
        command = ["apt-get", "download", "-qq", package.name]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise UsageError(f"{client} took more than {DOWNLOAD_SECONDS} s to download {package.name}") from None
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        serious = [line for line in lines if re.match(r"(?i)(npm )?(err|e:)", line)] or lines or ["no message"]
        hint = "; is there a network, and was `apt-get update` run?" if client == "apt-get" else "; is there a network?"
        alone = f" Corpora that need only pip: {pip_only}" if client != "pip" else ""
        raise UsageError(f"{client} couldn't download {package.name}: {serious[0][:200]}{hint}{alone}")


def pip() -> list[str]:
    """A working pip: this interpreter's, else any on PATH (a venv made by uv has none of its own)."""
    for command in ([sys.executable, "-m", "pip"], ["pip"], ["pip3"], ["python3", "-m", "pip"]):
        try:
            if subprocess.run([*command, "--version"], capture_output=True, timeout=60).returncode == 0:
                return command
        except (OSError, subprocess.TimeoutExpired):
            continue
    raise UsageError("pip isn't available: python -m ensurepip, or install pip, then run the same command again")


def sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def deb_version(path: Path) -> str:
    """What apt-get brought, from the name it gives the file: NAME_VERSION_ARCH.deb."""
    parts = path.name.split("_")
    return parts[1].replace("%3a", ":") if len(parts) == 3 else ""


# ---------------------------------------------------------------------------------- archives


def members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the regular files matching `pattern` (fnmatch), in the archive's order.

    Raises:
      UsageError: an absolute name or one with '..' anywhere in the archive, an oversize or damaged one, no match.
    """
    try:
        if zipfile.is_zipfile(path):
            yield from zip_members(path, pattern)
        else:
            yield from tar_members(path, pattern)
    except BROKEN as e:
        why = " ".join(str(e).split()) or type(e).__name__
        raise UsageError(f"archive {path.name} is damaged: {why}; delete {str(path)!r}, to download it again") from e
    except OSError as e:  # gzip.BadGzipFile is one
        raise UsageError(f"can't read archive {path.name}: {e.strerror or e}") from e


def zip_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = check_names(path, [(e.filename, e.file_size) for e in entries])
        chosen = [(n, e) for n, e in zip(names, entries, strict=True) if fnmatch.fnmatchcase(n, pattern)]
        require(path, pattern, bool(chosen))
        for name, entry in chosen:
            with archive.open(entry) as f:
                yield name, bounded(path, name, f.read(MEMBER_LIMIT + 1))


def tar_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=deb_tar(path)) if path.suffix == ".deb" else tarfile.open(path) as archive:
        entries = archive.getmembers()
        names = check_names(path, [(e.name, e.size) for e in entries])
        chosen = [(n, e) for n, e in zip(names, entries, strict=True) if e.isreg() and fnmatch.fnmatchcase(n, pattern)]
        require(path, pattern, bool(chosen))
        for name, entry in chosen:
            f = archive.extractfile(entry)
            assert f is not None  # isreg() above
            yield name, bounded(path, name, f.read(MEMBER_LIMIT + 1))


def deb_tar(path: Path) -> io.BytesIO:
    """The files of a .deb as an uncompressed tar, in memory (tens of MB), by dpkg-deb: the format is its own."""
    if shutil.which("dpkg-deb") is None:
        raise UsageError(f"reading {path.name} needs dpkg-deb, which isn't on PATH")
    done = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(path)], capture_output=True)
    if done.returncode:
        raise UsageError(f"dpkg-deb can't read {path.name}: {' '.join(done.stderr.decode(errors='replace').split())}")
    return io.BytesIO(done.stdout)


def check_names(path: Path, entries: list[tuple[str, int]]) -> list[str]:
    """Names without a leading './'. Nothing is extracted here, but an archive that tries this isn't to be trusted."""
    for name, _ in entries:
        pure = PurePosixPath(name.replace("\\", "/"))
        if pure.is_absolute() or ".." in pure.parts or re.match(r"[A-Za-z]:", name):
            raise UsageError(f"archive {path.name} has an unsafe member name {name!r}: refused")
    if sum(size for _, size in entries) > ARCHIVE_LIMIT:
        raise UsageError(f"archive {path.name} unpacks to more than {ARCHIVE_LIMIT} bytes: refused")
    return [name.removeprefix("./") for name, _ in entries]


def bounded(path: Path, name: str, content: bytes) -> bytes:
    if len(content) > MEMBER_LIMIT:
        raise UsageError(f"archive {path.name}: member {name!r} is larger than {MEMBER_LIMIT} bytes: refused")
    return content


def require(path: Path, pattern: str, found: bool) -> None:
    if not found:
        raise UsageError(f"archive {path.name} has no member like {pattern!r}: another version than expected?")
