"""A local S3 server that can be made to fail as real stores do."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moto.server import create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "of-no-use",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
Answer = tuple[str, list[tuple[str, str]], bytes]
Fault = Callable[[dict[str, Any], Callable[[], Answer]], Answer | None]
"""Takes the request and a function that calls the server; None lets the server answer."""


class WithoutPauses:
    """Replaces the module asyncio in code that retries requests: its sleep returns at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, _: float) -> None:
        await asyncio.sleep(0)


class ObjectStore:
    """The server: its requests so far, a fault for the next ones, and clients created for it."""

    def __init__(self) -> None:
        self._inner = create_backend_app("s3")
        self.requests: list[str] = []
        self.clients: dict[tuple[int, str], Any] = {}
        self.fault: Fault | None = None
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Apply a fault to requests during the block."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = None

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        self.requests.append(
            f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']} {environ.get('HTTP_RANGE', '')}"
        )
        answer = self.fault(environ, lambda: self._ask(environ)) if self.fault else None
        status, headers, body = answer or self._ask(environ)
        start(status, headers)
        return [body]

    def _ask(self, environ: dict[str, Any]) -> Answer:
        told: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[..., Any]:
            told[:] = [status, headers]
            return lambda _: None

        body = b"".join(self._inner(environ, start))
        return told[0], told[1], body


def refusing(code: str, status: int, only: str = "") -> Fault:
    """Return a fault: the store answers with an error."""

    def fault(environ: dict[str, Any], _: Callable[[], Answer]) -> Answer | None:
        if only not in f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}":
            return None
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        body = b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        return f"{status} No", headers, body

    return fault


def cutting(only: str) -> Fault:
    """Return a fault: the connection ends after half of an object."""

    def fault(environ: dict[str, Any], ask: Callable[[], Answer]) -> Answer | None:
        if only not in f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}":
            return None
        status, headers, body = ask()
        return status, headers, body[: len(body) // 2]

    return fault


def put_folder(folder: Path, place: Path) -> None:
    """Copy a folder into a store."""
    from impasto.storage import objects

    for file in sorted(folder.rglob("*")):
        if file.is_file():
            objects.upload(file, place / file.relative_to(folder).as_posix())


def make_bucket(store: ObjectStore, name: str) -> Path:
    """Create a bucket, and return its path."""
    _admin(store.url).create_bucket(Bucket=name)
    return Path(f"s3://{name}")


@functools.cache
def _admin(url: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=url)
