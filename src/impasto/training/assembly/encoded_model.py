"""The base model of a run, and the run's images as the model's VAE encodes them."""

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
    """Return the hash of a network's present weights, which code may have changed since loading."""
    return weights_fingerprint(network)


@dataclass(frozen=True)
class EncodedModel:
    """The base model, and images encoded by its VAE.

    Attributes:
        model: The base model; its VAE is offloaded if all images are encoded.
        data: The images, with their latents in the cache.
        encoder: Encodes images that are encoded again at each use; None if there are none.
        vae_hash: The hash of the VAE.
        hashes: Name of each other network -> future of its hash, as it was loaded.
    """

    model: BaseModel
    data: PreparedData
    encoder: MomentsEncoder | None
    vae_hash: str
    hashes: Mapping[str, Future[str]]

    def hash_of(self, name: str, network: nn.Module) -> str:
        """Return the hash of a network as loaded; a network without one is hashed now.

        The loaded hash is still right for a frozen network.
        """
        return self.hashes[name].result() if name in self.hashes else hash_now(name, network)

    def all_hashes(self) -> dict[str, str]:
        """Return name -> hash of all networks, shortened to 16 characters as in saved states."""
        ready = {component: future.result() for component, future in self.hashes.items()}
        vae = self.model.family.vae.name
        return {component: text[:16] for component, text in {**ready, vae: self.vae_hash}.items()}


@contextlib.contextmanager
def hashing_ends_first(hashes: Mapping[str, Future[str]]) -> Iterator[None]:
    """Delay an error until hashing has ended, since Windows cannot delete a file in use."""
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
    """Load the base model and encode the images; then offload the VAE.

    Frozen networks are loaded without values, which are read when an image or a caption is not in
    its cache.

    Args:
        config: The settings.
        accelerator: The device and processes of the run.
        progress: Receives progress.
        known: The scanned images; None scans them here.
        all_at_once: Whether all networks are loaded with their values.
        opened: The base model if it is open already; None opens it here.
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
        wake(encoding_vae, device)  # loaded for good, or each preview would offload it again
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
    """Load the base model with the dtypes, offloading and noise schedule of the settings.

    Raises:
        ConfigError: A setting does not fit the model.
    """
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
    """Return the names of the networks to load without values: those needed only without a cache.

    If there is a GPU, these include all frozen text encoders, so that they are moved to it in the
    dtype that they are stored in.
    """
    waits = unloads_text_encoder(config) or (beside_gpu and not config.trains_text_encoder)
    return [component.name for component in (*(family.text_encoders if waits else ()), family.vae)]


@contextlib.contextmanager
def _hashing(hashes: dict[str, Future[str]]) -> Iterator[Callable[[str, nn.Module], None]]:
    """Yield a function that starts to hash a network in a background thread.

    Hashing releases the GIL: a full-size U-Net takes 2 s, and is the first to be loaded.

    Args:
        hashes: Filled with the future of each network's hash, by its name.
    """
    aside = ThreadPoolExecutor(2)

    def hash_it(component: str, network: nn.Module) -> None:
        hashes[component] = aside.submit(tensors_fingerprint, weights_of(network))

    try:
        yield hash_it
    finally:
        aside.shutdown(wait=False)
