"""Precision settings of GPUs, their part in the names of latents, and wrong uses of CUDA graphs."""

import sys
import types

import pytest
import torch

from impasto.config.cases import Facts
from impasto.data.caching import latent_orders
from impasto.data.caching.encoding import MomentsEncoder
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.caching.wanted_keys import keys_of_plan
from impasto.errors import ConfigError
from impasto.models.networks import attention_kernels
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.vae import computes_in_tf32, moments_encoder, weights_fingerprint
from impasto.progress import SilentProgress
from impasto.training.builders.methods import build_trainable
from impasto.training.builders.text import _build_store
from impasto.training.devices import set_arithmetic
from impasto.training.fingerprints.data_fingerprint import data_fingerprint

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def on_gpu(monkeypatch):
    """Pretend that there is a GPU, and restore torch's switches afterwards."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    monkeypatch.undo()
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    import torch._inductor.config as inductor

    inductor.deterministic = False


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize("on", [True, False])
def test_deterministic_is_all_of_torchs_switches(on, monkeypatch):
    import os

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    set_arithmetic(tf32=False, deterministic=on)
    assert torch.are_deterministic_algorithms_enabled() == on
    assert torch.backends.cudnn.deterministic == on
    assert torch.backends.cudnn.benchmark != on
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if on else None)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.allow_tf32
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(
    ("capability", "dtype", "tf32", "expected"),
    [
        ((8, 6), torch.float32, True, True),
        ((8, 6), torch.float32, False, False),
        ((8, 6), torch.float16, True, False),
        ((7, 5), torch.float32, True, False),
    ],
)
def test_tf32_is_for_float32_on_gpus_that_have_it(capability, dtype, tf32, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    set_arithmetic(tf32=tf32)
    assert computes_in_tf32(GPU, dtype) == expected
    assert not computes_in_tf32(CPU, dtype)


@pytest.mark.usefixtures("on_gpu")
@pytest.mark.parametrize(("precision", "differs"), [("no", True), ("bf16", False)])
def test_texts_that_are_kept_in_float32_are_named_by_tf32(
    precision, differs, train_config, monkeypatch
):
    config = train_config(training={"cache_text_to_disk": True, "mixed_precision": precision})
    trainable = build_trainable(config, load_base_model(config.model.path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))

    def key(device, *, tf32):
        set_arithmetic(tf32=tf32)
        return _build_store(config, device, trainable, lambda name, _: name).key((1, 2))

    exact = key(CPU, tf32=False)
    assert key(CPU, tf32=True) == key(GPU, tf32=False) == exact
    assert (key(GPU, tf32=True) != exact) == differs


def encoder(arithmetic):
    def encode(pixels):
        size = (len(pixels), 4, pixels.shape[2] // 8, pixels.shape[3] // 8)
        return torch.zeros(size), torch.zeros(size)

    return MomentsEncoder(encode, "vae", 4, arithmetic=arithmetic)


@pytest.fixture
def planned(train_config):
    from impasto.datasets.build import survey

    return survey(train_config(), SilentProgress()).plan.images


def test_latents_are_named_by_how_they_were_computed(planned, tmp_path):
    cache = LatentCache(tmp_path / "latents")
    exact = cache_latents(planned, cache, encoder(""), workers=0)
    assert exact.encoded == len(planned)
    assert cache_latents(planned, cache, encoder(""), workers=0).encoded == 0
    rounded = cache_latents(planned, cache, encoder("tf32"), workers=0)
    assert rounded.encoded == len(planned)
    assert not set(rounded.keys) & set(exact.keys)


def test_a_state_goes_with_the_data_however_latents_were_computed(planned, tmp_path):
    cache = LatentCache(tmp_path / "latents")
    exact, rounded = (
        cache_latents(planned, cache, encoder(name), workers=0) for name in ("", "tf32")
    )
    assert exact.identities == exact.keys == rounded.identities
    data = [data_fingerprint(plan, lambda stamps: {}) for plan in (exact, rounded)]
    assert data[0] == data[1]


@pytest.mark.parametrize("portion", [1, 1 << 17])
def test_pruning_keeps_what_either_device_made(planned, tmp_path, monkeypatch, portion):
    monkeypatch.setattr(latent_orders, "PORTION", portion)
    cache = LatentCache(tmp_path / "latents")
    plans = [cache_latents(planned, cache, encoder(name), workers=0) for name in ("", "tf32")]
    kept = keys_of_plan(planned, cache, "vae", SilentProgress())
    assert {key for plan in plans for key in plan.keys} <= set(kept)
    number = len(cache)
    assert sum(dropped for dropped, _ in cache.prune(kept)) == 0
    assert len(LatentCache(tmp_path / "latents")) == number == 2 * len(planned)


def test_the_names_of_what_a_cpu_encodes_are_as_they_were(nano_model):
    from impasto.models.networks.loading import load_base_model

    vae = load_base_model(str(nano_model)).vae
    made = moments_encoder(vae, batch_size=1)
    assert made.source == made.fingerprint == weights_fingerprint(vae)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compile": "full", "gradient_accumulation_steps": 2}, "gradient_accumulation_steps 2"),
        ({"compile": "blocks", "gradient_checkpointing": True}, "set compile to full"),
        ({"compile": "off"}, "without compile"),
    ],
)
def test_cuda_graphs_are_refused_where_they_are_wrong(changes, words, train_config):
    with pytest.raises(ConfigError, match=words):
        train_config(training={"cuda_graphs": True, **changes})
    plain = {"compile": "full", "gradient_checkpointing": True}
    found = train_config(training={"cuda_graphs": True, **plain})
    assert found.training.cuda_graphs == "network"


def test_deterministic_is_refused_with_a_kernel_that_is_not(train_config):
    with pytest.raises(ConfigError, match="set attention to sdpa"):
        train_config(training={"deterministic": True, "attention": "xformers"})


def test_xformers_is_handed_its_own_order_of_axes(monkeypatch):
    """xformers takes `[B, N, heads, d]` and a bias `[B, heads, N, N]`, by its documentation."""

    def efficient(query, key, value, attn_bias=None):
        weights = torch.einsum("bmhd,bnhd->bhmn", query, key) / query.shape[-1] ** 0.5
        weights = weights if attn_bias is None else weights + attn_bias
        return torch.einsum("bhmn,bnhd->bmhd", weights.softmax(-1), value)

    ops = types.SimpleNamespace(memory_efficient_attention=efficient)
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    kernel = attention_kernels.build_kernel("xformers", GPU)
    query, key, value = torch.randn(3, 2, 4, 6, 8).unbind()
    for mask in (None, torch.randn(2, 4, 6, 6)):
        expected = attention_kernels.sdpa(query, key, value, mask)
        torch.testing.assert_close(kernel(query, key, value, mask), expected)


def test_each_update_of_recorded_kernels_begins_anew(train_config, monkeypatch):
    """PyTorch must be told that the previous step's outputs are no longer needed."""
    from impasto.training import trainer
    from impasto.training.assembly import build, encoded_model, trained_network
    from impasto.training.planning import resolved_run
    from impasto.training.steps import stepping

    marks = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(1))
    monkeypatch.setattr(trained_network, "compile_unet", lambda *_, **__: None)
    for module in (build, encoded_model, resolved_run):
        monkeypatch.setattr(module, "facts_of", lambda *_, **__: Facts("cuda", 1, ""))
    assert stepping.torch is torch
    for graphs, expected in ((True, 2), (False, 0)):
        marks.clear()
        config = train_config(
            output_dir=str(train_config().output_dir) + str(graphs),
            training={"compile": "full", "cuda_graphs": graphs, "max_steps": 2},
        )
        trainer.train(config)
        assert len(marks) == expected
