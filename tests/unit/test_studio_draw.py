"""The page "Draw": what its form accepts and refuses, and responses of its other addresses."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from studios import FROM_HERE
from test_run_status import GONE, make_run

from impasto import files
from impasto.locks import FolderLock
from impasto.owners import current_process
from impasto.runs.draw_reading import read_request, request_of
from impasto.runs.draw_requests import Axis, DrawRequest, ImageSettings
from impasto.runs.drawings import DrawFolder
from impasto.studio import drawable as drawable_module
from impasto.studio import models as models_module
from impasto.studio.drawable import find_drawable
from impasto.studio.folders import address_of
from impasto.studio.pages.draw_form import request_from, typed_from, untouched

FORM = {
    "prompt": "a red ball", "negative": "", "seed": "7", "width": "64", "height": "", "steps": "4",
    "guidance": "2.5", "sampler": "euler", "count": "1", "clip_skip": "", "other_model": "",
    "x_kind": "", "x_values": "", "y_kind": "", "y_values": "",
}  # fmt: skip
LETTERS = "a1,:<\"'\n é猫\udc80"
"""Invalid values for prompts and paths, some of them bytes that are not text."""


@pytest.fixture
def models(folder):
    """Two models, a hypernetwork, a Diffusers folder, and files of other kinds."""
    place = folder.parent / "models"
    (place / "nets" / "hypernetworks").mkdir(parents=True)
    (place / "diffusers" / "unet").mkdir(parents=True)
    (place / "a" / "b" / "c" / "d").mkdir(parents=True)
    for name in (
        "one.safetensors", "<b>two's.ckpt", "nets/hypernetworks/h.safetensors", "net.pt",
        "diffusers/model_index.json", "diffusers/unet/weights.safetensors", "words.txt",
        "a/b/c/deep.ckpt", "a/b/c/d/too-deep.ckpt",
    ):  # fmt: skip
        (place / name).write_bytes(b"")
    return place


@pytest.fixture
def started(studio, monkeypatch):
    """Workers that are recorded but not started."""
    words = []
    monkeypatch.setattr(studio.tasks, "start", lambda given, *_: words.append(given))
    return words


@pytest.fixture
def drawings(studio):
    return DrawFolder(studio.home / "drawings")


def address(models, name):
    return f"m{address_of([models], models / name)}"


def post(client, **changes):
    fields = {k: v for k, v in {**FORM, **changes}.items() if v is not None}
    return client.post("/draw", data=fields, headers=FROM_HERE, follow_redirects=False)


def ask(client, path):
    return client.post(path, headers=FROM_HERE, follow_redirects=False)


def finished(drawings, settings, **status):
    drawing = drawings.ask(DrawRequest(settings))
    image = {"file": "0000-7.png", "row": 0, "column": 0, "seed": 7}
    (drawing.path / "0000-7.png").write_bytes(b"\x89PNG")
    drawing.status_file.write_text(
        json.dumps({"phase": "done", "done": [image], **status}), encoding="utf-8"
    )
    return drawing


# choices


def test_models_are_found_by_name_up_to_three_levels_deep(studio, models):
    found = find_drawable(studio.folders)
    assert {choice.label.replace("\\", "/") for choice in found.models.values()} == {
        "one.safetensors", "<b>two's.ckpt", "diffusers", "a/b/c/deep.ckpt",
    }  # fmt: skip
    labels = {choice.label.replace("\\", "/") for choice in found.hypernetworks.values()}
    assert labels == {"nets/hypernetworks/h.safetensors", "net.pt"}


def test_what_runs_have_exported_can_be_chosen_unless_it_leads_out(studio, folder, tmp_path):
    (tmp_path / "secret.safetensors").write_bytes(b"")
    for name, method in (("style", "full"), ("net", "hypernetwork"), ("bad", "full")):
        run = make_run(folder / name, phase="finished")
        run.config_file.write_text(f'[method]\nkind = "{method}"\n', encoding="utf-8")
        run.export.mkdir()
        (run.export / "model.safetensors").write_bytes(b"")
    bad = folder / "bad" / "status.json"
    secret = str(tmp_path / "secret.safetensors")
    bad.write_text(json.dumps({"phase": "finished", "model": secret}), encoding="utf-8")
    found = find_drawable(studio.folders)
    assert [choice.label for choice in found.models.values()] == ["style (run)"]
    assert [choice.label for choice in found.hypernetworks.values()] == ["net (run)"]


def test_models_on_the_way_of_a_run_can_be_chosen_also_where_it_was_stopped(
    studio, folder, monkeypatch
):
    run = make_run(folder / "style", phase="stopped")
    (run.path / "models").mkdir()
    names = ["style-best.safetensors", "style-step00000005.safetensors"]
    for name in names:
        (run.path / "models" / name).write_bytes(b"")
    written = [f"models/{name}" for name in (*names, "gone.safetensors")]
    record = {"written": [*written, "../../secret.safetensors"]}
    (run.path / "models.json").write_text(json.dumps(record), encoding="utf-8")
    (folder.parent / "secret.safetensors").write_bytes(b"")
    read = []
    monkeypatch.setattr(drawable_module, "read_text", lambda file, *_: read.append(file) or "")
    found = find_drawable(studio.folders).models
    assert read == [run.config_file], "the run is listed once, however many models it has"
    assert {choice.label for choice in found.values()} == {f"style: {name}" for name in names}
    assert len(set(found)) == 2


def test_models_that_are_not_offered_are_no_secret(client, models, monkeypatch):
    assert "Models may be missing" not in client.get("/draw").text
    with monkeypatch.context() as patched:
        patched.setattr(drawable_module, "_MOST", 3)
        assert "there are over 3 models, and no more are offered" in client.get("/draw").text
    with monkeypatch.context() as patched:
        patched.setattr(models_module, "MOST_SCANNED", 3)
        assert f"folders and models in {models}, where the search stops" in client.get("/draw").text


def test_a_link_out_of_the_folders_is_no_model(studio, models, tmp_path):
    (tmp_path / "elsewhere.ckpt").write_bytes(b"")
    (models / "link.ckpt").symlink_to(tmp_path / "elsewhere.ckpt")
    labels = [choice.label for choice in find_drawable(studio.folders).models.values()]
    assert "link.ckpt" not in labels


# the form


def test_a_request_is_written_and_the_worker_started(client, models, drawings, started):
    answer = post(client, model=address(models, "one.safetensors"), count="3")
    (drawing,) = drawings.all()
    assert answer.status_code == 303
    assert answer.headers["location"] == f"/draw?again={drawing.path.name}#drawings"
    settings = ImageSettings(
        str(models / "one.safetensors"), "a red ball", "", 7, 64, None, 4, 2.5, "euler"
    )
    assert drawing.request() == DrawRequest(settings, count=3)
    assert [cell.settings.seed for cell in drawing.request().cells()] == [7, 8, 9]
    assert started == [("draw-worker", drawings.path.resolve())]
    page = client.get(answer.headers["location"]).text
    assert 'value="7"' in page
    assert "a red ball</textarea>" in page


def test_a_worker_at_work_is_not_started_again(client, models, drawings, started):
    drawings.path.mkdir(parents=True)
    with FolderLock(drawings.path, "drawing", lambda holder: None):
        post(client, model=address(models, "one.safetensors"))
    assert started == []
    assert len(drawings.waiting()) == 1


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"model": ""}, "model", "Choose a model to draw with"),
        ({"model": "m0.Li4vLi4vZXRjL3Bhc3N3ZA"}, "model", "no longer exists"),
        ({"model": "/etc/passwd"}, "model", "no longer exists"),
        ({"width": "100"}, "width", "multiple of 8, such as 96"),
        ({"width": "-8"}, "width", "from 8 to 8192"),
        ({"height": "9000"}, "height", "from 8 to 8192"),
        ({"steps": "0"}, "steps", "from 1 to 1000"),
        ({"steps": "9" * 5000}, "steps", "from 1 to 1000"),
        ({"steps": ""}, "steps", "from 1 to 1000"),
        ({"guidance": "nan"}, "guidance", "a number from 0 to 1000"),
        ({"guidance_rescale": "1.1"}, "guidance_rescale", "a number from 0 to 1."),
        ({"x_kind": "guidance_rescale", "x_values": "0, 2"}, "x", "numbers from 0 to 1."),
        ({"sampler": "<script>"}, "sampler", "Choose one of ddim"),
        ({"count": "101"}, "count", "from 1 to 100"),
        ({"clip_skip": "13"}, "clip_skip", "from 1 to 12"),
        ({"seed": "x"}, "seed", "whole number"),
        ({"seed": None}, "seed", "whole number"),
        ({"x_kind": "magic", "x_values": "1"}, "x", "Expected one of seed"),
        ({"x_kind": "steps"}, "x", "1 to 100 values"),
        ({"x_kind": "steps", "x_values": "4, many"}, "x", "&#39;many&#39; is not possible"),
        ({"x_kind": "words", "x_values": "cat, dog"}, "x", "does not contain &#39;cat&#39;"),
        ({"x_kind": "sampler", "x_values": "ddim, magic"}, "x", "Known are ddim"),
        ({"x_kind": "model"}, "x", "Choose the models of the axis"),
        ({"x_kind": "seed", "x_values": "1", "count": "2"}, "count", "one image in each cell"),
        ({"x_kind": "strength", "x_values": "0,1"}, "hypernetworks", "choose at least one"),
        ({"other_model": "="}, "other_model", "choose a different model"),
    ],
)
def test_what_is_wrong_is_said_at_its_field_and_what_was_typed_stays(
    client, models, drawings, started, changes, field, words
):
    (models / "h.pt").write_bytes(b"")
    one = address(models, "one.safetensors")
    given = {k: one if v == "=" else v for k, v in {"model": one, **changes}.items()}
    answer = post(client, **given)
    assert answer.status_code == 422
    place = answer.text.index(f'id="fault-{field}"')
    assert words.lower() in answer.text[place : place + 300].lower()
    assert "a red ball</textarea>" in answer.text
    assert "<script>" not in answer.text.replace("</script>", "")
    assert drawings.all() == []
    assert started == []


def test_too_many_images_and_twice_the_same_axis_are_refused(client, models, drawings, started):
    seeds = {"x_kind": "seed", "x_values": ",".join(map(str, range(11)))}
    model = address(models, "one.safetensors")
    steps = {"y_kind": "steps", "y_values": ",".join(map(str, range(1, 12)))}
    assert "These are 121 images; at most 100" in post(client, model=model, **seeds, **steps).text
    same = {"y_kind": "seed", "y_values": "1"}
    assert "Both axes vary the same" in post(client, model=model, **seeds, **same).text
    assert drawings.all() == []


def test_two_models_are_drawn_side_by_side_at_the_same_seeds(client, models, drawings, started):
    one, two = (address(models, name) for name in ("one.safetensors", "<b>two's.ckpt"))
    answer = post(client, model=one, other_model=two, count="2")
    request = drawings.all()[0].request()
    assert [(c.row, c.column, c.settings.model, c.settings.seed) for c in request.cells()] == [
        (row, column, str(models / name), 7 + row)
        for row in (0, 1)
        for column, name in enumerate(("one.safetensors", "<b>two's.ckpt"))
    ]
    page = client.get(answer.headers["location"]).text
    assert "&lt;b&gt;two&#39;s.ckpt" in page
    assert "<b>two" not in page


def test_a_random_seed_is_another_one_each_time(client, models, drawings, started):
    for _ in range(2):
        post(client, model=address(models, "one.safetensors"), random_seed="on")
    first, second = (drawing.request() for drawing in drawings.all())
    assert first.random_seed
    assert first.settings.seed != second.settings.seed


# requests


def test_a_grid_is_row_by_row():
    settings = ImageSettings("m", "a red ball, red")
    words, steps = Axis("words", ("red", "blue")), Axis("steps", ("4", "8", "12"))
    cells = DrawRequest(settings, x=steps, y=words).cells()
    assert [(c.row, c.column, c.settings.prompt, c.settings.steps) for c in cells] == [
        (row, column, f"a {word} ball, {word}", n)
        for row, word in enumerate(("red", "blue"))
        for column, n in enumerate((4, 8, 12))
    ]


def test_labels_of_models_tell_them_apart():
    paths = ("/runs/a/export/model.safetensors", "/runs/b/export/model.safetensors")
    labels = ["a/export/model.safetensors", "b/export/model.safetensors"]
    assert Axis("model", paths).labels == labels
    assert Axis("model", ("/x/one.ckpt", "/y/two.ckpt")).labels == ["one.ckpt", "two.ckpt"]


@given(
    st.builds(
        DrawRequest,
        st.builds(
            ImageSettings,
            st.text(LETTERS, min_size=1),
            st.text(LETTERS),
            seed=st.integers(0, 2**63 - 1),
            width=st.none() | st.integers(1, 1024).map(lambda n: n * 8),
            steps=st.integers(1, 1000),
            guidance=st.floats(0, 1000),
        ),
        count=st.integers(1, 100),
        clip_skip=st.none() | st.integers(1, 12),
    )
)
def test_what_is_written_is_read(request):
    assert request_of(json.loads(json.dumps(request.as_json()))) == request


@given(
    st.dictionaries(
        st.sampled_from(["model", "prompt", "seed", "width", "guidance", "x", "hypernetworks"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(LETTERS), inner),
            max_leaves=6,
        ),
    )
)
def test_any_json_is_a_request_or_refused(values):
    request, faults = read_request(values)
    assert (request is None) == bool(faults)


def test_the_form_shows_a_request_as_it_was_typed(studio, models):
    typed = untouched() | {
        "model": address(models, "one.safetensors"), "prompt": "a\nb", "random_seed": False,
        "seed": "5", "width": "64", "clip_skip": "2", "guidance_rescale": "0.7", "x_kind": "model",
        "axis_models": [address(models, "diffusers"), address(models, "one.safetensors")],
        "y_kind": "guidance", "y_values": "1\n7.5", "strength0": "0.5",
        "hypernetwork0": address(models, "net.pt"),
    }  # fmt: skip
    drawable = find_drawable(studio.folders)
    request, faults = request_from(typed, drawable)
    assert faults == {}
    assert typed_from(request, drawable) == typed


@pytest.mark.parametrize("count", ["1", "3"])
def test_two_models_side_by_side_are_shown_as_they_were_asked_for(studio, models, count):
    """The models' samples are not shown as a grid of fixed seeds, which would repeat them."""
    typed = untouched() | {
        "model": address(models, "one.safetensors"), "prompt": "a", "random_seed": True,
        "other_model": address(models, "diffusers"), "count": count,
    }  # fmt: skip
    drawable = find_drawable(studio.folders)
    request, faults = request_from(typed, drawable)
    assert faults == {}
    assert typed_from(request, drawable) == typed | {"seed": str(request.settings.seed)}


def test_the_settings_of_a_drawing_come_with_the_seed_that_it_had(
    client, models, drawings, started
):
    answer = post(client, model=address(models, "one.safetensors"), random_seed="on")
    (drawing,) = drawings.all()
    seed = drawing.request().settings.seed
    box = 'id="random_seed" name="random_seed"'
    after = client.get(answer.headers["location"]).text
    again = client.get(f"/draw?again={drawing.path.name}&seed=same").text
    assert f"{box} checked" in after
    assert f"{box} checked" not in again
    assert f'value="{seed}"' in again


def test_a_model_is_chosen_by_the_address(client, models):
    one = address(models, "one.safetensors")
    assert f'<option value="{one}" selected>' in client.get(f"/draw?model={one}").text
    assert "selected>one" not in client.get("/draw?model=m0.x").text


# drawings


def test_images_are_served_as_images_and_nothing_else_is(client, drawings, tmp_path):
    drawing = finished(drawings, ImageSettings("/m", "<script>alert(1)</script>"))
    place = f"/draw/{drawing.path.name}"
    answer = client.get(f"{place}/images/0000-7.png")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    kept = client.get(f"{place}/images/0000-7.png?keep=1").headers["content-disposition"]
    assert kept.startswith("attachment")
    (drawing.path / "0001-8.png").symlink_to(tmp_path / "runs")
    for name in ("request.json", "status.json", "..%2fworker.json", "0009-1.png", "0001-8.png"):
        assert client.get(f"{place}/images/{name}").status_code == 404
    for name in ("x", "..", "%2e%2e", drawing.path.name + "%0a"):
        assert client.get(f"/draw/{name}/part").status_code == 404
    page = client.get("/draw").text
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    assert f'src="{place}/images/0000-7.png"' in page
    assert client.get(place).status_code == 200


def test_how_a_drawing_stands_is_told_truly(client, drawings):
    drawing = drawings.ask(DrawRequest(ImageSettings("/m", "x"), count=4))
    part = f"/draw/{drawing.path.name}/part"
    assert "No worker is running." in client.get(part).text
    assert "Draw the waiting images" in client.get(part).text
    status = {"phase": "drawing", "images": 4, "step": 5, "steps": 20, "done": []}
    living = {**status, "process": current_process().token}
    drawing.status_file.write_text(json.dumps(living), encoding="utf-8")
    with FolderLock(drawings.path, "drawing", lambda _: None):
        assert "Image 1 of 4, step 5 of 20" in client.get(part).text
    assert "killed" in client.get(part).text  # as after a restart of the machine
    drawing.status_file.write_text(json.dumps({**status, "process": GONE}), encoding="utf-8")
    told = client.get(part).text
    assert "killed" in told
    assert "hx-get" not in told


@pytest.mark.parametrize(
    "status", ["{", "[]", '{"phase": 3}', '{"phase": "done", "done": 7}',
               '{"phase": "done", "done": [{"file": "../x.png", "row": [], "column": 0}, 3]}'],
)  # fmt: skip
def test_a_damaged_status_breaks_no_page(client, drawings, status):
    drawing = finished(drawings, ImageSettings("/m", "x"))
    drawing.status_file.write_text(status, encoding="utf-8")
    assert client.get("/draw").status_code == 200
    drawing.request_file.write_text("{", encoding="utf-8")
    assert client.get("/draw").status_code == 200
    assert client.get(f"/draw?again={drawing.path.name}").status_code == 200


def test_what_waits_is_cancelled_and_then_deleted(client, drawings):
    drawing = drawings.ask(DrawRequest(ImageSettings("/m", "x")))
    place = f"/draw/{drawing.path.name}"
    assert ask(client, f"{place}/delete").status_code == 409
    assert "cancelled" in ask(client, f"{place}/cancel").text
    assert ask(client, f"{place}/delete").status_code == 303
    assert not drawing.path.exists()
    assert ask(client, f"{place}/delete").status_code == 404


def test_drawings_are_listed_the_newest_first_on_several_pages(client, drawings):
    names = []
    for n in range(14):
        drawing = finished(drawings, ImageSettings("/m", f"prompt {n}"))
        named = drawing.path.with_name(f"20260101-0000{n:02d}-000-abcdef")
        drawing.path.rename(named)
        names.append(named.name)
    page = client.get("/draw").text
    assert page.index(names[13]) < page.index(names[12])
    assert names[1] not in page
    older = client.get(f"/draw?before={names[2]}").text
    assert names[1] in older
    assert names[2] not in older


def test_the_worker_is_started_for_what_waits_and_asked_to_end(client, drawings, started):
    assert ask(client, "/draw/worker/start").status_code == 303
    assert len(started) == 1
    assert ask(client, "/draw/worker/stop").status_code == 303
    assert not drawings.stop_file.exists()
    drawings.path.mkdir(parents=True)
    with FolderLock(drawings.path, "drawing", lambda holder: None):
        assert "Stop it now" in client.get("/draw").text
        ask(client, "/draw/worker/stop")
    assert drawings.stop_file.exists()


def test_a_worker_that_is_being_started_is_not_started_twice(client, studio, drawings, models):
    """A second request comes before the first one's worker has locked the folder."""
    task = studio.tasks._folder / "20260101-000000-abcdef"
    task.mkdir(parents=True)
    about = {"words": ["draw-worker", "x"], "process": current_process().token}
    (task / "task.json").write_text(json.dumps(about), encoding="utf-8")
    post(client, model=address(models, "one.safetensors"))
    assert len(studio.tasks.all()) == 1
    assert "waiting for its turn" in client.get("/draw").text
    drawings.worker_file.write_text(json.dumps({"process": about["process"]}), encoding="utf-8")
    assert "No worker is running" in client.get("/draw").text  # that worker is ending


def test_a_run_in_training_is_told_before_drawing(client, studio, folder):
    assert 'id="training"' not in client.get("/draw").text
    run = make_run(folder / "dog", phase="training", process=current_process().token)
    with FolderLock(run.path, "training", lambda holder: None):
        page = client.get("/draw").text
        assert "dog is training" in page
        assert "takes VRAM" in page
        found = {"facts": {"gpus": []}}
        studio.home.mkdir(exist_ok=True)
        files.write_json(studio.home / "machine.json", found)
        page = client.get("/draw").text
        assert "Drawing takes CPU time and RAM from it." in page
        assert "VRAM" not in page.partition('id="training"')[2].partition("</p>")[0]
