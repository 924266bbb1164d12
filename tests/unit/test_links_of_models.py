"""Links in a stranger's model folder: only a snapshot in the Hub's cache may use its own blobs."""

import sys

import pytest

from impasto.checkpoints.links import require_links_inside
from impasto.errors import ModelError

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="creating links needs a privilege on Windows"
)


def a_link(link, target):
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)


@pytest.mark.parametrize(
    "model", ["snapshots/model", "snapshots/a/model", "models--a--b/model", "x/snapshots/models--a"]
)
def test_a_folder_called_snapshots_opens_nothing(tmp_path, model):
    secret = tmp_path / "id_rsa"
    secret.write_text("private", encoding="utf-8")
    folder = tmp_path / model
    a_link(folder / "tokenizer" / "merges.txt", secret)
    with pytest.raises(ModelError, match="leads out"):
        require_links_inside(folder)


def test_a_snapshot_leads_to_its_blobs_and_nowhere_else_in_the_repository(tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "abc"
    (repository / "blobs").mkdir(parents=True)
    (repository / "blobs" / "1").write_text("{}", encoding="utf-8")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc", encoding="utf-8")
    a_link(snapshot / "unet" / "config.json", "../../../blobs/1")
    require_links_inside(snapshot)
    require_links_inside(snapshot / "unet")
    a_link(snapshot / "main", "../../refs/main")
    with pytest.raises(ModelError, match="main is a link"):
        require_links_inside(snapshot)


def test_blobs_that_are_a_link_themselves_open_nothing(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "id_rsa").write_text("private", encoding="utf-8")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    a_link(snapshot / "config.json", "../../blobs/id_rsa")
    (tmp_path / "models--a--b" / "blobs").symlink_to(home)
    with pytest.raises(ModelError, match="leads out"):
        require_links_inside(snapshot)
