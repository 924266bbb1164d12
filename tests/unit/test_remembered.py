"""Cached findings are used only in the form in which they were written."""

import json

import pytest

from impasto.data.caching.latent_cache import LatentCache
from impasto.data.columns.remembered import recall, write_cached
from impasto.data.scanning.scan import scan_folder

CONTENT = {"a/蝶.png": [[1, 2], ["x\u2028y", 0]], "b": []}


def test_what_is_written_comes_back(tmp_path):
    file = tmp_path / "x.json"
    write_cached(file, [1, "key"], CONTENT)
    assert recall(file, [1, "key"]) == CONTENT
    assert recall(file, [2, "key"]) is None
    assert recall(file, [1, "other"]) is None
    assert recall(tmp_path / "none.json", [1]) is None


@pytest.mark.parametrize("change", ['"b"', "[1, 2]", "x", "蝶", "sha256", "content"])
def test_any_change_is_noticed(tmp_path, change):
    file = tmp_path / "x.json"
    write_cached(file, [1], CONTENT)
    text = file.read_text(encoding="utf-8")
    assert change in text
    file.write_text(text.replace(change, change[:1] + "9" + change[1:], 1), encoding="utf-8")
    assert recall(file, [1]) is None


def test_a_changed_index_of_a_scan_is_not_believed(tmp_path):
    from PIL import Image

    (tmp_path / "set").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "a.png")
    (tmp_path / "set" / "a.txt").write_text("cat", encoding="utf-8")
    index = tmp_path / "scan.json"
    scan_folder(tmp_path / "set", index=index)
    (segment,) = (tmp_path / "scan.table").iterdir()
    content = segment.read_bytes()
    assert b"cat" in content
    segment.write_bytes(content.replace(b"cat", b"dog"))
    (record,) = scan_folder(tmp_path / "set", index=index).records
    assert (record.caption_text, record.size.wh) == ("cat", (64, 64))


def test_a_shard_with_its_keys_in_another_order_is_not_used(tmp_path):
    import torch

    from impasto.data.records import Size

    keys = ["a" * 32, "b" * 32]
    moments = torch.arange(2.0)[:, None, None, None].expand(2, 4, 8, 8)
    LatentCache(tmp_path).write_shard(Size(64, 64), keys, moments, moments)
    (index,) = tmp_path.glob("*.json")
    stored = json.loads(index.read_text(encoding="utf-8"))
    index.write_text(json.dumps({**stored, "keys": keys[::-1]}), encoding="utf-8")
    cache = LatentCache(tmp_path)
    assert len(cache) == 0
    assert [bad.reason for bad in cache.verify(remove=False)] == ["its index cannot be read"]
