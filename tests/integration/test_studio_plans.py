"""Plans of the studio by the processes that users have, which import PyTorch."""

import subprocess

import pytest

from impasto.studio.drafts import Drafts
from impasto.studio.plans import Plans

SETTINGS = "output_dir = 'a'\n"


@pytest.fixture
def real_plans(tmp_path):
    """Plans by real processes; remaining ones are ended."""
    plans = Plans(tmp_path)
    yield plans
    plans.rest()
    for process in plans._running.values():
        process.wait(120)


def test_a_process_that_plans_is_ended_with_those_that_it_started(tmp_path, real_plans):
    draft = Drafts(tmp_path).create({})
    real_plans.ask_for(draft, SETTINGS)
    first = real_plans._running[draft.name]
    assert real_plans.state_of(draft).is_running
    real_plans.forget(draft)
    assert isinstance(first, subprocess.Popen)
    assert first.poll() is not None
    assert not real_plans.state_of(draft).is_running


def test_a_process_that_is_ready_plans_and_another_gets_ready(tmp_path, real_plans):
    draft = Drafts(tmp_path).create({})
    real_plans.prepare()
    ready = real_plans._ready
    real_plans.prepare()
    assert real_plans._ready is ready
    real_plans.ask_for(draft, SETTINGS)
    assert real_plans._running[draft.name] is ready
    assert "Loading PyTorch" in real_plans.state_of(draft).stage
    assert real_plans._ready is None  # no other start disturbs the measured speed
    ready.wait(120)
    state = real_plans.state_of(draft)
    assert not state.is_running
    assert set(state.result["error"]["settings"]) == {"model", "dataset", "training"}
    ready = real_plans._ready
    real_plans.rest()
    assert ready.poll() is not None
