"""The small files of a Diffusers folder, as diffusers writes them for Stable Diffusion."""

from __future__ import annotations

from typing import Any

from impasto.models.family import Component, Family, Library

DIFFUSERS_VERSION = "0.42.1"
SCHEDULER, SCHEDULER_FILE = "scheduler", "scheduler/scheduler_config.json"


def model_index(family: Family, *, zeroes_empty_text: bool = False) -> dict[str, Any]:
    """Return the content of `model_index.json`: the classes of the components; no safety checker.

    Args:
        family: Family of the model.
        zeroes_empty_text: Value of the entry for empty prompts, if the family has that entry.
    """
    entry = family.pipeline.empty_text_entry
    index = {
        "_class_name": family.pipeline.class_name,
        "_diffusers_version": DIFFUSERS_VERSION,
        **family.pipeline.others,
        **({entry: zeroes_empty_text} if entry else {}),
        SCHEDULER: ["diffusers", "DDIMScheduler"],
        **{
            component.folder: [component.library, component.class_name]
            for component in family.components
        },
        **{p.text.tokenizer: ["transformers", "CLIPTokenizer"] for p in family.text_encoders},
    }
    return dict(sorted(index.items()))


def scheduler_config(prediction_type: str) -> dict[str, Any]:
    """Return the content of `scheduler_config.json` for the usual schedule of Stable Diffusion."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": prediction_type,
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


ZERO_TERMINAL_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""Scheduler settings for a schedule with zero terminal SNR; arXiv:2305.08891."""


def component_config(component: Component, config: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a component, with the names that from_pretrained needs."""
    named: dict[Library, dict[str, Any]] = {
        "diffusers": {"_class_name": component.class_name, "_diffusers_version": DIFFUSERS_VERSION},
        "transformers": {"architectures": [component.class_name], "model_type": "clip_text_model"},
    }
    return {**named[component.library], **config}
