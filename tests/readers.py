"""One valid file of each kind that Impasto reads, and a reader for damaged copies of it.

`READERS` has a class per kind: `__init__(folder)` writes the valid files once, and `read(rng,
folder)` damages a copy in an empty folder and reads it as the program does. Only Impasto's own
errors may be raised.
"""

from __future__ import annotations

from readers_of_data import Caches, Journals, MetadataFiles, Npz, ScanIndices, TextNpz
from readers_of_models import Ckpts, HypernetworkFiles, Loras, Safetensors
from readers_of_runs import DatasetConfigs, Prompts, RunDirectories, Settings, States

READERS = {
    "run directory": RunDirectories,
    "states": States,
    "npz": Npz,
    "text npz": TextNpz,
    "journal": Journals,
    "ckpt": Ckpts,
    "safetensors": Safetensors,
    "hypernetwork": HypernetworkFiles,
    "lora": Loras,
    "cache": Caches,
    "scan index": ScanIndices,
    "metadata": MetadataFiles,
    "prompts": Prompts,
    "settings": Settings,
    "dataset config": DatasetConfigs,
}
