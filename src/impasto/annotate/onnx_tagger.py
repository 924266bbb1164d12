"""Taggers that run on ONNX Runtime, on any device that its installed package supports."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from impasto.annotate.onnx_layers import penultimate_name, with_output
from impasto.annotate.profiles import (
    BY_TAG_FILE,
    DEEPDANBOORU,
    Profile,
    fit_to_input_shape,
    with_preprocessing,
)
from impasto.annotate.tag_tables import READERS, read_literal
from impasto.annotate.tags import TagTable
from impasto.checkpoints.links import require_links_inside
from impasto.errors import MissingDependencyError, ModelError, OutOfMemoryError
from impasto.invocation import install_packages, missing_extra
from impasto.progress import Progress, SilentProgress, counted

PROVIDERS = {
    "cuda": "CUDAExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
"""Short name -> ONNX Runtime provider, best first."""

_FOLDER_OF_WEIGHTS = "session.model_external_initializers_file_folder_path"
_OUT_OF_MEMORY_TEXTS = ("Failed to allocate memory", "out of memory", "CUDA_ERROR_OUT_OF_MEMORY")


class Tagger(Protocol):
    """Computes tag probabilities for images that its profile has prepared."""

    profile: Profile
    table: TagTable

    def scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return [N, rows] probabilities for uint8 RGB squares."""


class OnnxTagger:
    """A tagger from a folder with a `.onnx` file and its tags.

    Args:
        folder: The folder, or the `.onnx` file.
        provider: A short name of `PROVIDERS`; None uses the best that is installed.
        profile: How images are prepared; None detects it from the files.
        progress: Notified when batches are made smaller for lack of memory.
        with_features: Whether `scores_and_features` is needed besides `scores`.

    Raises:
        MissingDependencyError: ONNX Runtime or the provider is not installed.
        ModelError: The files are missing, damaged, or do not fit each other, or features are needed
            and the model has no layer before its last.
    """

    def __init__(
        self,
        folder: Path,
        *,
        provider: str | None = None,
        profile: Profile | None = None,
        progress: Progress | None = None,
        with_features: bool = False,
    ) -> None:
        self.file = _model_file(folder)
        self._session = _open_session(str(self.file), self.file, provider)
        self._progress = progress or SilentProgress()
        entry = self._session.get_inputs()[0]
        self._input: str = entry.name
        texts = self._session.get_modelmeta().custom_metadata_map
        known, self.table = _profile_and_table(folder, texts, self.file)
        self.profile = fit_to_input_shape(profile or known, entry.shape, str(self.file))
        self._output = self._choose_output()
        self._hidden: list[str] = []
        if with_features:
            self._open_with_features(provider)
        first = entry.shape[0]
        self.fixed_batch: int | None = first if isinstance(first, int) else None
        self._most: int | None = None

    def scores(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """Return [N, rows] probabilities for uint8 RGB squares.

        A batch for a model of fixed batch size is padded; if memory runs out, batches are halved.

        Raises:
            ModelError: The output is not probabilities.
            OutOfMemoryError: Not even one image fits.
        """
        return self._in_batches(pixels, lambda batch: [self._run(batch)])[0]

    def scores_and_features(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities, and the [N, D] inputs of the last layer.

        Raises:
            ModelError: The output is not probabilities, or the features are not a vector per image.
            OutOfMemoryError: Not even one image fits.
        """
        scores, features = self._in_batches(pixels, self._run_all)
        if features.ndim != 2:
            raise ModelError(
                f"{self.file} has {list(features.shape)} before its last layer; expected a vector "
                f"for each image. It cannot be used as features."
            )
        return scores, features

    def _open_with_features(self, provider: str | None) -> None:
        """Open the model again with one more output: the input of its last layer."""
        content = self.file.read_bytes()
        try:
            hidden = penultimate_name(content, self._output)
        except ValueError as error:
            raise ModelError(f"{self.file} is not an ONNX model ({error}).") from error
        if hidden is None:
            raise ModelError(
                f"{self.file} does not end in a fully connected layer, so there are no features "
                f"before it. Use a tagger of another kind, or a model of transformers."
            )
        self._session = _open_session(with_output(content, hidden), self.file, provider)
        self._hidden = [hidden]

    def _in_batches(
        self,
        pixels: Sequence[np.ndarray],
        run: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
    ) -> list[np.ndarray]:
        """Return each output for all of the images."""
        size = self.fixed_batch or min(len(pixels), self._most or len(pixels))
        found: list[list[np.ndarray]] = []
        start = 0
        while start < len(pixels):
            batch = pixels[start : start + size]
            try:
                found.append(run(batch))
            except Exception as error:  # ONNX Runtime's classes share no other base
                if not any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS):
                    raise
                if self.fixed_batch or size == 1:
                    raise OutOfMemoryError(
                        f"Memory ran out while tagging {counted(len(batch), 'images')} at once. "
                        f"Use a smaller model, or --provider cpu."
                    ) from error
                size = self._most = max(1, size // 2)
                self._progress.note(
                    f"Memory ran out: from now on {counted(size, 'images')} at a time."
                )
                continue
            start += len(batch)
        return [np.concatenate(outputs) for outputs in zip(*found, strict=True)]

    def _run(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        return self._run_all(pixels)[0]

    def _run_all(self, pixels: Sequence[np.ndarray]) -> list[np.ndarray]:
        missing = (self.fixed_batch or len(pixels)) - len(pixels)
        batch = self.profile.batch([*pixels, *[pixels[-1]] * missing])
        raw, *others = (
            np.asarray(output, dtype=np.float32)[: len(pixels)]
            for output in self._session.run([self._output, *self._hidden], {self._input: batch})
        )
        if self.profile.logits:
            return [np.asarray(1 / (1 + np.exp(-raw))), *others]
        if raw.min() < -1e-3 or raw.max() > 1 + 1e-3:
            raise ModelError(
                f"{self.file} returns {raw.min():.1f} to {raw.max():.1f}, which are not "
                f"probabilities: it is not a {self.profile.name} model as published. Try "
                f"--logits."
            )
        return [raw, *others]

    def _choose_output(self) -> str:
        """Return the name of the output with one value per tag, by name or by its width."""
        outputs = {out.name: out.shape for out in self._session.get_outputs()}
        width = self.table.width

        def fits(shape: Sequence[Any]) -> bool:
            last = shape[-1] if shape else 0
            return not isinstance(last, int) or last == width

        if self.profile.output in outputs and fits(outputs[self.profile.output]):
            return str(self.profile.output)
        fitting = [name for name, shape in outputs.items() if fits(shape)]
        if not fitting:
            widths = ", ".join(f"{name} {list(shape)}" for name, shape in outputs.items())
            raise ModelError(
                f"{self.file} does not match its tags: there are {width}, and its output is "
                f"{widths}. Use both files from the same source."
            )
        preferred = [n for n in fitting if n in ("prediction", "output")]
        return str((preferred or fitting)[0])


def _model_file(folder: Path) -> Path:
    if folder.is_file():
        return folder
    require_links_inside(folder)
    named = [folder / name for name in ("model.onnx", "model_optimized.onnx", "deepdanbooru.onnx")]
    others = sorted(folder.glob("*.onnx")) if folder.is_dir() else []
    found = next((f for f in [*named, *others] if f.is_file()), None)
    if found is None:
        raise ModelError(
            f"{folder} has no .onnx file. Give the folder of a tagger with its .onnx and its "
            f"tags (selected_tags.csv, tag_mapping.json, ...)."
        )
    return found


def _profile_and_table(folder: Path, texts: Any, file: Path) -> tuple[Profile, TagTable]:
    """Return the profile and the tags of a tagger, by the file that holds its tags."""
    beside = file.parent if folder.is_file() else folder
    for name, reader in READERS.items():
        if (beside / name).is_file():
            profile = BY_TAG_FILE[name]
            if (beside / "preprocess.json").is_file():
                profile = with_preprocessing(profile, beside / "preprocess.json")
            return profile, reader(beside / name)
    if "tags" in texts:
        return DEEPDANBOORU, read_literal(texts["tags"], str(file))
    raise ModelError(
        f"There are no tags beside {file}: expected one of {', '.join(READERS)}. Download that "
        f"file from the same source as the model."
    )


def _open_session(model: str | bytes, file: Path, provider: str | None) -> Any:
    """Return a session for a model's file or bytes."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra(
            "tagging",
            f"Taggers run on ONNX Runtime, which is not installed ({error}).",
            f"For NVIDIA cards: {install_packages('onnxruntime-gpu')}; for others on Windows, "
            f"onnxruntime-directml.",
        ) from error
    there = onnxruntime.get_available_providers()
    wanted = [PROVIDERS[provider]] if provider else list(PROVIDERS.values())
    chosen = [name for name in wanted if name in there]
    if not chosen:
        raise MissingDependencyError(
            f"ONNX Runtime has no provider {provider or 'at all'} here; it has "
            f"{', '.join(n for n, full in PROVIDERS.items() if full in there) or 'none'}. Install "
            f"onnxruntime-gpu for cuda or onnxruntime-directml for directml: "
            f"{install_packages('NAME')}"
        )
    with contextlib.suppress(AttributeError):
        onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    # threads that spin while waiting would take CPU time from decoding
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if isinstance(model, bytes):  # external weights are only named in the bytes
        options.add_session_config_entry(_FOLDER_OF_WEIGHTS, str(file.parent))
    try:
        return onnxruntime.InferenceSession(model, options, providers=chosen)
    except Exception as error:  # as above, and providers raise various errors for damaged files
        reason = str(error).strip().splitlines()[0][:160]
        raise ModelError(
            f"{file} cannot be opened by ONNX Runtime ({reason}). "
            f"Download it again; v3 models need onnxruntime 1.17 or later."
        ) from error


def as_logits(profile: Profile) -> Profile:
    """Return a profile whose output still needs a sigmoid."""
    return replace(profile, logits=True)
