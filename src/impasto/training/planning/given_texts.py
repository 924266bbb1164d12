"""Text encoder outputs in files, checked for a plan as the run itself checks them."""

from __future__ import annotations

from impasto.config.run import RunConfig
from impasto.data.records import ImageRecord
from impasto.datasets.build import Survey
from impasto.models.networks.loading import load_meta_model, load_text_encoders
from impasto.progress import Progress
from impasto.training.builders.given_text import find_given_texts
from impasto.training.builders.methods import build_trainable
from impasto.training.builders.model import build_open_options
from impasto.training.devices import default_device


def require_given_texts(config: RunConfig, survey: Survey, progress: Progress) -> None:
    """Make sure that `training.text_from_npz` can be used; do nothing where it is off.

    Some of the files are compared with the outputs of the model's own text encoders, so these are
    read: 1.6 GB for SDXL in float16.

    Args:
        config: The settings of the run.
        survey: Its images.
        progress: Shows how far the reading is, and names the files that will not be used.

    Raises:
        DatasetError: Files hold other values than the text encoders give.
        ModelError: The text encoders cannot be read.
    """
    if not config.training.text_from_npz:
        return
    model = load_meta_model(config.model.path, build_open_options(config), progress)
    load_text_encoders(model, progress)
    states = build_trainable(config, model).states

    def images() -> list[ImageRecord]:
        return [*survey.plan.table.records, *survey.split.held_out]

    find_given_texts(config, model, states, images, default_device(), progress)
