"""Helpers for tests of runs in an object store: a working folder, and its keys in the store."""

import json

from impasto.runs.remote.contents import items_in
from impasto.runs.remote.fetching import list_run
from impasto.runs.remote.local_folders import working_folder
from impasto.runs.remote.record import SentRecord
from impasto.runs.remote.sending import Sender
from impasto.storage import claims, objects

STATE = ("hashes.json", "optimizer.safetensors", "state.json", "weights.safetensors")
ELSEWHERE = "1-1-abcdef"  # a process on another machine


def write(folder, key, text=None):
    file = folder / key
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(key if text is None else text, encoding="utf-8")
    return file


def write_state(folder, step):
    for name in STATE:
        write(folder, f"states/step-{step:08d}/{name}", f"{name} of {step}")


def make_run(place):
    """Write the working folder of a run, with a state, a model in a folder, and a preview."""
    folder = working_folder(place)
    write(folder, "config.toml", "seed = 1\n")
    write(folder, "status.json", json.dumps({"phase": "training", "step": 2}))
    write(folder, "metrics.jsonl", '{"step": 2}\n')
    write(folder, "models.json", "{}")
    write(folder, "samples/step-00000002/00.png")
    write_state(folder, 2)
    for name in ("model_index.json", "unet/config.json", "vae/config.json"):
        write(folder, f"models/cat/{name}", f"first {name}")
    for name in ("commands/1.json", ".lock", "waiting-vae-0.safetensors"):
        write(folder, name)
    return folder


def sent(folder, place, **options):
    sender = Sender(folder, SentRecord.read(place), **options)
    sender.send(all_of_it=True)
    return sender


def files_of(folder):
    found = {thing_file: folder / thing_file for t in items_in(folder) for thing_file in t.files}
    return {key: file.read_bytes() for key, file in found.items()}


def content(place):
    return {key: objects.read(place / key) for key in list_run(place)}


def moments(server, place):
    """Return the run's keys in the store after each request that changed something."""
    prefix = "/" + "/".join(place.parts[1:]) + "/"
    present, found = set(), []
    for request in server.requests:
        method, path = request.split(" ")[:2]
        if not path.startswith(prefix) or method not in ("PUT", "DELETE"):
            continue
        key = path.removeprefix(prefix)
        present = present | {key} if method == "PUT" else present - {key}
        found.append(present)
    return found


def owner_elsewhere(place, number, **changes):
    said = {"process": ELSEWHERE, "host": "machine-b", "since": "now", **changes}
    claims.write(place / "owners" / f"{number:08d}.json", json.dumps(said).encode())
