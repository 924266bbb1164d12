"""Downloads of a run in an object store while its machine continues writing it."""

import pytest
from stored_runs import make_run, owner_elsewhere, sent

from impasto.errors import ModelError
from impasto.runs.remote.fetching import fetch_model
from impasto.runs.remote.reading import is_not_of_states, open_run
from impasto.storage import claims, objects


@pytest.fixture
def place(bucket, tmp_path, monkeypatch):
    """A run that is trained by another machine."""
    place = bucket / "run"
    sent(make_run(place), place)
    owner_elsewhere(place, 1)
    monkeypatch.setenv("IMPASTO_STORE_CACHE", str(tmp_path / "another machine"))
    return place


class Replacing:
    """A fault: a function is called just before a request is answered, the first few times."""

    def __init__(self, server, only, *happens):
        self._server, self._only, self._happens = server, only, list(happens)

    def __call__(self, environ, _):
        request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        if self._happens and request.endswith(self._only):
            self._server.fault = None
            self._happens.pop(0)()
            self._server.fault = self


@pytest.mark.parametrize("text", ['{"step": 24, "phase": "training", "more": "x"}', "{}"])
def test_a_status_that_grows_or_shrinks_meanwhile_is_whole(place, s3, text):
    def happens():
        claims.write(place / "status.json", text.encode())

    with s3.failing(Replacing(s3, "run/status.json", happens)):
        found = open_run(place)
    assert (found.path / "status.json").read_text(encoding="utf-8") == text


def test_a_large_model_that_is_replaced_meanwhile_is_not_half_of_each(place, s3, monkeypatch):
    monkeypatch.setattr(objects, "COPIED_AT_ONCE", 4)
    claims.write(place / "models/best.safetensors", b"AAAAAAAA")

    def happens():
        claims.write(place / "models/best.safetensors", b"BBBBBBBB")

    with s3.failing(
        Replacing(
            s3,
            "GET /" + "/".join(place.parts[1:]) + "/models/best.safetensors",
            lambda: None,
            happens,
        )
    ):
        copy = fetch_model(place / "models/best.safetensors")
    assert copy.read_bytes() == b"BBBBBBBB"


def put_second(place):
    objects.remove(place / "models/cat/model_index.json")
    for name in ("unet/config.json", "vae/config.json", "model_index.json"):
        claims.write(place / "models/cat" / name, b"second")


@pytest.mark.parametrize("way", ["model", "run"])
def test_a_folder_that_is_replaced_meanwhile_is_all_of_one_model(place, s3, way):
    with s3.failing(Replacing(s3, "models/cat/vae/config.json", lambda: put_second(place))):
        if way == "model":
            folder = fetch_model(place / "models/cat")
        else:
            folder = open_run(place, is_wanted=is_not_of_states).path / "models/cat"
    found = {file.read_bytes() for file in folder.rglob("*.json")}
    assert found == {b"second"}


def test_a_folder_of_which_half_is_replaced_is_refused(place, s3):
    def happens():
        objects.remove(place / "models/cat/model_index.json")

    with (
        s3.failing(Replacing(s3, "models/cat/vae/config.json", happens)),
        pytest.raises(ModelError, match="just being replaced"),
    ):
        fetch_model(place / "models/cat")
