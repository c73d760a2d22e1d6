"""Folders of object stores, gs:// and s3://: conditional writes, listings, and copies on this disk.

A version identifies an object's content: its generation in Google Cloud Storage, its ETag in S3. Where there is no
object it is `ABSENT`.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bigmodel import files
from bigmodel.errors import Retry, UsageError

ABSENT = "absent"


def opened(folder: Any) -> Folder:
    """The folder of a URL. UsageError: of a store whose writes can't be conditional."""
    scheme = str(folder).partition("://")[0]
    if scheme not in ("gs", "s3"):
        raise UsageError(f"{str(folder)!r}: runs are kept on a disk, in gs:// or in s3://")
    return (_Gcs if scheme == "gs" else _S3)(str(folder))


class Folder:
    """What both stores share, through fsspec. Names are relative to the folder."""

    def __init__(self, url: str):
        import fsspec

        files.uncached_listings()
        self.url = url.rstrip("/")
        self.fs, self.root = fsspec.core.url_to_fs(self.url)

    def now(self) -> datetime.datetime:
        """The time by the store's clock, whatever this machine's says."""
        probe = f"{self.root}/.now-{uuid.uuid4().hex[:8]}"
        self.fs.pipe_file(probe, b"now")
        try:
            return _modified(self.fs.info(probe))
        finally:
            self.fs.rm_file(probe)

    def age(self, name: str) -> float:
        """Seconds since the object was written, by the store's clock."""
        return (self.now() - _modified(self.fs.info(f"{self.root}/{name}"))).total_seconds()

    def md5(self, name: str) -> str:
        """The hash of an object's content in hexadecimal digits, as the store has it; "" where it has none."""
        info = self.fs.info(f"{self.root}/{name}")
        if text := info.get("md5Hash"):
            return base64.b64decode(text).hex()
        tag = str(info.get("ETag", "")).strip('"')
        return tag if re.fullmatch("[0-9a-f]{32}", tag) else ""  # of several parts it is something else

    def listing(self) -> dict[str, dict[str, Any]]:
        """name -> fsspec's info of every object under the folder, by one listing."""
        found = self.fs.find(self.root, detail=True)
        return {path.removeprefix(f"{self.root}/"): info for path, info in found.items()}

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """name -> content, by a request each, many at a time; without those that are gone by now."""
        paths = [f"{self.root}/{name}" for name in names]
        found = self.fs.cat(paths, on_error="return") if paths else {}
        found = found if isinstance(found, dict) else {paths[0]: found}  # fsspec unwraps a list of one
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        return {path.removeprefix(f"{self.root}/"): x for path, x in found.items() if isinstance(x, bytes)}

    def put(self, local: Path, name: str) -> None:
        """Copies a folder of this disk to `name`."""
        self.fs.put(f"{local}/", f"{self.root}/{name}/", recursive=True)

    def get(self, name: str, local: Path) -> None:
        """Copies the folder `name` to this disk."""
        self.fs.get(f"{self.root}/{name}/", f"{local}/", recursive=True)

    def remove(self, name: str) -> None:
        """Removes the folder `name`, if it is there."""
        if self.fs.exists(f"{self.root}/{name}"):
            self.fs.rm(f"{self.root}/{name}", recursive=True)

    def read(self, name: str) -> tuple[bytes | None, Any]:
        """(content, version); (None, ABSENT) where there is no such object."""
        raise NotImplementedError

    def write(self, name: str, content: bytes, version: Any) -> Any:
        """Writes if the object's version is this one. Returns the new version; None: it is another one.

        A reply that is lost is asked for again, so that None may also follow a write that took place.
        """
        raise NotImplementedError


class _Gcs(Folder):
    def __init__(self, url: str):
        import tensorstore as ts

        super().__init__(url)
        try:
            self.store = ts.KvStore.open(self.url + "/").result()
        except ValueError as e:
            raise UsageError(f"{url!r} is no folder of a bucket: {str(e).rpartition(': ')[2]}") from e

    def contents(self, names: Iterable[str]) -> dict[str, bytes]:
        """As `Folder.contents`, by tensorstore: gcsfs takes 8 ms of Python a request."""
        asked = {name: self.store.read(name) for name in names}
        found = {name: self._asked(lambda _, future=future: future, name) for name, future in asked.items()}
        return {name: x.value for name, x in found.items() if x.state == "value"}

    def read(self, name: str) -> tuple[bytes | None, Any]:
        found = self._asked(self.store.read, name)
        return (found.value, found.stamp.generation) if found.state == "value" else (None, ABSENT)

    def write(self, name: str, content: bytes, version: Any) -> Any:
        nothing = b"\2"  # tensorstore's generation of what isn't there
        stamp = self._asked(self.store.write, name, content, if_equal=nothing if version == ABSENT else version)
        return stamp.generation or None

    def _asked(self, method: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(name, *args, **kwargs).result()
        except Exception as e:
            raise Retry(f"{self.url}/{name}: {str(e).splitlines()[0][:200]}; the same command continues") from e


class _S3(Folder):
    def _asked(self, method: str, name: str, **kwargs: Any) -> Any:
        import botocore.exceptions

        bucket, _, key = f"{self.root}/{name}".partition("/")
        try:
            return self.fs.call_s3(method, Bucket=bucket, Key=key, **kwargs)
        except FileNotFoundError:
            return None
        except Exception as e:  # s3fs raises OSErrors of its own with botocore's as their cause
            cause = e.__cause__ if isinstance(e.__cause__, botocore.exceptions.ClientError) else e
            code = getattr(cause, "response", {}).get("Error", {}).get("Code", "")
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                return None
            raise Retry(f"{self.url}/{name}: {str(e).splitlines()[0][:200]}; the same command continues") from e

    def read(self, name: str) -> tuple[bytes | None, Any]:
        import fsspec

        found = self._asked("get_object", name)
        if found is None:
            return None, ABSENT
        return fsspec.asyn.sync(self.fs.loop, found["Body"].read), found["ETag"]

    def write(self, name: str, content: bytes, version: Any) -> Any:
        condition = {"IfNoneMatch": "*"} if version == ABSENT else {"IfMatch": version}
        found = self._asked("put_object", name, Body=content, **condition)
        return found["ETag"] if found else None


# ------------------------------------------------------------------------------- copies on this disk

RECORDS = ("plan.jsonl", "result.json", "config.json", "metrics.jsonl", "branches.jsonl", "error.json", "start.txt")


class Mirror:
    """A folder of this disk with files of a sweep's folder in a bucket, as a listing found them.

    Lies in the cache folder. A file is read again only if the listing says that it has changed.

    Attributes: home; infos (name -> fsspec's info).
    """

    def __init__(self, url: str):
        self.store = opened(url)
        key = hashlib.sha256(self.store.url.encode()).hexdigest()[:16]
        self.home = files.cache_folder() / "buckets" / key / self.store.url.rpartition("/")[2]
        self.infos = self.store.listing()
        self.versions = self.home.parent / "versions"
        self.versions.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)
        for path in (*self.home.glob("*"), *self.home.glob("*/*")):
            if path.name in RECORDS and str(path.relative_to(self.home)) not in self.infos:
                path.unlink()  # gone from the bucket

    def fetch(self, names: Iterable[str]) -> None:
        """Makes these files of the listing as they are there."""
        new = [name for name in names if not (self._mark(name).exists() and (self.home / name).exists())]
        for name, content in self.store.contents(new).items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(path)
            self._mark(name).touch()

    def _mark(self, name: str) -> Path:
        info = self.infos[name]
        version = [info.get(key) for key in ("size", "etag", "ETag", "generation", "LastModified")]
        return self.versions / hashlib.sha256(f"{name} {version}".encode()).hexdigest()

    def age(self, name: str) -> float:
        """Seconds since an object of the listing was written, by the store's clock."""
        return (self._now - _modified(self.infos[name])).total_seconds()

    @functools.cached_property
    def _now(self) -> datetime.datetime:
        return self.store.now()


def local(folder: Any) -> Any:
    """A folder of runs itself or, of one in a bucket, a copy of its records on this disk."""
    if "://" not in str(folder):
        return folder
    mirror = Mirror(str(folder))
    mirror.fetch(name for name in mirror.infos if name.count("/") <= 1 and name.rpartition("/")[2] in RECORDS)
    return mirror.home


def _modified(info: dict[str, Any]) -> datetime.datetime:
    return info.get("LastModified") or info["mtime"]  # type: ignore[no-any-return]
