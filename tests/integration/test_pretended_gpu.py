"""The trainer on a pretended GPU: devices, streams, waits, and faults in every place.

`tests/support/pretend_cuda` makes tensors with device `cuda:0`. This shows that nothing mixes
devices, that no stream touches memory which another may still use, that no step waits for the
device except where listed here, and that nothing is lost when memory runs out or numbers are not
finite. It does not test the kernels and their speed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import draw_images
from flat_models import write_bare_model
from gpu_cases import CASES, FAULTS, fault_of
from ladders import BEGUN_ON_GPU, bottom_of_ladder
from safetensors.torch import load_file

from impasto.config.load import build_run_config
from impasto.training.planning.levers import EIGHT_BITS, STREAM

SUPPORT = Path(__file__).parent.parent / "support" / "pretend_cuda"
sys.path.insert(0, str(SUPPORT))
import build  # noqa: E402

pytestmark = pytest.mark.timeout(1800)  # the first test runs all cases, on a busy machine too


@pytest.fixture(scope="module")
def orders(tmp_path_factory, nano_architecture):
    """Return a case with a name and changed settings."""
    root = tmp_path_factory.mktemp("pretended")
    pictures = draw_images(root / "pictures", 9)
    model = write_bare_model(nano_architecture, root / "model")
    usual = {
        "seed": 7,
        "model": {"path": str(model)},
        "dataset": {
            "image_dir": str(pictures), "resolution": 64, "min_bucket_reso": 32,
            "max_bucket_reso": 96, "bucket_reso_steps": 32, "cache_dir": str(root / "derived"),
        },
        "optimizer": {"lr": 1e-3},
        "training": {"max_steps": 3, "batch_size": 2, "fit_check": False},
        "logging": {"every_steps": 3},
        "saving": {"model_dir": None, "export_dtype": "fp32"},
    }  # fmt: skip

    def order(name, changes, **more):
        settings = {
            key: {**usual.get(key, {}), **changes.get(key, {})}
            for key in {**usual, **changes}
            if key != "seed"
        }
        settings = {
            section: {k: v for k, v in fields.items() if v is not None}
            for section, fields in settings.items()
        }
        folder = root / "runs" / more.pop("folder", name).replace(" ", "-").replace(",", "")
        return {
            "name": name,
            "settings": {**settings, "seed": 7, "output_dir": str(folder)},
            **more,
        }

    return order


WHOLE = {"": "fp32", "graphs' ": "steps as graphs"}
"""The complete runs that others are compared with, which save a state after each step."""


LEFT_OUT = (EIGHT_BITS, STREAM)
"""bitsandbytes has no library for the pretended GPU, whose tensors cannot be paged."""


def ladder_orders(order):
    """Return cases of one step with the final settings of each GPU ladder."""

    def build(settings):
        return build_run_config(order("plan", settings)["settings"], source="test")

    return [order(name, bottom_of_ladder(name, build, LEFT_OUT)) for name in BEGUN_ON_GPU]


def all_orders(order):
    found = [order(name, changes) for name, (changes, _) in CASES.items()]
    found += ladder_orders(order)
    found.append(order("memory ", {}, like=WHOLE[""], each_site=True, folder="memory"))
    graphed = {"training": {"cuda_graphs": "step"}}
    like = WHOLE["graphs' "]
    found.append(order("graphs' memory ", graphed, like=like, each_site=True, folder="of-graphs"))
    for name, changes in FAULTS.items():
        found.append(order(name, {"training": changes}, fault=fault_of(name)))
    found.append(order("resumed", {}, folder="memory0", resume=True))
    paged = {"optimizer": {"kind": "stand_ins.Paged"}}
    fault = {"what": "loss", "at": 3}
    return [
        *found,
        order("paged", paged, folder="paged", fault=fault),
        order("paged again", paged, folder="paged", resume=True),
    ]


@pytest.fixture(scope="module")
def answers(request, orders, tmp_path_factory):
    """The findings of all cases, by name."""
    reason = build.reason_against()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("answers")
    library = build.build(Path(request.config.cache.mkdir("pretend_cuda")))
    listed = all_orders(orders)
    (folder / "orders.json").write_text(json.dumps(listed), encoding="utf-8")
    command = [
        sys.executable, "-W", "ignore", str(SUPPORT / "drive.py"), str(library),
        str(folder / "orders.json"), str(folder / "answers.json"),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    for order in listed:
        if order["name"] in found:
            found[order["name"]]["folder"] = order["settings"]["output_dir"]
    return found


def states(answer):
    """Return step -> weights, from a run's states."""
    folders = sorted((Path(answer["folder"]) / "states").glob("step-*"))
    return {int(f.name[5:]): load_file(f / "weights.safetensors") for f in folders}


def assert_same_weights(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("name", CASES)
def test_a_run_mixes_no_devices_and_waits_only_where_it_says(name, answers):
    found = answers[name]
    assert found["error"] is None
    assert found["waits"]["1"] == found["waits"]["2"] == CASES[name][1]


def test_what_the_ladder_chooses_for_a_gpu_trains(orders, answers):
    """Offloaded optimizer states and fp16 are for GPUs only."""
    listed = ladder_orders(orders)
    told = json.dumps(listed)
    for word in ('"offload_optimizer": true', '"fp16"', '"exact"', '"last_norm"'):
        assert word in told
    found = {order["name"]: answers[order["name"]]["error"] for order in listed}
    assert found == dict.fromkeys(found)


def test_memory_is_touched_and_freed_in_order(answers):
    for name, found in answers.items():
        assert not found.get("races"), name  # the last run covers all places
        assert not found.get("frees"), name


@pytest.mark.parametrize("kind", WHOLE)
def test_memory_that_runs_out_anywhere_loses_nothing(kind, answers):
    whole = states(answers[WHOLE[kind]])
    runs = {name: found for name, found in answers.items() if name.startswith(f"{kind}memory ")}
    assert len(runs) > 8
    folder = Path(answers["resumed"]["folder"]).with_name("of-graphs" if kind else "memory")
    for name, found in runs.items():
        assert found["error"].startswith("OutOfMemoryError"), (found["site"], found["error"])
        found["folder"] = f"{folder}{name.split()[-1]}"
        left = states(found)
        if "the optimizer was changing the weights" in found["error"].lower():
            assert not left
        elif name != "memory 0":  # which was resumed
            assert_same_weights(left[1], whole[1])


def test_a_run_that_ran_out_of_memory_is_resumed_to_the_same_weights(answers):
    assert answers["resumed"]["error"] is None
    assert_same_weights(states(answers["resumed"])[3], states(answers[WHOLE[""]])[3])


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_finite_reaches_no_weight(name, answers):
    """The fault is in step 2, and is detected with the metrics line after step 3."""
    found = answers[name]
    left = states(found)
    assert all(torch.isfinite(t).all() for weights in left.values() for t in weights.values())
    if name == "fp16, gradient":  # caused by the loss scale, and skipped
        assert found["error"] is None
        return
    assert found["error"].startswith("NonFiniteLossError")
    assert "in step 2." in found["error"]
    if name in ("exact, no limit, gradient", "last norm, gradient"):
        assert "from the newest state before it" in found["error"]
        assert not left  # the step was applied in part
        return
    assert "step-00000001" in found["error"]
    assert list(left) == [1]
    if name.startswith(("kept", "average", "exact, gradient", "steps as graphs")):
        whole = WHOLE["graphs' " if "graphs" in name else ""]
        assert_same_weights(left[1], states(answers[whole])[1])


def test_an_average_that_moved_meanwhile_is_told(answers):
    assert "took 1 more update before this" in answers["average, gradient"]["error"]


def test_a_paged_optimizer_is_paged_after_a_resume(answers):
    first, second = answers["paged"], answers["paged again"]
    assert "in step 3." in first["error"]
    assert second["error"] is None
    assert second["pages"] == first["pages"] > 0
