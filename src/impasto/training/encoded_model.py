"""The base model with the images of a run as its VAE encodes them: what a session is built on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from accelerate import Accelerator
from torch import nn

from impasto.config.compatibility import require_compatible
from impasto.config.run import RunConfig
from impasto.data.encoding import MomentsEncoder
from impasto.datasets.build import Survey
from impasto.datasets.prepare import PreparedData, prepare_data
from impasto.models.loading import BaseModel, load_base_model
from impasto.models.schedules import with_zero_terminal_snr
from impasto.models.vae import moments_encoder, tensors_fingerprint, weights_fingerprint
from impasto.models.vae_recipe import with_recipe
from impasto.progress import Progress
from impasto.training.devices import release_cached_memory
from impasto.training.model import build_encoding_vae, build_open_options, with_offloaded
from impasto.training.param_dtypes import build_dtypes
from impasto.training.processes import facts_of


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
        ready = {part: future.result() for part, future in self.hashes.items()}
        vae = self.model.family.vae.name
        return {part: text[:16] for part, text in {**ready, vae: self.vae_hash}.items()}


def load_and_encode(
    config: RunConfig, accelerator: Accelerator, progress: Progress, known: Survey | None
) -> EncodedModel:
    """Load the base model and encode the images; then the VAE leaves the device."""
    method = config.method
    model = load_base_model(
        config.model.path,
        build_open_options(config),
        progress,
        build_dtypes(config),
        exact=method.frozen_text_encoders if method.kind == "full" else (),
    )
    prediction, processes = model.identity.prediction, accelerator.num_processes
    known_facts = facts_of(config, processes, device=accelerator.device, prediction=prediction)
    require_compatible(config, known_facts)
    if config.noise.zero_terminal_snr:
        model = with_zero_terminal_snr(model)
    device = accelerator.device
    encoding_vae = build_encoding_vae(config, model)
    encoder = moments_encoder(
        encoding_vae,
        batch_size=config.dataset.vae_batch_size,
        device=device,
        npz_endings=model.family.npz_endings,
    )
    encoder = with_recipe(
        encoder, encoding_vae, config.model.path, build_open_options(config), device
    )
    aside = ThreadPoolExecutor(1)  # hashing leaves Python free: 2 s of a full-size U-Net
    vae = model.family.vae.name
    texts = model.text_encoders  # these first: captions on disk wait for their hashes
    hashes = {
        part: aside.submit(tensors_fingerprint, model.networks[part].state_dict())
        for part in sorted(model.networks, key=lambda part: part not in texts)
        if part != vae
    }
    aside.shutdown(wait=False)
    prepared = prepare_data(config, encoder, accelerator, progress, known)
    if not prepared.training.encoded_ahead:
        release_cached_memory(device)
        return EncodedModel(model, prepared, encoder, encoder.fingerprint, hashes)
    encoding_vae.to("cpu")
    release_cached_memory(device)
    without = with_offloaded(model, vae, config, accelerator)
    return EncodedModel(without, prepared, None, encoder.fingerprint, hashes)
