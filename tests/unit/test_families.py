"""The table of families: consistent, and the only place with names of networks."""

import itertools
import re
from pathlib import Path

import pytest
import torch

import impasto
from impasto.checkpoints.keymap import ComponentKind
from impasto.checkpoints.tensors import LazyTensor
from impasto.config.cases import Facts
from impasto.config.compatibility import conflicts
from impasto.errors import ModelError
from impasto.family_keys import FAMILY_KEYS
from impasto.models.families import BY_SETTING, FAMILIES, SD1, SD2_BASE, SD2_V
from impasto.models.reading.identity import Clues, identify

SOURCE = Path(impasto.__file__).parent
TABLE, SETTINGS = "models/families.py", ("config/", "cli/", "sdscripts/", "demo/")


def test_names_of_networks_stand_in_the_table_and_the_settings_only():
    pattern = re.compile(r"[\"'](unet|vae|text_encoder(_\d)?|tokenizer(_\d)?)[\"'/]")
    found = [
        f"{path.relative_to(SOURCE)}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if (where := path.relative_to(SOURCE).as_posix()) != TABLE
        and not where.startswith(SETTINGS)
        for line in path.read_text(encoding="utf-8").splitlines()
        if pattern.search(line)
    ]
    assert found == ALLOWED


ALLOWED = [  # names of settings, and of things outside models
    'annotate/captioners.py: tokenizer = getattr(processor, "tokenizer", None)',
    'publishing.py: "output_dir", "path", "prompt_file", "start_from", "template_file", "vae",',
    'studio/model_users.py: for section, key in (("model", "path"), ("model", "vae"), '
    '("method", "start_from")):',
    'training/fingerprints/fingerprint.py: "model": {"path", "vae", "variant", "weights", '
    '"family", "prediction_type"},',
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.key)
def test_a_row_is_whole(family):
    names, folders = [p.name for p in family.components], [p.folder for p in family.components]
    assert len(set(names)) == len(names)
    assert len(set(folders)) == len(folders)
    assert [len(family.of_kind(kind)) for kind in (ComponentKind.UNET, ComponentKind.VAE)] == [1, 1]
    assert all((p.reading is not None) == (p.kind is ComponentKind.TEXT) for p in family.components)
    assert family.takes_pooled == (family.sizes is not None)
    assert set(BY_SETTING.values()) == {part.kind for part in family.components}


def test_rows_that_share_folders_call_what_is_in_them_the_same():
    for one, other in itertools.combinations(FAMILIES, 2):
        if one.folders == other.folders:
            assert [(p.name, p.kind) for p in one.components] == [
                (p.name, p.kind) for p in other.components
            ]


def test_generations_differ_by_a_mark_at_any_size():
    for one, other in itertools.combinations(FAMILIES, 2):
        differs = bool(one.marks.against(other.marks, full_size=False))
        assert differs == (one.generation != other.generation)


def test_settings_and_options_name_the_families_of_the_table():
    assert [family.key for family in FAMILIES] == list(FAMILY_KEYS)


def test_rows_are_as_they_were():
    """The families are unchanged by the table's components and by other rows."""
    facts = [
        (f.key, f.prediction.name, f.context_width, f.head_count, f.linear_projection,
         f.upcast_attention, f.architecture, f.resolution, f.scaling_factor, f.cell)
        for f in FAMILIES
    ]  # fmt: skip
    assert facts == [
        ("sd1", "epsilon", 768, 8, False, False, "stable-diffusion-v1", 512, 0.18215, 8),
        ("sd2-base", "epsilon", 1024, None, True, True, "stable-diffusion-v2-512", 512, 0.18215, 8),
        ("sd2-v", "v_prediction", 1024, None, True, True, "stable-diffusion-v2-768-v", 768,
         0.18215, 8),
        ("sdxl", "epsilon", 2048, None, True, False, "stable-diffusion-xl-v1-base", 1024,
         0.13025, 8),
        ("sdxl-v", "v_prediction", 2048, None, True, False, "stable-diffusion-xl-v1-base", 1024,
         0.13025, 8),
    ]  # fmt: skip
    for family, pad, activation in ((SD1, 49407, "quick_gelu"), (SD2_BASE, 0, "gelu")):
        (encoder,) = family.text_encoders
        assert (encoder.text.pad_id, encoder.text.activation) == (pad, activation)
        reading = encoder.text
        assert (reading.layer, reading.final_norm, reading.pooled) == (1, True, False)
    assert SD2_V.components is SD2_BASE.components


def test_a_network_that_takes_more_than_text_is_none_of_them():
    """A tiny U-Net with pooled text was once mistaken for SD 2."""

    def shaped(*shape):
        return LazyTensor.of(torch.zeros(shape))

    unet = {
        "conv_in.weight": shaped(8, 4, 3, 3),
        "down_blocks.0.attentions.0.proj_in.weight": shaped(8, 8),
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight": shaped(8, 16),
        "add_embedding.linear_1.weight": shaped(32, 68),
    }
    clues = Clues("tiny", unet, (("text_encoder", "OpenCLIP"),), scheduler_config={})
    with pytest.raises(ModelError, match=r"tiny is not a model .*a pooled text and sizes"):
        identify(clues)


def test_a_layer_of_clip_is_refused_by_the_name_of_the_family(train_config):
    facts = Facts(family="Two encoders", takes_clip_skip=False)
    (sentence,) = conflicts(train_config(model={"clip_skip": 2}), facts)
    assert sentence.startswith("model.clip_skip is not for Two encoders, whose text encoders")
