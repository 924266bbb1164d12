"""Every route of the studio, by one table: its responses, and that no route is missing.

If one failed, a page would be served without the token, or a new route would be untested.
"""

import pytest
from studio_world import ROUTES, address, make_world, named
from studios import FROM_HERE

from impasto.studio.app import create_app

NAMING = [key for key, case in ROUTES.items() if "{" in key and case.missing]
GIVEN = frozenset({"device", "verb", "root", "step", "command", "change", "tried"})
"""Placeholders of addresses that are not names of stored items."""


@pytest.fixture
def world(studio, monkeypatch):
    """One item of each kind that addresses name; tasks are not started, but lead to an earlier
    one."""
    names = make_world(studio.folders, studio.home, studio.queue)
    monkeypatch.setattr(studio.tasks, "start", lambda *_, **__: names["task"])
    return names


def routes_of(studio, access):
    return {
        f"{method} {route.path}"
        for route in create_app(studio, access).routes
        for method in route.methods - {"HEAD"}
    }


def asked(client, key, names):
    """Send the table's request to a route."""
    method, case = key.partition(" ")[0], ROUTES[key]
    form = {name: named(text, names) for name, text in case.form.items()}
    content = {"data": form, "files": case.files or None} if method == "POST" else {}
    return client.request(
        method, address(key, names), headers=FROM_HERE, follow_redirects=False, **content
    )


def files_of(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_every_route_stands_in_the_table(studio, access):
    assert routes_of(studio, access) == set(ROUTES)


@pytest.mark.parametrize("key", ROUTES)
def test_a_route_answers_who_has_the_token(client, studio, world, key):
    studio.closing.set()  # a stream ends at once
    answer = asked(client, key, world)
    assert answer.status_code == ROUTES[key].status, answer.text[-600:]


@pytest.mark.parametrize("key", ROUTES)
def test_a_route_refuses_who_has_none_and_does_nothing(stranger, world, folder, key):
    before = files_of(folder.parent)
    answer = asked(stranger, key, world)
    assert answer.status_code == 403
    assert "dog" not in answer.text
    assert "cats" not in answer.text
    assert files_of(folder.parent) == before


@pytest.mark.parametrize("key", NAMING)
def test_a_route_says_that_what_its_address_names_is_not_there(client, studio, world, key):
    studio.closing.set()
    nowhere = {k: v if k in GIVEN else "0.bWlzc2luZw" for k, v in world.items()}
    answer = asked(client, key, nowhere)
    assert answer.status_code == ROUTES[key].missing
