"""One file of each kind that Impasto reads, whole, and a reading of a damaged copy of it.

`READERS` has for each kind a class: `__init__(folder)` makes the whole files once, and
`read(rng, folder)` damages a copy in an empty folder and reads it as the program does. Only
Impasto's own errors may come out.
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
