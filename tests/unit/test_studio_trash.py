"""Deleted models: how they are shown, restored, removed for good, or left alone."""

import json
import os
import shutil
import sys

import pytest
from runs_made import made_run
from studios import FROM_HERE, listed_in_trash
from windows_os import make_junction

from impasto.errors import ModelError, StorageError
from impasto.runs.queue import Queue
from impasto.studio import trash
from impasto.studio.folders import Folders, address_of
from impasto.studio.models import find_model, model_at
from impasto.studio.trash import all_deleted, delete, given_folders, purge, restore

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
STAMP = "20260101-000000-0"


@pytest.fixture
def shelf(folder):
    return folder.parent / "models"


@pytest.fixture
def folders(folder, shelf):
    return Folders([folder], [], [shelf])


def model_of(folders, path, root="models"):
    given = folders.models if root == "models" else folders.runs
    return find_model(folders, root, address_of(given, path))


def file_in(shelf, name="sub/base.safetensors", content=b"12345"):
    file = shelf / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def thrown_away(folders, path, root="models"):
    """Return the item deleted last, as the trash lists it."""
    where = delete(model_of(folders, path, root))
    return next(one for one in all_deleted(folders) if one.path == where)


def post(client, path, **form):
    return client.post(path, data=form, headers=FROM_HERE, follow_redirects=False)


def laid_out(shelf, name, note=None, content=b"x"):
    """Write an item into a trash as a stranger could."""
    file = file_in(shelf / ".trash" / STAMP, name, content)
    if note is not None:
        (file.parent / ".from.json").write_text(json.dumps({"from": note}), encoding="utf-8")
    return file


def test_a_model_is_put_back_where_it_was(client, studio, folders, shelf):
    file = file_in(shelf)
    deleted = thrown_away(folders, file)
    page = client.get("/models").text
    assert "base.safetensors" in page
    assert str(file.parent) in page
    assert deleted.address in page
    (shelf / "sub").rmdir()
    done = post(client, f"{deleted.address}/restore")
    assert done.status_code == 303
    assert client.get(done.headers["location"]).status_code == 200
    assert file.read_bytes() == b"12345"
    assert list((shelf / ".trash").iterdir()) == []
    assert post(client, f"{deleted.address}/restore").status_code == 404


def test_a_folder_and_what_a_run_exported_are_put_back(folders, shelf, folder):
    whole = shelf / "deep" / "folder"
    (whole / "unet").mkdir(parents=True)
    file_in(whole, "model_index.json", b"{}")
    file_in(whole, "unet/x.safetensors")
    restore(thrown_away(folders, whole))
    assert (whole / "unet" / "x.safetensors").is_file()
    run = made_run(folder / "dog")
    export = file_in(run.path, "export/dog.pt")
    assert restore(thrown_away(folders, export, "runs")) == export
    assert export.is_file()


def test_what_has_its_name_meanwhile_is_never_replaced(client, folders, shelf):
    file = file_in(shelf)
    deleted = thrown_away(folders, file)
    file.write_bytes(b"another")
    assert "Rename that one first" in client.get(deleted.address).text
    refused = post(client, f"{deleted.address}/restore")
    assert refused.status_code == 409
    assert "already exists" in refused.text
    assert file.read_bytes() == b"another"
    assert deleted.path.read_bytes() == b"12345"


def test_a_name_that_is_taken_in_the_last_moment_is_not_replaced_either(
    folders, shelf, monkeypatch
):
    file = file_in(shelf)
    deleted = thrown_away(folders, file)
    monkeypatch.setattr(trash, "_why_not_restored", lambda _: file.write_bytes(b"new") and "")
    with pytest.raises(ModelError, match="already exists"):
        restore(deleted)
    assert file.read_bytes() == b"new"
    assert deleted.path.is_file()


def test_a_model_is_deleted_for_good_once_it_was_said_who_loses_it(
    client, studio, folders, shelf, folder
):
    file, other = file_in(shelf), file_in(shelf, "other.ckpt")
    run = made_run(folder / "dog", settings={"model": {"path": str(file)}})
    text = f'output_dir = "x"\n[model]\npath = "{file.as_posix()}"\n'
    Queue(studio.queue).add(text, "cat", folder)
    deleted, kept = thrown_away(folders, file), thrown_away(folders, other)
    page = client.get(deleted.address).text
    assert f"/runs/{address_of([folder], run.path)}" in page
    assert "job 1, cat (model.path)" in page
    assert post(client, f"{deleted.address}/purge").status_code == 400
    assert deleted.path.is_file()
    assert post(client, f"{deleted.address}/purge", sure="yes").status_code == 303
    assert not deleted.path.parent.exists()
    assert [one.path for one in all_deleted(folders)] == [kept.path]


def test_models_that_an_earlier_version_deleted_go_to_the_folder_of_the_trash(folders, shelf):
    laid_out(shelf, "old.safetensors")
    (deleted,) = all_deleted(folders)
    assert restore(deleted) == shelf / "old.safetensors"


@pytest.mark.parametrize(
    "note",
    ["../../out/a.ckpt", "/etc/a.ckpt", ".hidden/a.ckpt", "sub/.a.ckpt", "b.ckpt", "", "a\0.ckpt",
     "sub/../../a.ckpt", 7, None, ["a.ckpt"], ".trash/a.ckpt"],
)  # fmt: skip
def test_a_note_of_a_stranger_leads_nowhere_else(folders, shelf, note):
    laid_out(shelf, "a.ckpt", note)
    (deleted,) = all_deleted(folders)
    assert deleted.origin == shelf / "a.ckpt"


@POSIX
def test_links_of_a_stranger_are_not_followed(client, folders, shelf, tmp_path):
    precious = tmp_path / "precious"
    file_in(precious, "a.ckpt")
    entry = laid_out(shelf, "real.ckpt", "out/real.ckpt").parent
    (shelf / "out").symlink_to(precious)
    (entry / "link.ckpt").symlink_to(precious / "a.ckpt")
    (shelf / ".trash" / "20260101-000000-1").symlink_to(precious)
    found = {one.path.name: one for one in all_deleted(folders)}
    assert found.keys() == {"real.ckpt", "link.ckpt"}
    for one in found.values():
        assert post(client, f"{one.address}/restore").status_code == 409
        assert one.path.is_symlink() or one.path.is_file()
    purge(found["link.ckpt"])
    assert sorted(path.name for path in precious.iterdir()) == ["a.ckpt"]
    assert client.get("/models").status_code == 200


@POSIX
def test_a_link_that_stays_in_the_folder_is_put_back(folders, shelf):
    real = file_in(shelf, "real.safetensors")
    link = shelf / "sub" / "link.safetensors"
    link.parent.mkdir()
    link.symlink_to(os.path.relpath(real, link.parent))
    restore(thrown_away(folders, link))
    assert link.read_bytes() == b"12345"
    assert link.is_symlink()


def test_what_is_no_model_is_shown_and_stays_where_it_is(client, folders, shelf):
    file = laid_out(shelf, "<i>.sh")
    (deleted,) = all_deleted(folders)
    assert "<i>.sh" not in client.get("/models").text
    refused = post(client, f"{deleted.address}/restore")
    assert refused.status_code == 409
    assert "not a model" in refused.text
    assert file.is_file()


def test_nothing_of_a_trash_of_another_program_is_shown(client, studio, folders, shelf):
    file_in(shelf / ".trash" / "notes", "a.ckpt")
    assert all_deleted(folders) == []
    name = address_of(given_folders(folders), shelf / ".trash" / "notes" / "a.ckpt")
    for part in ("restore", "purge"):
        assert post(client, f"/models/deleted/{name}/{part}", sure="yes").status_code == 404
    outside = address_of(given_folders(folders), file_in(shelf, "a.ckpt"))
    assert post(client, f"/models/deleted/{outside}/purge", sure="yes").status_code == 404
    assert (shelf / "a.ckpt").is_file()


@pytest.mark.parametrize("which", ["part", "whole"])
def test_what_a_junction_leads_to_is_never_removed(folders, shelf, tmp_path, monkeypatch, which):
    """People use `mklink /J` to share a VAE or keep models on another disk."""
    precious = tmp_path / "precious"
    file_in(precious, "model_index.json", b"{}")
    file_in(precious, "unet/x.safetensors")
    if which == "part":
        link = shelf / "sdxl" / "vae"
        file_in(shelf, "sdxl/model_index.json", b"{}")
        make_junction(link, precious, monkeypatch)
        purge(thrown_away(folders, shelf / "sdxl"))
    else:
        link = file_in(shelf / ".trash" / STAMP, "other.ckpt").parent / "sdxl"
        make_junction(link, precious, monkeypatch)
        for one in all_deleted(folders):
            purge(one)
    assert not os.path.lexists(link)
    assert list((shelf / ".trash").iterdir()) == []
    assert (precious / "model_index.json").is_file()
    assert (precious / "unet" / "x.safetensors").is_file()


def test_a_trash_that_is_a_junction_is_neither_used_nor_emptied(
    client, folders, shelf, tmp_path, monkeypatch
):
    precious = file_in(tmp_path / "other" / STAMP, "a.ckpt")
    model = file_in(shelf, "base.safetensors")
    make_junction(shelf / ".trash", tmp_path / "other", monkeypatch)
    assert all_deleted(folders) == []
    with pytest.raises(StorageError, match="is not a folder"):
        delete(model_of(folders, model))
    assert precious.is_file()


def test_what_the_terminal_deletes_below_a_given_folder_is_found(client, folders, shelf, folder):
    file = file_in(shelf, "sub/deeper/base.safetensors")
    run = made_run(folder / "ours" / "dog")
    export = file_in(run.path, "export/dog.pt")
    where = {delete(model_at(file)), delete(model_at(export))}
    assert {path.parents[2] for path in where} == {shelf / "sub" / "deeper", folder / "ours"}
    found = {one.path: one for one in all_deleted(folders)}
    assert found.keys() == where
    assert len(all_deleted(Folders([folder], [], [shelf, shelf / "sub"]))) == 2
    page = client.get("/models").text
    for one in found.values():
        assert one.address in page
        assert client.get(one.address).status_code == 200
        assert post(client, f"{one.address}/restore").status_code == 303
    assert file.is_file()
    assert export.is_file()


def test_a_page_empties_no_more_than_it_lists(client, folders, shelf):
    listed = thrown_away(folders, file_in(shelf, "a.ckpt"))
    names = listed_in_trash(client)
    later = thrown_away(folders, file_in(shelf, "b.ckpt"))
    done = post(client, "/models/empty-trash", sure="yes", deleted=names)
    assert not listed.path.exists()
    assert later.path.is_file()
    assert "deleted after this page was opened" in client.get(done.headers["location"]).text
    assert "after this page was opened" not in client.get("/models").text
    post(client, "/models/empty-trash", sure="yes", deleted=listed_in_trash(client))
    assert all_deleted(folders) == []


def test_an_export_whose_run_is_gone_is_not_restored_to_where_no_page_shows_it(
    client, folders, folder
):
    run = made_run(folder / "dog")
    deleted = thrown_away(folders, file_in(run.path, "models/dog.safetensors"), "runs")
    shutil.rmtree(run.path)
    refused = post(client, f"{deleted.address}/restore")
    assert refused.status_code == 409
    assert "the run that exported it no longer exists" in refused.text
    assert "models restore" in refused.text
    assert deleted.path.is_file()
    assert restore(deleted).is_file()
