"""What a saved state has to agree with before it is resumed: model, data, settings, by name."""

from __future__ import annotations

import hashlib

from impasto.config.run import RunConfig
from impasto.data.latent_cache import CachedPlan

_PLACES = {"image_dir", "metadata_file", "mask_dir", "recursive"}
_WITHOUT_EFFECT = dict.fromkeys(
    [*_PLACES, "cache_dir", "vae_batch_size", "decode_workers", "on_error"], True
)


def run_fingerprint(
    config: RunConfig, base_model: str, plan: CachedPlan, num_processes: int, total_steps: int
) -> dict[str, str]:
    """All of it.

    Args:
        config: The settings.
        base_model: A hash of the base model's U-Net.
        plan: The pictures that are trained on.
        num_processes: Processes that share each update.
        total_steps: Updates of the whole run.
    """
    return {
        "base model": base_model,
        "data set": _data_fingerprint(plan),
        "forward passes per update": _passes(config, num_processes),
        **settings_fingerprint(config, total_steps),
    }


def settings_fingerprint(config: RunConfig, total_steps: int) -> dict[str, str]:
    """The settings that change what a run computes, by section; not those that only show it.

    The length of the run counts only where the learning rate depends on it: a run with a constant
    rate may be made longer.
    """
    sections = {
        "seed": str(config.seed),
        "model": config.model.model_dump_json(exclude={"path", "vae", "variant"}),
        "dataset": config.dataset.model_dump_json(
            exclude=_WITHOUT_EFFECT | {"datasets": {"__all__": {"subsets": {"__all__": _PLACES}}}}
        ),
        "method": config.method.model_dump_json(),
        "optimizer": config.optimizer.model_dump_json(),
        "schedule": config.schedule.model_dump_json(),
        "loss": config.loss.model_dump_json(),
        "noise": config.noise.model_dump_json(),
        "timesteps": config.timesteps.model_dump_json(),
        "training": config.training.model_dump_json(
            exclude={
                "max_steps",
                "max_epochs",
                "text_cache_mib",
                "gradient_accumulation_steps",
                "memory",
                "fit_check",
                "offload_optimizer",
            }
        ),
    }
    if config.schedule.depends_on_length:
        sections["schedule"] += f" over {total_steps} steps"
    return sections


def _passes(config: RunConfig, num_processes: int) -> str:
    """What an update is made of; another cut into processes and accumulation does the same."""
    total = num_processes * config.training.gradient_accumulation_steps
    shares = config.dataset.batch_order == "proportional"  # each process draws by itself
    return f"{total} on {num_processes} processes" if shares else str(total)


def _data_fingerprint(plan: CachedPlan) -> str:
    digest = hashlib.sha256()
    for key, image in zip(plan.keys, plan.images, strict=True):
        digest.update(f"{key}{image.record.name}{image.record.words}\n".encode())
    return digest.hexdigest()[:16]
