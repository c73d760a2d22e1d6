"""Object stores on loopback, each a process of its own: gs:// by gcp-storage-emulator, s3:// by moto.

    with emulators.gcs() as store:
        subprocess.run([...], env={**os.environ, **store.env})    # the bucket gs://bucket is there, empty
        store.requests()                                          # since the last call

gcp-storage-emulator ignores `ifGenerationMatch`, and neither it nor moto takes a condition and a write as one
step. Both are added here, under one lock, as the real stores have it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus, server

BUCKET = "bucket"


@dataclass(frozen=True)
class Store:
    """Attributes: scheme, as 'gs'; env: the variables by which programs find it; port; process."""

    scheme: str
    env: dict[str, str]
    port: int
    process: subprocess.Popen

    def url(self, path: str = "") -> str:
        return f"{self.scheme}://{BUCKET}/{path}"

    def requests(self) -> int:
        """How many requests it has served since the last call."""
        return int(self._ask("count"))

    def lose_replies(self, every: int) -> None:
        """From now on every so many-th write is done and its connection closed without a reply; 0: none."""
        self._ask(f"lose/{every}")

    def refuse(self, every: int) -> None:
        """From now on every so many-th request gets 503; 0: none, 1: all."""
        self._ask(f"refuse/{every}")

    def slow(self, milliseconds: int) -> None:
        """From now on every request is answered so much later."""
        self._ask(f"slow/{milliseconds}")

    def down(self, milliseconds: int) -> None:
        """So long nothing listens there: connections that are open end without a reply, new ones are refused."""
        self._ask(f"down/{milliseconds}")

    def _ask(self, what: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_emulator/{what}") as reply:
            return reply.read().decode()


def gcs(port: int = 0) -> contextlib.AbstractContextManager[Store]:
    port = port or _free_port()
    address = f"http://127.0.0.1:{port}"
    variables = {"STORAGE_EMULATOR_HOST": address, "TENSORSTORE_GCS_HTTP_URL": address}
    return _started(
        "gs", port, {**variables, "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    )


def s3(port: int = 0) -> contextlib.AbstractContextManager[Store]:
    port = port or _free_port()
    variables = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}
    return _started("s3", port, {**variables, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"})


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def _started(scheme: str, port: int, env: dict[str, str]) -> Iterator[Store]:
    process = subprocess.Popen([sys.executable, __file__, scheme, str(port)], stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                break
            if process.poll() is not None:
                raise RuntimeError(f"the {scheme} emulator ended: {process.stderr.read()}")
            time.sleep(0.05)
        else:
            raise RuntimeError(f"the {scheme} emulator doesn't answer")
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield Store(scheme, env, port, process)
    finally:
        process.kill()
        process.wait()


# ------------------------------------------------------------------------------- the process


class Faults:
    """What the control requests ask for, and the count of requests."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = self.lose = self.refuse = self.slow = self.writes = self.all = 0
        self.down_until, self.server = 0.0, None

    def control(self, path: str) -> str:
        what, _, number = path.removeprefix("/_emulator/").partition("/")
        if what == "count":
            found, self.count = self.count, 0
            return str(found)
        if what == "down":
            self.down_until = time.monotonic() + int(number) / 1000
            threading.Thread(target=self.server.shutdown).start()
            return ""
        setattr(self, what, int(number))
        self.writes = self.all = 0
        return ""

    def serve(self, make: Callable[[], server.HTTPServer]) -> None:
        """Serves for ever, with pauses in which nothing listens."""
        while True:
            self.server = make()
            self.server.serve_forever(poll_interval=0.05)
            self.server.server_close()
            time.sleep(max(0.0, self.down_until - time.monotonic()))

    def down(self) -> bool:
        """Whether a request gets no reply. Waits, if they are to be slow."""
        time.sleep(self.slow / 1000)
        return time.monotonic() < self.down_until

    def refused(self) -> bool:
        self.count += 1
        self.all += 1
        return bool(self.refuse) and self.all % self.refuse == 0

    def lost(self) -> bool:
        self.writes += 1
        return bool(self.lose) and self.writes % self.lose == 0


def _serve_gcs(port: int) -> None:
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.storage import NotFound, Storage

    faults = Faults()

    class Handler(emulator.RequestHandler):
        def handle_one(self, method: str) -> None:
            if self.path.startswith("/_emulator/"):
                return self.answer(HTTPStatus.OK, faults.control(self.path))
            if faults.down():
                self.close_connection = True
                return None
            with faults.lock:
                if faults.refused():
                    emulator._read_raw_data(self)
                    return self.answer(HTTPStatus.SERVICE_UNAVAILABLE, "refused")
                if self.condition_fails(method):
                    emulator._read_raw_data(self)
                    return self.answer(
                        HTTPStatus.PRECONDITION_FAILED,
                        json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}),
                    )
                if method in ("POST", "PUT") and faults.lost():
                    self.wfile = _Nowhere()
                    self.close_connection = True
                emulator.Router(self).handle(method)

        def end_headers(self) -> None:
            if self.command == "GET" and "alt=media" in self.path:  # the emulator forgets it
                bucket, name = self.named()
                with contextlib.suppress(NotFound):
                    self.send_header("X-Goog-Generation", self.storage.get_file_obj(bucket, name)["generation"])
            super().end_headers()

        def named(self) -> tuple[str, str]:
            """(bucket, object) of the request."""
            request = emulator.Request(self, self.command)
            bucket, _, name = emulator.unquote(request.path).partition("/b/")[2].partition("/o")
            return bucket, request.query.get("name", [name.lstrip("/")])[0]

        def condition_fails(self, method: str) -> bool:
            request = emulator.Request(self, method)
            (wanted,) = request.query.get("ifGenerationMatch", [""])
            if not wanted:
                return False
            try:
                found = self.storage.get_file_obj(*self.named())["generation"]
            except NotFound:
                found = "0"
            return found != wanted

        def answer(self, status: HTTPStatus, text: str) -> None:
            self.send_response(status.value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = partial_method("GET")
        do_POST = partial_method("POST")
        do_PUT = partial_method("PUT")
        do_DELETE = partial_method("DELETE")
        do_PATCH = partial_method("PATCH")

    storage = Storage(use_memory_fs=True)
    storage._write_config_to_file = lambda: None  # of every object, after every write
    buckets.create_bucket(BUCKET, storage)
    faults.serve(lambda: server.ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, storage)))


def partial_method(method: str):
    return lambda self: self.handle_one(method)


class _Nowhere:
    def write(self, data: bytes) -> int:
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    closed = False


def _serve_s3(port: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults()
    app = DomainDispatcherApplication(create_backend_app)

    def locked(environ, start_response):
        if environ["PATH_INFO"].startswith("/_emulator/"):
            start_response("200 OK", [])
            return [faults.control(environ["PATH_INFO"]).encode()]
        if faults.down():
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return []
        with faults.lock:
            if faults.refused():
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                start_response("503 Slow Down", [])
                return [b"<Error><Code>SlowDown</Code></Error>"]
            body = list(app(environ, start_response))
            if environ["REQUEST_METHOD"] in ("PUT", "POST") and faults.lost():
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return body

    import boto3

    threading.Thread(target=faults.serve, args=(lambda: make_server("127.0.0.1", port, locked, threaded=True),)).start()
    address = {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"}
    boto3.client("s3", **address, aws_access_key_id="a", aws_secret_access_key="s").create_bucket(Bucket=BUCKET)


if __name__ == "__main__":
    {"gs": _serve_gcs, "s3": _serve_s3}[sys.argv[1]](int(sys.argv[2]))
