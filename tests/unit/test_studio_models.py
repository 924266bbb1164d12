"""The page "Models": its list, the tasks that its forms start, and files that it never touches."""

import html
import json
import os
import re
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import quote

import pytest
from runs_made import made_run
from studios import FROM_HERE, listed_in_trash

from impasto.errors import ModelError
from impasto.runs import RunDirectory
from impasto.runs.preparing import forget_preparing, note_preparing
from impasto.runs.queue import Queue
from impasto.runs.tasks import TaskDirectory
from impasto.studio import models
from impasto.studio.folders import address_of
from impasto.studio.model_users import users_of
from impasto.studio.models import all_models, find_model, model_at
from impasto.studio.pages import models as model_pages
from impasto.studio.tasks import TaskResult

NASTY = 'a "b" <i>&\n.safetensors'


@pytest.fixture
def shelf(folder):
    return folder.parent / "models"


@pytest.fixture
def base(shelf):
    file = shelf / "base.safetensors"
    file.write_bytes(b"12345")
    return file


@pytest.fixture
def asked(studio, monkeypatch):
    """The arguments of tasks that would have been started."""
    words = []

    def start(given, title, back="/", folder=None, made=None):
        words.append([str(word) for word in given])
        return "20260101-000000-abcdef"

    monkeypatch.setattr(studio.tasks, "start", start)
    return words


def diffusers(folder):
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(b"x" * 100)
    return folder


def page_of(studio, path, root="models"):
    folders = studio.folders.models if root == "models" else studio.folders.runs
    return f"/models/{root}/{address_of(folders, path)}"


def post(client, path, **form):
    return client.post(path, data=form, headers=FROM_HERE, follow_redirects=False)


# the list


def test_models_and_exports_are_listed_with_size_and_date(client, studio, shelf, base, folder):
    diffusers(shelf / "deep" / "er" / "est" / "folder")
    run = made_run(folder / "dog")
    (run.export).mkdir()
    (run.export / "dog.pt").write_bytes(b"x" * 2048)
    page = client.get("/models").text
    for words in ("base.safetensors", "5 bytes", "Diffusers folder", "dog.pt", "2.0 KiB"):
        assert words in page
    assert "weights.safetensors" not in page


def test_what_is_hidden_too_deep_or_led_out_of_the_folder_is_not_listed(studio, shelf, tmp_path):
    for name in (".cache/a.safetensors", "1/2/3/4/b.ckpt", "note.txt"):
        (shelf / name).parent.mkdir(parents=True, exist_ok=True)
        (shelf / name).write_bytes(b"x")
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    (shelf / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    (shelf / "loop.safetensors").symlink_to(shelf / "loop.safetensors")
    (shelf / "folder.safetensors").mkdir()
    assert all_models(studio.folders) == []
    for path in sorted(shelf.rglob("*")):
        assert find_model(studio.folders, "models", address_of([shelf], path)) is None, path


def test_a_given_folder_that_is_a_diffusers_folder_is_one_model(client, studio, shelf):
    diffusers(shelf)
    part = shelf / "unet" / "weights.safetensors"
    (model,) = all_models(studio.folders)
    assert model.path == shelf
    assert find_model(studio.folders, "models", model.address.rpartition("/")[2]) == model
    assert find_model(studio.folders, "models", address_of([shelf], part)) is None
    answer = post(client, f"{model.address}/delete", sure="yes")
    assert answer.status_code >= 400
    assert "Delete it by hand" in answer.text
    assert part.exists()


def test_every_model_that_is_listed_is_found_by_its_address(studio, shelf, base, folder):
    diffusers(shelf / "1" / "folder")
    (shelf / NASTY).write_bytes(b"x")
    with open(os.fsencode(shelf) + b"/\xff\xfe.ckpt", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    run = made_run(folder / "dog")
    diffusers(run.export / "dog")
    listed = all_models(studio.folders)
    assert len(listed) == 5
    for model in listed:
        assert find_model(studio.folders, model.root, model.name) == model


def test_parts_of_a_model_and_states_of_a_run_are_no_models(studio, shelf, folder):
    part = diffusers(shelf / "folder") / "unet" / "weights.safetensors"
    assert find_model(studio.folders, "models", address_of([shelf], part)) is None
    run = made_run(folder / "dog")
    (run.states / "step-00000001").mkdir(parents=True)
    state = run.states / "step-00000001" / "x.safetensors"
    state.write_bytes(b"x")
    assert find_model(studio.folders, "runs", address_of([folder], state)) is None
    assert find_model(studio.folders, "runs", address_of([folder], run.config_file)) is None
    within = made_run(shelf / "run").states
    within.mkdir()
    (within / "y.safetensors").write_bytes(b"x")
    assert [m.path.name for m in all_models(studio.folders)] == ["folder"]


def test_a_long_list_is_cut_short_and_says_so(client, studio, shelf, monkeypatch):
    monkeypatch.setattr(model_pages, "MOST", 3)
    for number in range(5):
        (shelf / f"{number}.ckpt").write_bytes(b"x")
    assert len(all_models(studio.folders)) == 5
    page = client.get("/models").text
    assert page.count('class="row model"') == 3
    assert "The 3 newest of 5 models are shown" in page
    monkeypatch.undo()
    assert "newest of" not in client.get("/models").text


def test_files_that_are_no_models_hide_none(client, studio, shelf, monkeypatch):
    monkeypatch.setattr(models, "MOST_SCANNED", 20)
    (shelf / "images").mkdir()
    for number in range(50):
        (shelf / "images" / f"{number}.png").write_bytes(b"x")
    (shelf / "zebra.ckpt").write_bytes(b"x")
    assert [model.path.name for model in all_models(studio.folders)] == ["zebra.ckpt"]
    assert "may be missing" not in client.get("/models").text
    for number in range(30):
        (shelf / f"{number}").mkdir()
    assert "Models may be missing here" in client.get("/models").text


@pytest.mark.parametrize("name", ["0.", "0.Lg", "0.Li4", "0.Li4vZGF0YQ", "7.YQ", "x", "0.%%%"])
@pytest.mark.parametrize("root", ["models", "runs", "data", ".."])
def test_addresses_that_lead_elsewhere_are_of_no_model(client, base, root, name):
    for path in ("", "/delete", "/inspection", "/publish/0123456789abcdef"):
        assert client.get(f"/models/{root}/{quote(name, safe='')}{path}").status_code == 404
    answer = post(client, f"/models/{root}/{quote(name, safe='')}/delete", sure="yes")
    assert answer.status_code == 404
    assert base.is_file()


def test_a_model_that_was_deleted_meanwhile_is_said(client, studio, base, asked):
    page = page_of(studio, base)
    assert client.get(page).status_code == 200
    base.unlink()
    for answer in (client.get(page), post(client, f"{page}/inspect"), client.get(f"{page}/delete")):
        assert answer.status_code == 404
        assert "deleted, renamed or moved" in answer.text
    assert asked == []


def test_what_strangers_wrote_is_no_html(client, studio, shelf):
    file = shelf / NASTY
    file.write_bytes(b"x")
    pages = [client.get("/models").text, client.get(page_of(studio, file)).text]
    pages.append(client.get(f"{page_of(studio, file)}/delete").text)
    for page in pages:
        assert "<i>" not in page
        assert " style=" not in page


# inspect


def test_a_model_is_inspected_by_a_task_and_its_result_is_kept(client, studio, base, asked):
    page = page_of(studio, base)
    assert "has not been inspected" in client.get(page).text
    answer = post(client, f"{page}/inspect")
    assert answer.status_code == 303
    (words,) = asked
    assert words[:4] == ["inspect", str(base), "--no-hash", "--out"]
    out = Path(words[4])
    assert out.is_relative_to(studio.home.absolute())
    out.parent.mkdir(parents=True)
    out.write_text(json.dumps({"File": {"Kind": "<b>checkpoint"}, "odd": 3}), encoding="utf-8")
    assert "&lt;b&gt;checkpoint" in client.get(page).text
    base.write_bytes(b"another one")
    assert "has not been inspected" in client.get(page).text


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', '{"a": [1]}'])
def test_half_a_result_is_none(client, studio, base, asked, content):
    page = page_of(studio, base)
    post(client, f"{page}/inspect")
    out = Path(asked[0][4])
    out.parent.mkdir(parents=True)
    out.write_text(content, encoding="utf-8")
    assert "has not been inspected" in client.get(page).text


# convert, download


def test_a_conversion_leads_to_the_model_that_it_made(client, studio, shelf, base):
    """The link appears once the task is completed and the file exists."""
    made = TaskResult(
        str(shelf / "new.ckpt"), page_of(studio, shelf / "new.ckpt"), "the model new.ckpt"
    )
    task = TaskDirectory(studio.home / "tasks" / "20260101-000000-abcdef")
    task.path.mkdir(parents=True)
    about = {"words": ["convert"], "made": asdict(made)}
    task.description_file.write_text(json.dumps(about), encoding="utf-8")
    task.events_file.write_text('{"kind": "begin"}\n', encoding="utf-8")
    (shelf / "new.ckpt").write_bytes(b"x")
    page = f"/tasks/{task.path.name}"
    assert made.address not in client.get(page).text
    task.events_file.write_text('{"kind": "begin"}\n{"kind": "ended", "code": 0}\n')
    assert made.address in client.get(page).text
    assert client.get(made.address).status_code == 200
    (shelf / "new.ckpt").unlink()
    assert made.address not in client.get(page).text


def test_a_model_leads_to_draw_with_it_chosen(client, studio, shelf, base):
    drawn = re.search('href="(/draw[^"]+)"', client.get(page_of(studio, base)).text).group(1)
    assert re.search("<option [^>]*selected[^>]*>base.safetensors", client.get(drawn).text)
    assert client.get("/draw?model=mx").status_code == 200


def test_a_form_becomes_a_command_that_overwrites_nothing(client, studio, shelf, base, asked):
    page = f"{page_of(studio, base)}/convert"
    answer = post(client, page, name="new", to="ckpt", dtype="fp16", ema="yes", title="--evil")
    assert answer.status_code == 303
    assert asked == [[
        "convert", "--to=ckpt", "--dtype=fp16", "--ema", "--title=--evil", "--", str(base),
        str(shelf / "new.ckpt"),
    ]]  # fmt: skip
    refused = post(client, page, name="base", to="safetensors", dtype="bf16", title="My title")
    assert refused.status_code == 409  # the form again, with the typed values and the error
    for words in ('value="base"', "<option selected>bf16<", 'value="My title"', "Choose another"):
        assert words in refused.text
    (shelf / "hanging.ckpt").symlink_to(shelf / "nothing")
    assert post(client, page, name="hanging", to="ckpt").status_code == 409
    assert len(asked) == 1


@pytest.mark.parametrize(
    "form",
    [
        {"name": ""}, {"name": "../x"}, {"name": "a/b"}, {"name": "con"}, {"name": "x" * 300},
        {"name": ".hidden"},
        {"name": "a\nb"}, {"name": "x", "to": "exe"}, {"name": "x", "dtype": "int8"},
        {"name": "x", "folder": "9"}, {"name": "x", "folder": "-1"}, {"name": "x", "title": "\x1b"},
    ],
)  # fmt: skip
def test_forms_with_values_that_cannot_be_are_refused(client, studio, base, asked, form):
    assert post(client, f"{page_of(studio, base)}/convert", **form).status_code == 400
    assert asked == []


def test_a_download_is_started_into_the_chosen_folder(client, shelf, asked):
    answer = post(client, "/models/download", id="ada/style", revision="v1", file="-x.ckpt")
    assert answer.status_code == 303
    assert asked == [[
        "download", "--revision=v1", "--file=-x.ckpt", "--out", str(shelf), "--", "ada/style",
    ]]  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        {}, {"id": "x"}, {"id": "--out/x"}, {"id": "a/b/c"}, {"id": "a/b", "revision": "-x"},
        {"id": "a/b", "folder": "3"}, {"id": "https://x.example/a"}, {"id": "a/b c"},
    ],
)  # fmt: skip
def test_downloads_of_nothing_are_refused(client, asked, form):
    assert post(client, "/models/download", **form).status_code == 400
    assert asked == []


# publish


def inputs_of(page):
    """Return input name -> value."""
    found = re.findall(r'<input[^>]* name="([^"]+)" value="([^"]*)"', page)
    return {name: html.unescape(value) for name, value in found}


def planned(client, studio, base, asked, **form):
    answer = post(client, f"{page_of(studio, base)}/publish", repo="ada/x", license="mit", **form)
    assert answer.status_code == 303
    return answer.headers["location"], Path(asked[-1][asked[-1].index("--out") + 1])


def write_plan(folder, **changes):
    plan = {
        "repo_id": "ada/x", "private": True, "license": "mit", "left_out": [], "has_token": True,
        "files": [{"name": "<i>.safetensors", "bytes": 2048}], **changes,
    }  # fmt: skip
    (folder / "upload.json").write_text(json.dumps(plan), encoding="utf-8")
    (folder / "README.md").write_text("# A <i>card", encoding="utf-8")


def test_what_would_be_sent_is_shown_before_anything_is(client, studio, base, asked):
    page, folder = planned(client, studio, base, asked, private="yes")
    assert asked == [[
        "publish", "--out", str(folder), "--license=mit", "--private", "--", str(base), "ada/x",
    ]]  # fmt: skip
    assert "could not be made" in client.get(page).text
    write_plan(folder)
    shown = client.get(page).text
    for words in ("# A &lt;i&gt;card", "2.0 KiB", "only you would see", "Publish it now"):
        assert words in shown
    assert "<i>" not in shown
    sent = post(client, page)
    assert sent.status_code == 303
    card = f"--card={folder / 'README.md'}"  # the inspected one
    assert asked[1] == [
        "publish", "--yes", card, "--license=mit", "--private", "--", str(base), "ada/x",
    ]  # fmt: skip


def test_what_a_card_was_made_with_is_in_the_form_when_it_is_made_again(
    client, studio, base, asked
):
    planned(client, studio, base, asked, private="yes")
    page = client.get(page_of(studio, base)).text
    assert inputs_of(page)["repo"] == "ada/x"
    assert "<option selected>mit</option>" in page
    assert 'name="private" value="yes" checked' in page
    base.write_bytes(b"another model of the same name")
    assert inputs_of(client.get(page_of(studio, base)).text)["repo"] == ""


def test_without_a_token_there_is_no_button(client, studio, base, asked):
    page, folder = planned(client, studio, base, asked)
    write_plan(folder, has_token=False)
    shown = client.get(page).text
    assert "Publish it now" not in shown
    assert "hf auth login" in shown


def test_another_model_than_the_one_that_was_shown_is_not_sent(client, studio, base, asked):
    page, folder = planned(client, studio, base, asked)
    write_plan(folder)
    base.write_bytes(b"another model of the same name")
    assert post(client, page).status_code == 409
    assert len(asked) == 1


@pytest.mark.parametrize(
    "form",
    [
        {"repo": "x", "license": "mit"}, {"repo": "ada/x"}, {"repo": "ada/x", "license": "nope"},
        {"repo": "--yes/x", "license": "mit"}, {"repo": "ada/x", "license": "other"},
    ],
)  # fmt: skip
def test_models_are_not_published_without_a_name_and_a_licence(client, studio, base, asked, form):
    assert post(client, f"{page_of(studio, base)}/publish", **form).status_code == 400
    assert asked == []


def test_what_was_typed_to_publish_is_still_there_beside_what_was_wrong(client, studio, base):
    form = {"repo": "ada", "license": "other", "license-name": "mine <i>", "private": "yes"}
    refused = post(client, f"{page_of(studio, base)}/publish", **form)
    assert refused.status_code == 400
    fields = inputs_of(refused.text)
    assert (fields["repo"], fields["license-name"]) == ("ada", "mine <i>")
    assert "<option selected>other</option>" in refused.text
    assert "owner/name." in refused.text.split('role="alert">')[1]
    assert fields["name"] == ""  # from the other form


def test_what_was_typed_to_download_is_still_there_beside_what_was_wrong(client, asked):
    refused = post(client, "/models/download", id="x y", revision="v1", file="a.ckpt", folder="0")
    fields = inputs_of(refused.text)
    assert (fields["id"], fields["revision"], fields["file"]) == ("x y", "v1", "a.ckpt")
    assert "owner/name" in refused.text.split('role="alert">')[1]


@pytest.mark.parametrize("plan", ["0123456789abcdef", "x", "%252e%252e", "..a", "é" * 16])
def test_plans_that_are_not_there_are_said(client, studio, base, plan):
    page = f"{page_of(studio, base)}/publish/{plan}"
    assert client.get(page).status_code == 404
    assert client.post(page, headers=FROM_HERE).status_code in (404, 405)


# delete


def test_a_model_is_moved_to_the_trash_once_it_was_confirmed(client, studio, shelf, base, folder):
    page = f"{page_of(studio, base)}/delete"
    run = made_run(folder / "dog", settings={"model": {"path": str(base)}})
    asked_page = client.get(page).text
    assert f"/runs/{studio.folders.name_of(run)}" in asked_page
    assert "model.path" in asked_page
    assert post(client, page).status_code == 400
    assert base.is_file()
    assert post(client, page, sure="yes").headers["location"] == "/models"
    assert not base.exists()
    (kept,) = (shelf / ".trash").rglob("base.safetensors")
    assert kept.read_bytes() == b"12345"
    assert "still take up 5 bytes" in client.get("/models").text
    assert post(client, "/models/empty-trash", deleted=listed_in_trash(client)).status_code == 400
    assert kept.is_file()
    form = {"sure": "yes", "deleted": listed_in_trash(client)}
    done = post(client, "/models/empty-trash", **form)
    assert done.status_code == 303
    assert list((shelf / ".trash").iterdir()) == []
    page = client.get(done.headers["location"]).text
    assert "1 model was removed for good. That freed 5 bytes." in page
    assert "after this page was opened" not in page
    again = client.get(post(client, "/models/empty-trash", **form).headers["location"]).text
    assert "Nothing was removed: these items were no longer in the trash." in again
    assert "removed for good" not in client.get("/models?removed=1e9&freed=-1").text


def test_a_trash_of_another_program_is_not_emptied(client, shelf):
    """Folders of other programs may have the same name."""
    note = shelf / ".trash" / "notes" / "precious.md"
    note.parent.mkdir(parents=True)
    note.write_text("x", encoding="utf-8")
    assert post(client, "/models/empty-trash", sure="yes").status_code == 303
    assert note.is_file()


def test_models_of_one_name_do_not_meet_in_the_trash(client, studio, shelf):
    for _ in range(3):
        diffusers(shelf / "same")
        post(client, f"{page_of(studio, shelf / 'same')}/delete", sure="yes")
    assert len(list((shelf / ".trash").rglob("model_index.json"))) == 3


def test_jobs_and_hypernetworks_that_would_miss_a_model_are_named(client, studio, base, folder):
    text = f'output_dir = "{(folder / "cat").as_posix()}"\n[model]\npath = "{base.as_posix()}"\n'
    Queue(studio.queue).add(text, "cat", folder)
    made_run(folder / "dog", settings={"previews": {"hypernetworks": [f"{base}:0.8"]}})
    page = client.get(f"{page_of(studio, base)}/delete").text
    assert "job 1, cat (model.path)" in page
    assert "(previews.hypernetworks)" in page
    assert "No run of this studio names it" not in page


def test_a_model_that_a_run_works_with_stays(client, studio, base, folder):
    run = made_run(folder / "dog", settings={"model": {"path": str(base)}}, phase="training")
    with run.held():
        answer = post(client, f"{page_of(studio, base)}/delete", sure="yes")
    assert answer.status_code == 409
    assert "the model is used now by dog" in answer.text
    assert base.is_file()


def test_a_model_of_a_job_that_is_worked_on_stays(client, studio, base, folder, monkeypatch):
    """A working job's base model cannot be deleted, even before its run has been created."""
    text = f'output_dir = "{(folder / "cat").as_posix()}"\n[model]\npath = "{base.as_posix()}"\n'
    job = Queue(studio.queue).add(text, "cat", folder)
    monkeypatch.setattr(Queue, "jobs", lambda _: [replace(job, state="working")])
    answer = post(client, f"{page_of(studio, base)}/delete", sure="yes")
    assert answer.status_code == 409
    assert "the model is used now by job 1 of the queue" in answer.text
    assert base.is_file()


def test_a_model_of_a_run_that_is_being_prepared_stays(client, studio, base, folder, monkeypatch):
    monkeypatch.chdir(base.parent)
    with RunDirectory.begun(folder / "sub" / "cat") as run:
        note_preparing(run.path, {"model": {"path": "owner/name", "vae": base.name}})
        assert all_models(studio.folders)
        answer = post(client, f"{page_of(studio, base)}/delete", sure="yes")
        assert answer.status_code == 409
        assert "the model is used now by cat" in answer.text
        forget_preparing(run.path)
        assert os.listdir(run.path) == [".lock"]
        note_preparing(run.path, {"model": {"path": "owner/name"}})
        assert post(client, f"{page_of(studio, base)}/delete", sure="yes").status_code == 303


def test_what_a_run_left_that_was_killed_while_it_was_prepared_holds_no_model(
    client, studio, base, folder
):
    (folder / "cat").mkdir()
    note_preparing(folder / "cat", {"model": {"path": str(base)}})
    assert post(client, f"{page_of(studio, base)}/delete", sure="yes").status_code == 303
    with RunDirectory.begun(folder / "cat"):
        pass


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("models/sdxl/unet/weights.safetensors", "models/sdxl. Give that folder"),
        ("runs/x/export/x/unet/weights.safetensors", "runs/x/export/x. Give that folder"),
        (
            "runs/x/states/step-00000001/weights.safetensors",
            "{}/runs/x/export/x",
        ),
        ("runs/x/waiting-vae-0.safetensors", "{}/runs/x/export/x"),
    ],
)
def test_a_part_of_a_model_or_of_a_run_is_not_deleted(folder, part, whole):
    place = folder.parent
    diffusers(place / "models" / "sdxl")
    diffusers(made_run(folder / "x").export / "x")
    file = place / part
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    with pytest.raises(ModelError) as refused:
        model_at(file)
    assert whole.format(place.as_posix()) in str(refused.value).replace(os.sep, "/")
    assert model_at(place / "models" / "sdxl").run is None
    assert model_at(folder / "x" / "export" / "x").run.path == folder / "x"


def test_a_trash_that_leads_elsewhere_is_not_used_nor_emptied(client, studio, shelf, base):
    elsewhere = shelf.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    (shelf / ".trash").symlink_to(elsewhere)
    assert post(client, f"{page_of(studio, base)}/delete", sure="yes").status_code == 500
    assert base.is_file()
    post(client, "/models/empty-trash", sure="yes")
    assert (elsewhere / "precious").is_file()


def test_a_link_in_the_trash_is_removed_and_not_followed(client, studio, shelf):
    precious = shelf.parent / "precious"
    precious.mkdir()
    (precious / "x").write_text("x")
    folder = diffusers(shelf / "linked")
    (folder / "out").symlink_to(precious)
    post(client, f"{page_of(studio, folder)}/delete", sure="yes")
    form = {"sure": "yes", "deleted": listed_in_trash(client)}
    assert post(client, "/models/empty-trash", **form).status_code == 303
    assert (precious / "x").is_file()
    assert list((shelf / ".trash").iterdir()) == []


def test_users_are_found_by_relative_paths_links_and_by_the_run(studio, shelf, base, folder):
    link = shelf / "other.safetensors"
    link.symlink_to(base)
    run = made_run(folder / "trained")
    run.export.mkdir()
    (run.export / "m.safetensors").write_bytes(b"x")
    runs = [
        made_run(
            folder / "relative", settings={"model": {"path": "models/base.safetensors"}},
            folder=str(shelf.parent),
        ),
        made_run(folder / "linked", settings={"model": {"path": str(link)}}),
        made_run(folder / "vae", settings={"model": {"path": "owner/name", "vae": str(base)}}),
        *(
            made_run(folder / f"drawn{number}", settings={"previews": {"hypernetworks": [given]}})
            for number, given in enumerate(
                [str(base), f"{base}:-1", f"{base}:+1e-1", f"{base}:nan"]
            )
        ),
        made_run(folder / "further", settings={"model": {"path": str(run.path)}}),
        made_run(folder / "damaged"),
        run,
    ]  # fmt: skip
    runs[-2].config_file.write_bytes(b"\xff = ")
    model = find_model(studio.folders, "models", address_of([shelf], base))
    assert [(r.path.name, key) for r, key in users_of(model, runs)] == [
        ("relative", "model.path"), ("linked", "model.path"), ("vae", "model.vae"),
        *((f"drawn{number}", "previews.hypernetworks") for number in range(3)),
    ]  # fmt: skip
    exported = find_model(
        studio.folders, "runs", address_of([folder], run.export / "m.safetensors")
    )
    assert [(r.path.name, key) for r, key in users_of(exported, runs)] == [
        ("further", "model.path")
    ]
