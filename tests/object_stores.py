"""Fixtures of object stores: a local S3 server for the session, and an empty bucket in it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def s3_server():
    """A local S3 server on a free port."""
    from object_store import ObjectStore

    store = ObjectStore()
    yield store
    store.close()


@pytest.fixture
def store_cache(tmp_path, monkeypatch):
    """The folder for local copies of objects."""
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "store-cache"))
    return tmp_path / "store-cache"


@pytest.fixture
def s3(s3_server, store_cache, monkeypatch):
    """The server, without faults and with no request counted, selected by environment variables.

    Its client is the same in all tests, and retries without pauses.
    """
    import s3fs.core
    from object_store import CREDENTIALS, WithoutPauses

    from impasto.storage import objects

    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "_MADE", s3_server.clients)
    monkeypatch.setattr(s3fs.core, "asyncio", WithoutPauses())
    s3_server.fault = None
    s3_server.requests.clear()
    return s3_server


@pytest.fixture
def bucket(s3, request):
    """The path of a new bucket."""
    import hashlib

    from object_store import make_bucket

    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    place = make_bucket(s3, f"b{name}")
    s3.requests.clear()
    return place


@pytest.fixture
def in_memory(store_cache, request):
    """The path of a new folder in the memory of this process."""
    import hashlib
    from pathlib import Path

    return Path(f"memory://{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}")


@pytest.fixture(params=["s3", "memory"])
def place(request):
    """The path of a new folder in each kind of store."""
    return request.getfixturevalue("bucket" if request.param == "s3" else "in_memory") / "data"
