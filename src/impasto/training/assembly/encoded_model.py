"""The base model with the images of a run as its VAE encodes them: what a session is built on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn

from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.caching.encoding import MomentsEncoder
from impasto.datasets.build import Survey
from impasto.datasets.prepare import PreparedData, prepare_data
from impasto.models.family import Family
from impasto.models.networks.keeping import Keep
from impasto.models.networks.loading import BaseModel, load_base_model
from impasto.models.networks.offload import (
    is_waiting,
    keep_stored_types,
    wait_again,
    wake,
    weights_of,
)
from impasto.models.networks.schedules import with_zero_terminal_snr
from impasto.models.networks.vae import moments_encoder, tensors_fingerprint, weights_fingerprint
from impasto.models.networks.vae_recipe import with_recipe
from impasto.models.reading.opening_ahead import OpenedAhead
from impasto.progress import Progress
from impasto.training.builders.model import (
    build_encoding_vae,
    build_keepers,
    build_open_options,
    with_offloaded,
)
from impasto.training.builders.processes import facts_of
from impasto.training.compute.param_dtypes import build_dtypes
from impasto.training.devices import release_cached_memory
from impasto.training.planning.memory_facts import unloads_text_encoder


def hash_now(_: str, network: nn.Module) -> str:
    """The hash of a network that code may have changed since it was loaded."""
    return weights_fingerprint(network)


@dataclass(frozen=True)
class EncodedModel:
    """The base model, and images as its VAE encodes them.

    Attributes:
        model: The base model; its VAE has left the device where nothing is left to encode.
        data: The images, with their latents in the cache.
        encoder: For images that are encoded each time they are shown, if there are such.
        vae_hash: A hash of the VAE.
        hashes: Other network -> a hash of it as it was loaded, on its way.
    """

    model: BaseModel
    data: PreparedData
    encoder: MomentsEncoder | None
    vae_hash: str
    hashes: Mapping[str, Future[str]]

    def hash_of(self, name: str, network: nn.Module) -> str:
        """The hash of a network as it was loaded, which a frozen one still is."""
        return self.hashes[name].result() if name in self.hashes else hash_now(name, network)

    def all_hashes(self) -> dict[str, str]:
        """The hashes of all networks, as states have them."""
        ready = {component: future.result() for component, future in self.hashes.items()}
        vae = self.model.family.vae.name
        return {component: text[:16] for component, text in {**ready, vae: self.vae_hash}.items()}


@contextlib.contextmanager
def hashing_ends_first(hashes: Mapping[str, Future[str]]) -> Iterator[None]:
    """Have an error go on after the hashes: Windows removes no file that is being read."""
    try:
        yield
    except BaseException:
        for future in hashes.values():
            future.cancel()
        wait(hashes.values())
        raise


def load_and_encode(
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
    known: Survey | None,
    *,
    all_at_once: bool = False,
    opened: OpenedAhead | None = None,
) -> EncodedModel:
    """Load the base model and encode the images; then the VAE leaves the device.

    Frozen networks wait without values until an image or a caption is not in its cache.

    Args:
        config: The settings.
        accelerator: Where it computes.
        progress: Shows how far the work is.
        known: What was found of the images already.
        all_at_once: Whether all networks have their values from the beginning.
        opened: The base model, if it was opened before.
    """
    hashes: dict[str, Future[str]] = {}
    with hashing_ends_first(hashes):
        with _hashing(hashes) as hash_it:
            model = _loaded(config, accelerator, progress, opened, hash_it, all_at_once=all_at_once)
        device, vae = accelerator.device, model.family.vae.name
        encoding_vae = build_encoding_vae(config, model)
        vae_hash = hashes.pop(vae).result()
        encoder = moments_encoder(
            encoding_vae,
            batch_size=config.dataset.vae_batch_size,
            device=device,
            npz_endings=model.family.npz_endings,
            weights_hash=vae_hash if encoding_vae is model.vae else None,
        )
        encoder = with_recipe(
            encoder, encoding_vae, config.model.path, build_open_options(config), device
        )
        prepared = prepare_data(config, encoder, accelerator, progress, known)
    if not prepared.training.encoded_ahead:
        wake(encoding_vae, device)  # which a preview would have wait again, while images need it
        release_cached_memory(device)
        return EncodedModel(model, prepared, encoder, encoder.fingerprint, hashes)
    if not wait_again(encoding_vae):
        encoding_vae.to("cpu")
    release_cached_memory(device)
    without = with_offloaded(model, vae, config, accelerator)
    return EncodedModel(without, prepared, None, encoder.fingerprint, hashes)


def _loaded(
    config: RunConfig,
    accelerator: Accelerator,
    progress: Progress,
    opened: OpenedAhead | None,
    loaded: Callable[[str, nn.Module], None],
    *,
    all_at_once: bool,
) -> BaseModel:
    """The base model, as the settings want it."""
    method = config.method
    beside_gpu = accelerator.device.type != "cpu"

    def keepers(family: Family) -> dict[str, Keep]:
        waiting = _waiting_components(config, family, beside_gpu=beside_gpu)
        return build_keepers(waiting, config, accelerator)

    model = load_base_model(
        opened or config.model.path,
        build_open_options(config),
        progress,
        build_dtypes(config),
        exact=method.frozen_text_encoders if method.kind == "full" else (),
        waiting=None if all_at_once else keepers,
        loaded=loaded,
    )
    if beside_gpu:
        for encoder in model.text_encoders.values():
            if is_waiting(encoder):
                keep_stored_types(encoder)
    device, processes = accelerator.device, accelerator.num_processes
    known_facts = facts_of(config, processes, device=device, identity=model.identity)
    require_compatible(config, known_facts)
    return with_zero_terminal_snr(model) if config.noise.zero_terminal_snr else model


def _waiting_components(config: RunConfig, family: Family, *, beside_gpu: bool) -> list[str]:
    """The networks that nothing needs where latents and captions are cached.

    Beside a GPU frozen text encoders wait in any case: they come there as they are stored.
    """
    waits = unloads_text_encoder(config) or (beside_gpu and not config.trains_text_encoder)
    return [component.name for component in (*(family.text_encoders if waits else ()), family.vae)]


@contextlib.contextmanager
def _hashing(hashes: dict[str, Future[str]]) -> Iterator[Callable[[str, nn.Module], None]]:
    """Have networks hashed from when they are loaded, beside what follows.

    Hashing leaves Python free: a full-size U-Net takes 2 s, and is the first.

    Args:
        hashes: Is filled with the hash of each network by its name, on its way.
    """
    aside = ThreadPoolExecutor(2)

    def hash_it(component: str, network: nn.Module) -> None:
        hashes[component] = aside.submit(tensors_fingerprint, weights_of(network))

    try:
        yield hash_it
    finally:
        aside.shutdown(wait=False)
