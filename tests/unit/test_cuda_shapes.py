"""The prediction of a step against the same step with CUDA's autocast and kernel shapes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_shapes import architecture_of, build_guard

from impasto.data.records import Size
from impasto.models.writing.architectures import meta_model_of_architecture
from impasto.training.compute.precision import caches_casts
from impasto.training.planning.levers import LADDER, offers, with_rungs
from impasto.training.planning.memory import FootprintPredictor
from impasto.training.planning.transfers import has_second_backward

PROGRAM = Path(__file__).parents[1] / "cuda_shapes.py"
SIDE, BATCH = 128, 4


@pytest.fixture(scope="module")
def cuda_steps(request):
    """Runs cases; returns for each the peak of a step and the gradients at that moment, in
    bytes."""
    guard, why = build_guard(Path(request.config.cache.mkdir("cuda_guard")))
    if guard is None:
        pytest.skip(why)

    def run(cases):
        done = subprocess.run(
            [sys.executable, str(PROGRAM), str(guard)],
            input=json.dumps(cases),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run


def steps_of_all_rungs(train_config):
    """Settings after each rung of the ladder, one for each set of options that a step depends
    on."""
    steps = {}
    for computes in ("no", "bf16", "fp16"):
        config = train_config(optimizer={"kind": "adamw"}, training={"mixed_precision": computes})
        taken = []
        for rung in LADDER["cuda"]:
            if rung.half not in (None, computes):
                continue
            changed = with_rungs(config, taken)
            if offers(rung, changed):
                taken = [*(other for other in taken if not rung.replaces(other)), rung]
                changed = with_rungs(config, taken)
            steps.setdefault(case_of(changed), changed)
    return steps


def case_of(config):
    training = config.training
    return json.dumps(
        {
            "architecture": "small", "side": SIDE, "batch": BATCH, "text_width": 128,
            "computes": training.mixed_precision, "weights": training.weight_dtype,
            "checkpoints": training.gradient_checkpointing, "levels": training.checkpointed_levels,
            "frees": training.optimizer_in_backward != "off",
            "twice": has_second_backward(config),
            "caches_casts": caches_casts(config),
        }
    )  # fmt: skip


def test_a_step_takes_what_is_predicted_for_every_rung(cuda_steps, train_config):
    """Within 1 %: CPU and GPU attention return their statistics in other shapes."""
    steps = steps_of_all_rungs(train_config)
    assert len(steps) >= 16
    measured = cuda_steps([json.loads(case) for case in steps])
    meter = FootprintPredictor(lambda: meta_model_of_architecture(architecture_of("small")), "cuda")
    for (case, config), (peak, gradients) in zip(steps.items(), measured, strict=True):
        _, trainable = meter._meta_models.shown(config)
        trained = meter._step(config, trainable, Size(SIDE, SIDE), BATCH)
        assert trained.peak_bytes == pytest.approx(peak, rel=0.01), case
        assert trained.gradient_bytes == pytest.approx(gradients, rel=0.01, abs=1 << 16), case


@pytest.mark.slow
def test_a_full_size_step_takes_what_is_predicted(cuda_steps, train_config):
    """SD 1.5 at 512 pixels and batch size 1, in GiB, with CUDA's own autocast."""
    cases = {
        "float32": ({}, 3.649),
        "bf16": ({"mixed_precision": "bf16"}, 3.493),
        "bf16, checkpointing": ({"mixed_precision": "bf16", "gradient_checkpointing": True}, 3.309),
    }
    configs = [train_config(training=changes) for changes, _ in cases.values()]
    full = {"architecture": "sd1", "side": 512, "batch": 1, "text_width": 768}
    measured = cuda_steps([{**json.loads(case_of(config)), **full} for config in configs])
    for (peak, _), (_, expected) in zip(measured, cases.values(), strict=True):
        assert peak / 2**30 == pytest.approx(expected, abs=0.001)
