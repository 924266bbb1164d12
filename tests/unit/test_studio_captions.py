"""The caption pages, requested without a browser: what they show, refuse and start.

If one failed, a stranger's caption would become markup, other files than the selected ones would be
edited, or an edit would be made without a preview.
"""

import html
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from studios import FROM_HERE

from impasto.runs.tasks import TaskDirectory
from impasto.studio.caption_edits import EditStore, difference
from impasto.studio.captions import (
    CaptionFilter,
    CaptionReader,
    count_tags,
    found_tags,
    read_captions,
)
from impasto.studio.datasets import dataset_of, image_of
from impasto.studio.folders import address_of
from impasto.studio.model_names import offered_models, why_not_offered

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
EVIL = "<script>alert(1)</script>"


class StartedTasks:
    """Tasks that are recorded but not started."""

    def __init__(self):
        self.words, self.titles = [], []

    def start(self, words, title, back="/", folder=None):
        self.words.append([str(word) for word in words])
        self.titles.append(title)
        return "20260101-000000-abcdef"

    def find(self, name):
        return None


@pytest.fixture
def data(folder):
    target = folder.parent / "data" / "set"
    (target / "sub").mkdir(parents=True)
    words = {"a": f"cat, {EVIL}", "b": "cat, dog", "sub/ü 'q": "dog", "bare": None}
    for name, text in words.items():
        Image.new("RGB", (16, 16)).save(target / f"{name}.png")
        if text is not None:
            (target / f"{name}.txt").write_text(text, encoding="utf-8")
    return target


@pytest.fixture
def here(studio, data):
    return f"/data/{address_of(studio.folders.data, data)}/captions"


@pytest.fixture
def tasks(studio):
    started = StartedTasks()
    object.__setattr__(studio, "tasks", started)
    return started


def address(data, name):
    return address_of([data], data / name)


def send(client, place, **form):
    return client.post(place, data=form, headers=FROM_HERE, follow_redirects=False)


def test_captions_are_shown_and_none_is_markup(client, here):
    page = client.get(here)
    assert page.status_code == 200
    assert EVIL not in page.text
    assert "&lt;script&gt;alert(1)" in page.text
    assert "4 of 4 images" in page.text
    assert "No caption in a .txt file." in page.text


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("tag=cat", {"a.png", "b.png"}),
        ("tag=cat&without=dog", {"a.png"}),
        ("contains=SCRIPT", {"a.png"}),
        ("without=cat", {"bare.png", "sub/ü &#39;q.png"}),
        ("tag=none", set()),
        ("page=999", {"a.png", "b.png", "bare.png", "sub/ü &#39;q.png"}),
        ("page=x", {"a.png", "b.png", "bare.png", "sub/ü &#39;q.png"}),
    ],
)
def test_the_filter(client, here, query, names):
    text = client.get(f"{here}?{query}").text
    shown = {
        name for name in ("a.png", "b.png", "bare.png", "sub/ü &#39;q.png") if f"> {name}<" in text
    }
    assert shown == names


def test_pages_of_a_hundred(client, here, data):
    for number in range(100):
        Image.new("RGB", (8, 8)).save(data / f"x{number:03d}.png")
    first = client.get(here).text
    assert first.count('name="image"') == 100
    assert "Page 1 of 2" in first
    assert client.get(f"{here}?page=2").text.count('name="image"') == 4


def test_one_image_alone(client, here, data):
    text = client.get(f"{here}?image={address(data, 'a.png')}").text
    assert "<textarea" in text
    assert "&lt;script&gt;" in text
    assert 'name="image"' in text
    assert text.count("<textarea") == 1
    for other in ("nonsense", address(data, "none.png"), "0.Li4vLi4vYS5wbmc"):
        assert client.get(f"{here}?image={other}").status_code == 404


def test_long_captions_are_cut_in_the_list_and_whole_alone(client, here, data):
    (data / "a.txt").write_text("ö" * 100_000, encoding="utf-8")
    assert "(100,000 characters)" in client.get(here).text
    alone = client.get(f"{here}?image={address(data, 'a.png')}").text
    assert "ö" * 100_000 in alone


def test_tags_are_counted_found_and_sorted(client, here):
    text = client.get(f"{here}/tags").text
    assert "3 tags" in text
    assert text.index(">cat<") < text.index(">dog<") < text.index(">&lt;script&gt;")
    assert "1 tags" in client.get(f"{here}/tags?find=DO").text
    by_name = client.get(f"{here}/tags?sort=name").text
    assert by_name.index(">&lt;script&gt;") < by_name.index(">cat<")


def test_a_preview_is_applied_as_it_was_shown(client, here, data, tasks):
    before = (data / "a.txt").read_bytes()
    shown = send(
        client, f"{here}/preview", do=["replace", "add"], what=["cat", "<b>"], by=["bird", ""],
        at=["last", "first"], text=["", ""], which="selected",
        image=[address(data, "a.png"), address(data, "sub/ü 'q.png")], ending=".txt",
    )  # fmt: skip
    assert shown.status_code == 200, shown.text
    assert "2 of 2 captions would change." in shown.text
    assert EVIL not in shown.text
    assert "<b>, " not in shown.text.replace("<b>sub", "").replace("<b>a.png", "")
    assert (data / "a.txt").read_bytes() == before
    token = shown.text.partition('name="token" value="')[2][:32]
    assert tasks.words == []
    done = send(client, f"{here}/apply", token=token)
    assert done.status_code == 303
    words = tasks.words[0]
    assert words[:2] == ["dataset", "edit"]
    assert "--yes" in words
    listed = next(word for word in words if word.startswith("--operations=")).partition("=")[2]
    with open(listed, encoding="utf-8") as file:  # noqa: PTH123
        assert json.load(file) == [
            {"do": "replace", "tag": "cat", "by": "bird"},
            {"do": "add", "tag": "<b>", "at": "first"},
        ]
    assert parse_qs(urlsplit(done.headers["location"]).query)["task"]


def test_apply_makes_what_was_previewed_and_once(client, here, studio, data):
    row = {"by": "bird", "at": "last", "text": "", "which": "filter", "ending": ".txt"}
    shown = send(client, f"{here}/preview", do="replace", what="cat", **row)
    token = shown.text.partition('name="token" value="')[2][:32]
    (data / "a.txt").write_text("cat, asleep", encoding="utf-8")
    places = {send(client, f"{here}/apply", token=token).headers["location"] for _ in range(2)}
    assert len(places) == 1  # a second click
    (task,) = studio.tasks.all()
    studio.tasks._started[task.path.name].wait(120)
    assert studio.tasks.state_of(task).state == "done"
    assert (data / "a.txt").read_text(encoding="utf-8") == "cat, asleep"
    assert (data / "b.txt").read_text(encoding="utf-8") == "bird, dog\n"
    assert "changed after the preview" in client.get(f"/tasks/{task.path.name}").text
    again = send(client, f"{here}/apply", token=token)
    assert again.status_code == 410
    assert "applied already" in again.text
    assert len(studio.tasks.all()) == 1


def test_a_preview_of_the_filter_and_a_fault_in_words(client, here):
    row = {"by": "", "at": "last", "text": "", "which": "filter", "ending": ".txt"}
    shown = send(client, f"{here}/preview", do="remove", what="cat", tag="cat", **row)
    assert "2 of 2 captions would change." in shown.text
    assert "no captions" not in shown.text
    refused = send(client, f"{here}/preview", do="regex", what="(", **row)
    assert refused.status_code == 400
    assert "regular expression" in refused.text
    for bad in (
        {"do": "remove", "what": ""},
        {"do": "replace", "what": "a"},
        {"do": "?", "what": "a"},
    ):
        assert send(client, f"{here}/preview", **bad, **row).status_code == 400
    nobody = send(client, f"{here}/preview", do="remove", what="a", **{**row, "which": "selected"})
    assert nobody.status_code == 400
    assert "Select images" in nobody.text


def test_only_a_preview_of_this_dataset_is_applied(client, here, studio, data, tasks):
    other = data.parent / "other"
    other.mkdir()
    prepared = EditStore(studio.home / "edits").prepare(
        other, [{"do": "remove", "tag": "x"}], [], ".txt"
    )
    for token in (prepared.token, "0" * 32, "../../x", ""):
        assert send(client, f"{here}/apply", token=token).status_code == 410
    assert tasks.words == []


def test_one_caption_is_set(client, here, data, tasks):
    form = {
        "image": address(data, "a.png"),
        "text": f"{EVIL}\r\nö",
        "ending": ".txt",
        "mark": mark_shown(client, here, data),
    }
    assert send(client, f"{here}/set", **form).status_code == 303
    words = dict(word.partition("=")[::2] for word in tasks.words[0] if "=" in word)
    with open(words["--operations"], encoding="utf-8") as file:  # noqa: PTH123
        assert json.load(file) == [{"do": "set", "text": f"{EVIL}\nö"}]
    with open(words["--images"], "rb") as file:  # noqa: PTH123
        assert file.read() == b"a.png\0"
    assert Path(words["--previewed"]).is_file(), "changes made before the task reads must stay"
    assert send(client, f"{here}/set", **{**form, "image": "0.eA"}).status_code == 404


def test_one_caption_leads_to_the_next_of_the_filter(client, here, data, tasks):
    """The next image is shown even if the saved caption no longer matches the filter."""
    a, b = address(data, "a.png"), address(data, "b.png")
    listed = client.get(f"{here}?tag=cat").text
    assert f'href="{here}?image={a}&amp;ending=.txt&amp;tag=cat"' in listed
    one = client.get(f"{here}?image={a}&ending=.txt&tag=cat").text
    assert f'rel="next" href="{here}?image={b}&amp;ending=.txt&amp;tag=cat"' in one
    assert 'rel="prev"' not in one
    form = {"image": a, "text": "dog", "ending": ".txt", "tag": "cat"}
    saved = send(client, f"{here}/set", **form, mark=mark_shown(client, here, data))
    assert "tag=cat" in saved.headers["location"]
    (data / "a.txt").write_text("dog", encoding="utf-8")
    after = client.get(saved.headers["location"]).text
    assert f'rel="next" href="{here}?image={b}&amp;ending=.txt&amp;tag=cat"' in after
    last = client.get(f"{here}?image={b}&ending=.txt&tag=cat").text
    assert "This is the last image that matches the filter." in last


def mark_shown(client, here, data):
    page = client.get(f"{here}?image={address(data, 'a.png')}&ending=.txt").text
    return re.search(r'name="mark" value="(\w{64})"', page)[1]


def test_a_caption_that_changed_after_its_page_was_opened_is_kept(client, here, data, tasks):
    form = {"image": address(data, "a.png"), "text": "mine", "ending": ".txt"}
    mark = mark_shown(client, here, data)
    (data / "a.txt").write_text("somebody's, <b>meanwhile</b>", encoding="utf-8")
    for given in (mark, "0" * 64, ""):
        answer = send(client, f"{here}/set", **form, mark=given)
        assert answer.status_code == 409
        assert "somebody&#39;s, &lt;b&gt;meanwhile" in answer.text
        assert "Your text is: mine" in answer.text
    assert tasks.words == []
    assert (
        send(client, f"{here}/set", **form, mark=mark_shown(client, here, data)).status_code == 303
    )


def test_edits_are_listed_and_undone_by_number_and_time(client, here, data, tasks):
    from click.testing import CliRunner

    from impasto.cli.main import impasto

    assert "nothing to undo" in client.get(f"{here}/edits").text
    words = ["dataset", "edit", str(data), "--add", "<i>", "--yes"]
    assert CliRunner().invoke(impasto, words).exit_code == 0
    text = client.get(f"{here}/edits").text
    assert "&lt;i&gt;" in text
    assert "a.txt, b.txt, bare.txt and 1 more" in text
    at = text.partition('name="at" value="')[2].partition('"')[0]
    assert send(client, f"{here}/undo", edit="1", at="1").status_code == 409
    assert send(client, f"{here}/undo", edit="--force", at=at).status_code == 409
    assert tasks.words == []
    assert send(client, f"{here}/undo", edit="1", at=at).status_code == 303
    assert tasks.words[0][:2] == ["dataset", "undo"]
    assert tasks.words[0][-1] == "1"


def test_strangers_and_other_sites_get_nothing(stranger, client, here, tasks):
    for place in (here, f"{here}/tags", f"{here}/edits", f"{here}/try"):
        assert stranger.get(place).status_code == 403
    for place in ("preview", "apply", "set", "undo", "try", "try/all"):
        assert client.post(f"{here}/{place}").status_code == 403
    assert tasks.words == []


@pytest.mark.parametrize("name", ["0.bm9uZQ", "0.Li4", "9.c2V0", "nonsense"])
def test_no_dataset_of_that_name(client, data, name):
    for place in ("captions", "captions/tags", "captions/edits", "captions/try"):
        assert client.get(f"/data/{name}/{place}").status_code == 404


@POSIX
def test_datasets_and_images_by_address(studio, data, folder):
    folders = studio.folders
    named = lambda path: address_of(folders.data, path)  # noqa: E731
    assert dataset_of(folders, named(data)) == data
    assert dataset_of(folders, named(data.parent)) == data.parent
    hidden = data / ".impasto"
    hidden.mkdir()
    out = data.parent / "out"
    out.symlink_to(folder)
    for path in (hidden, out, data / "a.png", data / "none"):
        assert dataset_of(folders, named(path)) is None
    assert image_of(data, address(data, "a.png")) == data / "a.png"
    outside = folder / "x.png"
    outside.write_bytes(b"")
    (data / "link.png").symlink_to(outside)
    (hidden / "y.png").write_bytes(b"")
    (data / "folder.png").mkdir()
    for name in ("link.png", ".impasto/y.png", "a.txt", "none.png", "folder.png"):
        assert image_of(data, address(data, name)) is None
    odd = os.fsencode(data) + b"/\xff.png"
    with open(odd, "wb"):  # noqa: PTH123
        pass
    assert image_of(data, address_of([data], data / os.fsdecode(b"\xff.png"))) is not None


@POSIX
def test_what_cannot_be_read_is_said_and_a_link_is_not_followed_out(data, folder, client, here):
    (folder / "secret").write_text("secret words", encoding="utf-8")
    (data / "bare.txt").symlink_to(folder / "secret")
    (data / "a.txt").write_bytes("café".encode("latin-1"))
    (data / "b.txt").write_bytes(b"x" * (1 << 21))
    text = client.get(here).text
    assert "secret words" not in text
    assert "leads out of the dataset" in text
    assert "not UTF-8" in text
    assert "larger than 1 MiB" in text


def test_captions_are_read_in_every_encoding_of_a_scan(data):
    (data / "a.txt").write_bytes("café".encode("utf-16"))
    (data / "b.txt").write_bytes("café".encode("utf-8-sig"))
    found = {caption.name: caption.text for caption in read_captions(data).captions}
    assert found["a.png"] == found["b.png"] == "café"


def test_a_large_dataset_is_read_anew_after_an_edit(data, monkeypatch):
    monkeypatch.setattr("impasto.studio.captions._KEPT_FROM", 1)
    reader = CaptionReader()
    first = reader.read(data)
    assert first.ending == ".txt"
    assert reader.read(data, ".txt") is first
    chosen = reader.read(data, ".caption")
    assert chosen.captions[0].text == ""
    assert reader.read(data).ending == ".txt", "no other dataset has this suffix"
    first = reader.read(data, ".txt")
    notes = data / ".impasto" / "annotations"
    notes.mkdir(parents=True)
    (notes / "edit-000001.jsonl").write_text("{}", encoding="utf-8")
    assert reader.read(data, ".txt") is not first


def test_counting_and_filtering_agree(data):
    captions = read_captions(data).captions
    for tag, count in found_tags(count_tags(captions), "", by_name=False):
        assert len(CaptionFilter(tag=tag).of(captions)) == count


def test_a_difference_is_what_lies_between_common_ends():
    found = difference("a, b, c", "a, x, c")
    assert found == {"lead": "a, ", "old": "b", "new": "x", "trail": ", c"}
    assert difference("aa", "aaa") == {"lead": "aa", "old": "", "new": "a", "trail": ""}
    long = difference("x" * 100_000 + "b", "x" * 100_000 + "c")
    assert len(long["lead"]) < 200


def test_models_that_are_offered_and_refused(tmp_path):
    models = tmp_path / "models"
    for name, file in (("t", "m.onnx"), ("c", "config.json"), ("c", "processor_config.json")):
        (models / name).mkdir(parents=True, exist_ok=True)
        (models / name / file).write_bytes(b"")
    offered = offered_models([models])
    assert offered["tagger"][-1] == str(models / "t")
    assert offered["captioner"][-1] == str(models / "c")
    for good in ("wd-swinv2-v3", "owner/name", "owner/name/folder", str(models / "t")):
        assert why_not_offered(good, "tagger", [models]) == ""
    for bad in ("", "nonsense", "../x/y", "a/../b", str(tmp_path), str(models / "none"), "-x/y z"):
        assert why_not_offered(bad, "tagger", [models])


def test_a_browser_keeps_thumbnails_of_captions_until_the_image_changes(client, here, studio, data):
    """Thumbnail addresses contain a version, so they may be cached; see `thumbnail_address`."""
    token = "b" * 32
    (studio.home / "tried").mkdir(parents=True)
    said = {"images": ["a.png"], "models": [{"kind": "tagger", "model": "m", "setting": "0.3"}]}
    (studio.home / "tried" / f"{token}.json").write_text(json.dumps(said), encoding="utf-8")
    alone = f"{here}?image={address_of([data], data / 'a.png')}"
    pages = (here, alone, f"{here}/try?tried={token}")

    def shown():
        found = [
            re.search('src="([^"]*/thumbnails/[^"]*)"', client.get(page).text) for page in pages
        ]
        return [html.unescape(one[1]) for one in found]

    before = shown()
    for image in before:
        assert "max-age" in client.get(image).headers["cache-control"]
    Image.new("RGB", (17, 16)).save(data / "a.png")
    assert all(old != new for old, new in zip(before, shown(), strict=True))


def test_models_are_tried_and_run_as_tasks(client, here, data, folder, tasks):
    own = folder.parent / "models" / "own"
    own.mkdir()
    assert client.get(f"{here}/try").status_code == 200
    form = {"kind-1": "tagger", "model-1": str(own), "setting-1": "0.5", "kind-2": "captioner",
            "model-2": "owner/name", "setting-2": "-- what?"}  # fmt: skip
    done = send(client, f"{here}/try", **form)
    assert done.status_code == 303, done.text
    words = tasks.words[0]
    assert words[:4] == ["dataset", "try", str(data), "--sample=12"]
    assert words[5:] == ["--tagger", str(own), "0.5", "--captioner", "owner/name", "-- what?"]
    for bad in ({"model-1": "/etc"}, {"setting-1": "2"}, {"kind-1": "x"}, {"setting-1": "nan"}):
        assert send(client, f"{here}/try", **{**form, **bad}).status_code == 400
    assert send(client, f"{here}/try").status_code == 400
    run = {"kind-0": "captioner", "model-0": "owner/name", "setting-0": "Hi", "existing": "append"}
    assert send(client, f"{here}/try/all", **run).status_code == 303
    assert tasks.words[1] == [
        "dataset", "caption", str(data), "--existing=append", "--model=owner/name", "--prompt=Hi",
    ]  # fmt: skip
    assert send(client, f"{here}/try/all", **{**run, "existing": "x"}).status_code == 400
    assert len(tasks.words) == 2


def test_a_model_that_is_none_is_refused_at_its_field(client, here, tasks):
    form = {"kind-1": "tagger", "model-1": "wd-swinv2-v3", "setting-1": "0.5", "kind-2": "tagger",
            "model-2": "nonsense", "setting-2": "", "kind-3": "captioner"}  # fmt: skip
    refused = send(client, f"{here}/try", **form)
    assert refused.status_code == 400
    assert re.findall(r'class="fault" id="fault-(\d)"', refused.text) == ["2"]
    assert 'value="wd-swinv2-v3"' in refused.text
    assert 'value="0.5"' in refused.text
    nothing = send(client, f"{here}/try", **{"kind-1": "tagger", "model-1": " "})
    assert re.findall(r'class="fault" id="fault-(\d)">([^<]*)', nothing.text)[0][0] == "1"
    assert tasks.words == []


def test_an_error_of_a_model_is_said_once(client, here, studio):
    token, words = "c" * 32, "owner/name could not be downloaded"
    (studio.home / "tried").mkdir(parents=True)
    model = {"kind": "tagger", "model": "m", "setting": "", "error": words}
    said = {"images": ["a.png"], "models": [model]}
    (studio.home / "tried" / f"{token}.json").write_text(json.dumps(said), encoding="utf-8")
    task = TaskDirectory(studio.home / "tasks" / "20260101-000000-000000")
    task.path.mkdir(parents=True)
    task.description_file.write_text(json.dumps({"title": "Try", "back": "/", "words": []}))
    lines = [{"kind": "begin"}, {"kind": "note", "text": f"m: {words}"},
             {"kind": "error", "text": "None of the models could be tried; the reasons are above."},
             {"kind": "ended", "code": 4}]  # fmt: skip
    text = "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)
    task.events_file.write_text(text, encoding="utf-8")
    page = client.get(f"{here}/try?tried={token}&task={task.path.name}").text
    assert page.count(words) == 1
    assert "None of the models" in page


def test_what_models_said_is_shown_and_never_markup(client, here, studio, data):
    token = "a" * 32
    (studio.home / "tried").mkdir(parents=True)
    said = {
        "images": ["a.png"],
        "models": [
            {"kind": "tagger", "model": "one", "setting": "0.3", "words": {"a.png": EVIL}},
            {"kind": "captioner", "model": "two", "setting": "", "error": EVIL},
        ],
    }
    (studio.home / "tried" / f"{token}.json").write_text(json.dumps(said), encoding="utf-8")
    for place in (f"{here}/try?tried={token}", f"{here}/try/{token}/part"):
        text = client.get(place).text
        assert EVIL not in text
        assert text.count("&lt;script&gt;") == 2
        assert text.count("on all</button>") == 1
    assert client.get(f"{here}/try/..%2f..%2fx/part").status_code in (200, 404)
