"""The page of a dataset's health: the report's findings, without the report's own HTML."""

import copy
import html
import json
import re
import shutil
from types import SimpleNamespace

import pytest
from conftest import impasto
from PIL import Image
from studios import FROM_HERE

from impasto.progress import SilentProgress
from impasto.report.dataset_page import ReportFiles, write_dataset_report
from impasto.studio.datasets import derived_of
from impasto.studio.folders import address_of
from impasto.studio.guard import HEADERS

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A dataset with all kinds of findings, and the JSON of its report."""
    cats = tmp_path_factory.mktemp("report") / "cats"
    (cats / "below").mkdir(parents=True)
    for number in range(6):
        drawn = Image.effect_noise((200 + 90 * number, 180), 40 + number).convert("RGB")
        drawn.save(cats / f"{number}.png")
        if number:
            (cats / f"{number}.txt").write_text(f"cat, left, {SCRIPT}", encoding="utf-8")
    drawn.save(cats / "below" / "twin.png")
    (cats / "5.webp").write_bytes((cats / "1.png").read_bytes())
    (cats / "broken.jpg").write_bytes(b"")
    (cats / "drawing.psd").write_bytes(b"8BPS")
    out = cats.parent / "report.html"
    done = impasto("dataset", "report", cats, "--out", out)
    assert done.returncode == 0, done.stderr
    return cats, json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture
def cats(folder, written):
    return shutil.copytree(written[0], folder.parent / "data" / "cats")


@pytest.fixture
def address(studio, cats):
    return f"/data/{address_of(studio.folders.data, cats)}"


def put(studio, cats, content):
    file = derived_of(cats, studio.home) / "studio" / "report.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


def text_of(page):
    page = re.sub(r"<(svg|style).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_the_page_says_what_the_report_says(client, studio, cats, written, address):
    put(studio, cats, written[1])
    answer = client.get(f"{address}/health")
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]
    for forbidden in ("<script>alert", "style=", "<style", 'src="data:', "onerror"):
        assert forbidden not in answer.text
    report = (written[0].parent / "report.html").read_text(encoding="utf-8")
    main = report[report.index("<h2>Advice") : report.index("</main>")]
    main = main.replace(
        "The darkened areas are cropped away.", ""
    )  # of the report's thumbnails only
    assert text_of(main).strip() in text_of(answer.text)
    assert answer.text.count('<svg class="chart"') == report.count('<svg class="chart"') == 3
    assert SCRIPT in text_of(answer.text)


def test_its_images_lead_to_their_pages(client, studio, cats, written, address):
    put(studio, cats, written[1])
    page = client.get(f"{address}/health").text
    for inside in ("0.png", "below/twin.png"):
        name = address_of([cats], cats / inside)
        assert f'href="{address}/images/{name}"' in page
        image = html.unescape(re.search(f'src="({address}/thumbnails/{name}[^"]*)"', page)[1])
        thumbnail = client.get(image)
        assert thumbnail.headers["content-type"] == "image/jpeg"
        assert "max-age" in thumbnail.headers["cache-control"], "its address has a version"
    (cats / "0.png").unlink()
    gone = client.get(f"{address}/health").text
    assert f"/images/{address_of([cats], cats / '0.png')}" not in gone
    assert "0.png" in gone


def test_a_report_of_a_stranger_leads_nowhere_outside(client, studio, cats, written, address):
    found = copy.deepcopy(written[1])
    (cats.parent / "secret.png").write_bytes((cats / "0.png").read_bytes())
    paths = ["cats/../secret.png", str(cats.parent / "secret.png"), "/etc/x.png", "", ".", "cats"]
    found["captions"]["missing"] = [*paths, "cats/.hidden.png", "cats/0.png"]
    put(studio, cats, found)
    page = client.get(f"{address}/health").text
    section = page[page.index("images have no caption</summary>") :].partition("</details>")[0]
    assert re.findall(r'href="([^"]+)"', section) == [
        f"{address}/images/{address_of([cats], cats / '0.png')}"
    ]


ODD = [None, "x", 7, 1e300, [], {}, [None], [[1]], {"a": "b"}, {"9" * 400: 1}, {"5": 10**12}]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_damaged_report_is_named(client, studio, cats, written, address, value):
    """Any damage gives a page or an error message."""
    whole = written[1]
    places = [(whole, key) for key in whole] + [
        (whole["captions"], key) for key in whole["captions"]
    ]
    for inside, key in places:
        kept, inside[key] = inside[key], value
        try:
            put(studio, cats, whole)
            answer = client.get(f"{address}/health")
        finally:
            inside[key] = kept
        fine = answer.status_code == 200 and "<h2>Advice" in answer.text
        assert fine or "is damaged, or was written by another version" in answer.text, key
    put(studio, cats, value)
    assert "is damaged" in client.get(f"{address}/health").text


def test_counts_that_add_up_by_one_below_nothing_are_damage(client, studio, cats, written, address):
    """Negative counts would be drawn as that many values, whatever the positive ones add up to."""
    found = copy.deepcopy(written[1])
    found["captions"]["token_lengths"] = {"5": 9000, "6": -9000}
    put(studio, cats, found)
    assert "is damaged, or was written by another version" in client.get(f"{address}/health").text


def test_what_a_list_leaves_out_is_counted_with_where_it_is(client, studio, cats, written, address):
    found = copy.deepcopy(written[1])
    found["captions"]["several_lines"] = [f"cats/{number}.png" for number in range(60)]
    put(studio, cats, found)
    file = derived_of(cats, studio.home) / "studio" / "report.json"
    said = text_of(client.get(f"{address}/health").text)
    assert f"cats/49.png … and 10 more, all in the file {file}." in said
    assert "cats/50.png" not in said
    health = SimpleNamespace(as_json=lambda: found, place="cats")
    report = ReportFiles(cats.parent / "report.html", cats)
    write_dataset_report(health, report, SilentProgress())
    page = text_of(report.page.read_text(encoding="utf-8"))
    assert "cats/49.png … and 10 more, all in the JSON file." in page


def test_without_a_report_there_is_none(client, studio, cats, address):
    assert client.get(f"{address}/health").status_code == 404
    assert "/health" not in client.get(address).text


def test_the_report_that_was_written_is_shown(client, studio, cats, address):
    client.post(f"{address}/report", headers=FROM_HERE)
    for process in studio.tasks._started.values():
        process.wait()
    assert f'href="{address}/health"' in client.get(address).text
    page = client.get(f"{address}/health").text
    assert "Write it again" in page
    assert "cannot be used; the reasons are below" in page
