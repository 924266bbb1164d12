"""Ray in practice: a cluster that loses a machine, the command line, two runs at once."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import draw_images
from ray_stages import Recipe, Square, encoder_of

from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.engines.engine import LOCAL
from impasto.data.engines.ray_cluster import import_ray
from impasto.data.engines.ray_engine import RayEngine
from impasto.data.engines.stages import chunks
from impasto.data.planning.plan import plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import scan_folder
from impasto.errors import ConfigError, MissingDependencyError

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(monkeypatch):
    """Two machines, as processes that know each other only by an address."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    import_ray()
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    made.lost = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    made.shutdown()


def test_a_machine_that_is_lost_costs_nothing(cluster, tmp_path):
    engine = RayEngine(cluster.address, [tmp_path], tmp_path)
    try:
        running = engine.executor(Square(0.3)).run(chunks(range(20, 100), 1))
        found = [next(running)[0] for _ in range(6)]
        cluster.remove_node(cluster.lost, allow_graceful=False)
        found += [pair for batch in running for pair in batch]
        assert found == [(n, n * n) for n in range(20, 100)]
    finally:
        engine.close()
    assert list(tmp_path.iterdir()) == []


def test_latents_are_the_same_on_two_machines(cluster, tmp_path):
    folder = draw_images(tmp_path / "pictures", 12)
    planned = plan_images(scan_folder(folder).records, Size(64, 64)).images
    engine = RayEngine(cluster.address, [folder], tmp_path)
    encoder = encoder_of(Recipe())
    try:
        kept = {}
        for name, chosen in (("local", LOCAL), ("ray", engine)):
            cache_latents(planned, LatentCache(tmp_path / name), encoder, engine=chosen)
            shards = (tmp_path / name).glob("shard-*")
            kept[name] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in shards}
        assert kept["ray"] == kept["local"]
    finally:
        engine.close()


def test_a_machine_without_the_folder_is_named(cluster, tmp_path):
    engine = RayEngine(cluster.address, [tmp_path / "elsewhere"], tmp_path)
    try:
        with pytest.raises(ConfigError, match=r"cannot take part: the folder .*elsewhere does not"):
            list(engine.executor(Square()).run([[1]]))
    finally:
        engine.close()


def test_something_else_that_answers_is_named_in_bounded_time(tmp_path):
    program = "import http.server as s; h = s.HTTPServer(('127.0.0.1', 0), s.SimpleHTTPRequestHandler); print(h.server_port, flush=True); h.serve_forever()"  # noqa: E501
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as server:
        engine = RayEngine(f"127.0.0.1:{server.stdout.readline().strip()}", [tmp_path], tmp_path)
        began = time.monotonic()
        try:
            with pytest.raises(MissingDependencyError, match="cannot be joined"):
                list(engine.executor(Square()).run([[1]]))
            assert time.monotonic() - began < 120
        finally:
            server.kill()
            engine.close()


def command(*words, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "impasto", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def encoding(folder, model, derived):
    sides = ("--resolution", "64", "--min-side", "32", "--max-side", "96", "--step", "32")
    words = ("dataset", "cache", folder, model, *sides, "--cache-dir", derived)
    return (*words, "--executor", "ray")


def test_two_preparations_at_once_make_each_latent_once(nano_model, tmp_path):
    folder = draw_images(tmp_path / "pictures", 9)
    words = encoding(folder, nano_model, tmp_path / "derived")
    both = [command(*words), command(*words)]
    for process in both:
        out, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        assert "Cached before" in out
    indices = (tmp_path / "derived" / "latents").glob("shard-*.json")
    keys = [
        key for index in indices for key in json.loads(index.read_text(encoding="utf-8"))["keys"]
    ]
    assert len(keys) == len(set(keys)) == 9
    assert not list((tmp_path / "derived").glob(".seen-by-ray*"))


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_ends_ray_too(nano_model, tmp_path):
    folder = draw_images(tmp_path / "pictures", 60)
    process = command(*encoding(folder, nano_model, tmp_path / "derived"), start_new_session=True)
    began = time.monotonic()
    while not list((tmp_path / "derived").glob(".seen-by-ray*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - began < 120
        time.sleep(0.1)
    time.sleep(3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "derived").glob(".seen-by-ray*"))
    began = time.monotonic()
    while left := [line for line in processes() if str(process.pid) in line.split()]:
        assert time.monotonic() - began < 30, left
        time.sleep(0.2)


def processes() -> list[str]:
    """Return `pid session command` of running processes."""
    found = subprocess.run(
        ["ps", "-eo", "pid,sess,comm"], capture_output=True, text=True, check=True
    )
    return found.stdout.splitlines()


def test_a_run_learns_the_same(run_values, tmp_path):
    """A run that prepares with Ray has the same losses as with the local executor."""
    import tomli_w

    losses = {}
    for executor in ("local", "ray"):
        values = json.loads(json.dumps(run_values, default=str))
        values["output_dir"] = str(tmp_path / executor)
        values["dataset"] |= {"executor": executor, "cache_dir": str(tmp_path / f"of-{executor}")}
        file = tmp_path / f"{executor}.toml"
        file.write_text(tomli_w.dumps(values), encoding="utf-8")
        process = command("train", file)
        _, errors = process.communicate(timeout=500)
        assert process.returncode == 0, errors
        lines = (tmp_path / executor / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses[executor] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses["ray"] == losses["local"]
    assert losses["ray"]
    shutil.rmtree(Path(tmp_path / "ray"))


def test_ray_here_leaves_no_token_for_other_clusters(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    engine = RayEngine(None, [tmp_path], tmp_path / "derived")
    try:
        assert list(engine.executor(Square()).run([[2]])) == [[(2, 4)]]
    finally:
        engine.close()
    assert not (tmp_path / ".ray").exists()
    assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE"} & set(os.environ)
