"""Forms of the studio: typed numbers, and refused sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from impasto.studio.forms import read_form, texts_of, whole_number


@given(st.integers(-2000, 2000))
def test_a_whole_number_is_read_within_its_limits(number):
    assert whole_number(str(number), 1000, -1000) == (number if abs(number) <= 1000 else None)
    assert whole_number(str(number), 1000) == (number if 0 <= number <= 1000 else None)


@pytest.mark.parametrize("text", ["", " 1", "1 ", "+1", "-", "--1", "1.0", "²", "१", "1" * 5000])
def test_what_is_no_whole_number(text):
    assert whole_number(text, 10**9, -(10**9)) is None


async def _echo(request):
    return JSONResponse(texts_of(await read_form(request, most_fields=2, most_bytes=100)))


def test_forms_are_read_within_limits():
    client = TestClient(Starlette(routes=[Route("/", _echo, methods=["POST"])]))
    assert client.post("/", data={"a": "1", "b": "2"}).json() == {"a": "1", "b": "2"}
    assert client.post("/", data={"a": "x" * 200}).status_code == 413
    assert client.post("/", data={"a": "1", "b": "2", "c": "3"}).status_code == 400
    assert client.post("/", files={"a": ("x", b"y")}).status_code in (400, 413)
