"""The page "Compare": the runs that it accepts, and what it shows of them."""

from urllib.parse import quote

import pytest
from runs_made import made_run

NASTY = '"><script>alert(1)</script>'


@pytest.fixture
def pair(folder):
    one = made_run(
        folder / "one", settings={"seed": 1}, losses=[(1, 0.9), (9, 0.5)],
        samples={0: {"000.png": "a ball\nSeed: 1"}, 9: {"000.png": "a ball\nSeed: 1"}},
    )  # fmt: skip
    two = made_run(
        folder / "deep" / "two", settings={"seed": 2}, losses=[(1, 0.8)], phase="training",
        samples={4: {"007.png": "a ball\nSeed: 1"}},
    )  # fmt: skip
    return one, two


def query(studio, *runs):
    return "&".join(f"runs={studio.folders.name_of(run)}" for run in runs)


def test_without_runs_there_is_a_form_to_choose_them(client, studio, pair):
    page = client.get("/compare").text
    for run in pair:
        assert f'value="{studio.folders.name_of(run)}"' in page
    assert "compare.js" not in page
    assert '<details class="choose" open>' in page


def test_two_runs_are_shown_side_by_side(client, studio, pair):
    one, two = map(studio.folders.name_of, pair)
    page = client.get(f"/compare?{query(studio, *pair)}").text
    assert "compare.js" in page
    assert "seed" in page
    assert f"/runs/{one}/samples/9/000.png" in page
    assert f"/runs/{two}/samples/4/007.png" in page
    assert 'data-steps="0,4,9"' in page
    assert "killed" in page
    numbers = client.get(f"/compare/numbers?{query(studio, *pair)}").text
    assert "0.5000 at step 9" in numbers
    assert " style=" not in page + numbers


def test_a_run_that_is_gone_is_said_and_the_others_are_shown(client, studio, pair):
    wanted = query(studio, *pair)
    for file in sorted(pair[1].path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    page = client.get(f"/compare?{wanted}")
    assert page.status_code == 200
    assert "One run in the address of this page no longer exists" in page.text
    assert client.get(f"/compare/numbers?{wanted}").status_code == 200


@pytest.mark.parametrize("name", ["", "x", "0.%%%", "0.Li4", "9.YQ", "0." + "A" * 4000, NASTY])
def test_addresses_of_no_run_show_the_form(client, pair, name):
    for path in ("/compare", "/compare/numbers"):
        page = client.get(f"{path}?runs={quote(name)}")
        assert page.status_code == 200
        assert "<script>alert" not in page.text


def test_too_many_runs_are_refused(client):
    names = "&".join(f"runs=0.{number}" for number in range(25))
    assert client.get(f"/compare?{names}").status_code == 400


def test_a_run_named_twice_is_shown_once(client, studio, pair):
    page = client.get(f"/compare?{query(studio, pair[0], pair[0])}").text
    assert page.count('<input type="checkbox" data-run') == 1


def test_what_strangers_wrote_is_no_html(client, studio, folder):
    nasty = made_run(
        folder / 'a<i>"&', settings={"saving": {"name": "<b>bold</b>"}},
        samples={3: {"000.png": f"{NASTY}\nSeed: 1"}},
    )  # fmt: skip
    other = made_run(folder / "b")
    other.config_file.write_text(f"broken = {NASTY}", encoding="utf-8")
    wanted = query(studio, nasty, other)
    for path in ("/compare", "/compare/numbers"):
        page = client.get(f"{path}?{wanted}").text
        assert "<script>alert" not in page
        assert "<i>" not in page
        assert "<b>bold" not in page
    assert "not TOML" in client.get(f"/compare?{wanted}").text


def test_runs_without_anything_in_them_are_compared(client, studio, folder):
    runs = [made_run(folder / name) for name in "ab"]
    for run in runs:
        run.config_file.write_bytes(b"\xff\xfe\x00")
        run.status_file.write_bytes(b"")
    assert client.get(f"/compare?{query(studio, *runs)}").status_code == 200
    assert client.get(f"/compare/numbers?{query(studio, *runs)}").status_code == 200
