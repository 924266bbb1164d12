"""Describes a model file in words, for `impasto inspect`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from impasto import presence
from impasto.checkpoints.hypernetworks import HypernetworkContents, read_hypernetwork
from impasto.checkpoints.keymap import layout_of
from impasto.checkpoints.kinds import BASE_MODEL, HYPERNETWORK, Kind, kind_of
from impasto.checkpoints.ldm import split_ldm
from impasto.checkpoints.reading import TensorFile, open_tensor_file
from impasto.checkpoints.tensors import Tensors, total_bytes
from impasto.checkpoints.untrusted import untrusted
from impasto.checkpoints.writing import is_finite
from impasto.errors import ModelError
from impasto.models import families
from impasto.models.family import Component
from impasto.models.networks.making import tensors_needed_by
from impasto.models.reading.completeness import compare, listed
from impasto.models.reading.contents import ModelContents
from impasto.models.reading.opening import OpenOptions, contents_of, locate, named_by, open_model
from impasto.models.writing.conversion import hash_file
from impasto.progress import Progress, counted

LONGEST_VALUE = 200
Section = dict[str, str]


def inspect_model(
    source: str, options: OpenOptions, progress: Progress, *, hashing: bool = True
) -> dict[str, Section]:
    """Return sections of names and values.

    A file that is not a base model is described, not refused.

    Raises:
        ModelError: It is missing, damaged, or refused as unsafe.
    """
    path = locate(source, options, progress)
    with named_by(source, path):
        return _inspect(source, path, options, progress, hashing=hashing)


def _inspect(
    source: str, path: Path, options: OpenOptions, progress: Progress, *, hashing: bool
) -> dict[str, Section]:
    file = open_tensor_file(path) if presence.is_file(path) else None
    found: dict[str, Section] = {}
    if file is not None:
        with untrusted(path):
            found["File"] = _file_section(file)
    if file is None:
        found |= _model_sections(open_model(source, options, progress))
    elif _kind_of(file) is BASE_MODEL:
        try:
            found |= _model_sections(contents_of(file, source, options, progress))
        except ModelError as error:  # the rest of the file is described all the same
            found["Model"] = {"Cannot be used": str(error)}
    if file is not None and _kind_of(file) is HYPERNETWORK:
        found["Hypernetwork"] = _hypernetwork_section(read_hypernetwork(path))
    if file is not None:
        found["Metadata"] = _shortened(file.metadata) or {"none": "the file has no metadata"}
    if hashing:
        found["SHA-256"] = _hashes(path, progress)
    return found


def _kind_of(file: TensorFile) -> Kind:
    return kind_of(file, families.file_layouts())


def _file_section(file: TensorFile) -> Section:
    rows = {
        "Path": str(file.path),
        "Kind": _kind_of(file).name,
        "Form": file.form,
        "Size": _size_text(file.path.stat().st_size),
    }
    if file.tensors:
        rows["Tensors"] = f"{len(file.tensors)}, {_types(file.tensors)}"
    if _kind_of(file) is BASE_MODEL:
        ldm = split_ldm(file.tensors, layout_of(file.tensors, families.file_layouts()))
        averaged = (
            f"yes, {counted(len(ldm.ema), 'tensors')}; --weights ema uses them" if ldm.ema else "no"
        )
        rows["EMA weights"] = averaged
        rows["Unused tensors"] = _names(tuple(ldm.ldm_only))
        rows["Unknown tensors"] = _names(ldm.foreign)
        if ldm.marks:
            rows["Marked by"] = ", ".join(sorted(ldm.marks, reverse=True))
    theirs = {name: str(number) for name, number in file.counters.items() if name not in rows}
    return {**rows, **theirs}


def _hypernetwork_section(contents: HypernetworkContents) -> Section:
    structure, tensors = contents.structure, contents.tensors()
    rows = {
        "Name": contents.name,
        "Form": contents.form,
        "Widths": ", ".join(map(str, contents.widths)),
        "Layers": ", ".join(f"{multiple:g}" for multiple in structure.layers),
        "Activation": structure.activation
        + (", after the last layer too" if structure.activate_output else ""),
        "Layer norm": "yes" if structure.layer_norm else "no",
        "Dropout": ", ".join(f"{rate:g}" for rate in structure.dropout) or "none",
        "Initialization": contents.initialization,
        "Trained for": counted(contents.step, "steps"),
        "On": " ".join(filter(None, (contents.base_name, contents.base_hash))) or "not said",
        "Numbers": f"{sum(t.numel() for t in tensors.values()) / 1e6:.2f} M, "
        f"{_size_text(sum(t.nbytes for t in tensors.values()))}",
        "NaN or infinite": _names(tuple(n for n, t in tensors.items() if not is_finite(t))),
    }
    if contents.info:
        rows["Info"] = contents.info
    return rows


def _model_sections(contents: ModelContents) -> dict[str, Section]:
    identity = contents.identity
    model = {
        "Form": contents.form,
        "Family": identity.family.name,
        "Predicts": identity.prediction.name,
        "Because": identity.evidence,
    }
    if contents.scheduler_config.get("rescale_betas_zero_snr"):
        model["Schedule"] = "zero terminal SNR (ends in pure noise)"
    if contents.zeroes_empty_text:
        model["Empty prompt"] = "zeros instead of the encoded empty text"
    if contents.notes:
        model["Notes"] = "; ".join(contents.notes)
    sections = {
        component.name: _component_section(component, contents)
        for component in identity.family.components
    }
    return {"Model": model, "Parts": sections}


def _component_section(component: Component, contents: ModelContents) -> str:
    tensors, config = contents.components[component.name], contents.configs[component.name]
    expected = tensors_needed_by(component, config, contents.source)
    named = {n.removeprefix("text_model."): t for n, t in expected.items()}
    fit = compare(named, tensors)
    remarks = fit.gaps or ["complete"]
    if fit.unknown:
        remarks.append(f"left out, since nothing uses it: {listed(fit.unknown)}")
    size = _size_text(total_bytes(tensors))
    return f"{counted(len(tensors), 'tensors')}, {size}, {_types(tensors)}; {'; '.join(remarks)}"


def _types(tensors: Tensors) -> str:
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{counted(len(names), 'tensors')} ({shown})" if names else "none"


def _shortened(metadata: object) -> Section:
    rows = dict(metadata) if isinstance(metadata, dict) else {}
    return {
        key: text
        if len(text) <= LONGEST_VALUE
        else f"{text[:LONGEST_VALUE]} ... ({len(text)} characters)"
        for key, text in sorted(rows.items())
    }


def _hashes(path: Path, progress: Progress) -> Section:
    """Return the SHA-256 of the file, or of each weight file of a folder."""
    if presence.is_file(path):
        digest = hash_file(path, progress)
        return {"File": digest, "A1111 short hash": digest[:10]}
    folders = {f: None for layout in families.folder_layouts() for f, _ in layout.weights}
    weights = [
        p for f in folders for p in sorted((path / f).glob("*model*")) if presence.is_file(p)
    ]
    return {p.relative_to(path).as_posix(): hash_file(p, progress) for p in weights}


def _size_text(size_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.2f} {unit}"
    return f"{size_bytes} bytes"
