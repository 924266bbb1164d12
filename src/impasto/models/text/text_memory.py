"""Caches the output of frozen text encoders for each chunk of token ids.

The key is the ids alone: however the caption was shuffled, dropped or weighted, the same chunk has
the same states. Only a chunk of which a file of sd-scripts has a part is cached twice: as in the
file, for texts that need no more, and as encoded. Memory is bounded; a store on disk may back it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from impasto.data.caching.text_npz import GivenTexts
from impasto.data.caching.text_store import TextStore
from impasto.data.engines.process_group import ALONE, CachePeers
from impasto.progress import Progress, SilentProgress

AHEAD_BATCH = 16
Ids = tuple[int, ...]
_Key = tuple[Ids, bool]  # True: the states are those of a file
Encode = Callable[[Tensor], Tensor]


class TextCache:
    """The states of chunks: the most recently used ones in memory, and optionally all on disk.

    Args:
        limit_bytes: Bytes that may be held in memory; one chunk of SD 1 takes 231 KiB.
        device: Device on which states are held and returned.
        store: Store of the states on disk.
        progress: Shows the progress while chunks are precomputed.
        at_once: Chunks that are encoded together; smaller groups are padded to this number.
        given: States that are read from files of sd-scripts instead of being encoded.
    """

    def __init__(
        self,
        limit_bytes: int,
        device: torch.device,
        store: TextStore | None = None,
        progress: Progress | None = None,
        at_once: int = 1,
        given: GivenTexts | None = None,
    ) -> None:
        self._limit_bytes, self._at_once, self._given = limit_bytes, at_once, given
        self._device = device
        self._store = store
        self._progress = progress or SilentProgress()
        self._known: OrderedDict[_Key, Tensor] = OrderedDict()
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        """The bytes of the states that the cache holds in memory."""
        return self._held_bytes

    def states_of(
        self, ids: Int[Tensor, "chunks n"], encode: Encode, each: int = 1
    ) -> Float[Tensor, "chunks *shape"]:
        """Return the states of chunks; missing ones are encoded in groups of one size.

        In groups of varying size their last bits would depend on which chunks they were first
        encoded with, which a resumed run does not repeat.

        Args:
            ids: Token ids of the chunks, text by text.
            encode: The encoder.
            each: Number of chunks per text. Values that are not used of a chunk in its position may
                be NaN.
        """
        keys = [
            self._key(tuple(row), number % each, each) for number, row in enumerate(ids.tolist())
        ]
        found = {key: self._find(key) for key in dict.fromkeys(keys)}
        missing = [key for key, states in found.items() if states is None]
        for first in range(0, len(missing), self._at_once):
            group = missing[first : first + self._at_once]
            padded = [key[0] for key in group + group[-1:] * (self._at_once - len(group))]
            made = _encoded(torch.tensor(padded), encode).to(self._device)
            for key, states in zip(group, made, strict=False):
                alone = states.clone()  # a view would keep the group in memory
                found[key] = alone
                self._keep(key, alone)
        return torch.stack([states for key in keys if (states := found[key]) is not None])

    def precompute(
        self, texts: Iterable[Sequence[Ids]], encode: Encode, peers: CachePeers = ALONE
    ) -> None:
        """Encode to disk the chunks of these texts that are not read from files.

        Each process of a run encodes its part. The batches are those that a single process would
        form, so that the results have the same bits.

        Args:
            texts: Chunks of each text, the same in all processes.
            encode: The encoder.
            peers: The processes that divide the work; all processes of a run call this.

        Raises:
            StorageError: The disk is full or the folder cannot be written.
        """
        if self._store is None:
            return
        self._store.refresh()
        store = self._store
        keys = {
            self._key(ids, index, len(text)) for text in texts for index, ids in enumerate(text)
        }
        chunks = sorted({ids for ids, _ in keys})
        needed = {ids for ids, is_given in keys if not is_given}
        lacks = peers.agreed(np.array([i in needed and i not in store for i in chunks], bool))
        missing = [chunks[index] for index in np.flatnonzero(lacks).tolist()]
        batches = [missing[n : n + AHEAD_BATCH] for n in range(0, len(missing), AHEAD_BATCH)]
        batches = batches[peers.part_of([float(len(batch)) for batch in batches])]
        if batches:
            self._encode_ahead(batches, encode, store, peers)
        if peers.group.size > 1:
            peers.wait()
            store.require_seen(missing, peers.group.raise_fault)

    def _encode_ahead(
        self, batches: Sequence[Sequence[Ids]], encode: Encode, store: TextStore, peers: CachePeers
    ) -> None:
        """Encode batches and write them, one shard after another."""
        number, in_shard = sum(map(len, batches)), store.shard_entries // AHEAD_BATCH
        stage = peers.named("Encoding captions")
        with self._progress.stage(stage, number, "chunks") as advance:
            for start in range(0, len(batches), in_shard):
                portion = batches[start : start + in_shard]
                made = []
                for batch in portion:
                    peers.group.raise_fault()
                    made.append(_encoded(torch.tensor(batch), encode).cpu())
                    advance(len(batch))
                store.write([ids for batch in portion for ids in batch], torch.cat(made))

    def _key(self, ids: Ids, index: int, chunks: int) -> _Key:
        return ids, self._given is not None and self._given.serves(ids, index, chunks)

    def _find(self, key: _Key) -> Tensor | None:
        ids, is_given = key
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if is_given and self._given is not None:
            states = torch.from_numpy(self._given.read(ids)).to(self._device)
            self._keep(key, states)
            return states
        if self._store is not None and ids in self._store:
            return self._store.read(ids).to(self._device)
        return None

    def _keep(self, key: _Key, states: Tensor) -> None:
        self._known[key] = states
        self._held_bytes += states.nbytes
        while self._held_bytes > self._limit_bytes and self._known:
            _, oldest = self._known.popitem(last=False)
            self._held_bytes -= oldest.nbytes


@torch.no_grad()
def _encoded(ids: Tensor, encode: Encode) -> Tensor:
    """Encode in full precision without autocast: it happens once, and the result is cached."""
    with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
        return encode(ids)
