"""A process that reaches an exchange after another one has failed and left."""

import pytest
import torch

from impasto.datasets.distributed import DistributedGroup
from impasto.datasets.store_keys import StoreKeys
from impasto.errors import DatasetError


def test_who_comes_after_another_has_left_says_its_words(monkeypatch):
    def broken(**_):
        raise RuntimeError("Connection closed by peer")

    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    monkeypatch.setattr(torch.distributed, "barrier", broken)
    first, late = (DistributedGroup(rank, 2, rank, StoreKeys()) for rank in (0, 1))
    with pytest.raises(RuntimeError, match="Connection closed"):
        late.gather("nothing was told")
    first.tell(DatasetError("The image folder pictures does not exist."), wait=False)
    with pytest.raises(DatasetError, match=r"pictures does not exist.*process 1 of 2"):
        late.gather("too late")
