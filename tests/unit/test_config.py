"""Settings: errors name file, key path and the nearest valid key."""

import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest
import tomli_w
from process_groups import in_threads

from impasto.cli.sample import _native_size
from impasto.config import elsewhere, tree
from impasto.config.compatibility import goes_together
from impasto.config.dataset_file import is_dataset_file, read_dataset_file
from impasto.config.field_docs import docs_of
from impasto.config.load import (
    build_dataset_config,
    build_run_config,
    dump_toml,
    load_begun_config,
    load_run_config,
)
from impasto.config.run import RunConfig
from impasto.errors import ConfigError
from impasto.training.lifecycle.shared_start import settings_of_first
from impasto.training.planning.changes import with_changes

REPOSITORY = Path(__file__).parents[2]
MINIMAL = {
    "output_dir": "run",
    "model": {"path": "model"},
    "dataset": {"image_dir": "pictures"},
    "training": {"max_steps": 1},
}


def test_defaults_then_file_then_set():
    values = {**MINIMAL, "optimizer": {"lr": 2e-5}}
    assert build_run_config(MINIMAL, source="t").optimizer.lr == 5e-6
    assert build_run_config(values, source="t").optimizer.lr == 2e-5
    assert build_run_config(values, ["optimizer.lr=3e-5"], source="t").optimizer.lr == 3e-5
    with pytest.raises(ConfigError, match=r"^t with --set: unknown key optimizer\.lrr"):
        build_run_config(MINIMAL, ["optimizer.lrr=1"], source="t")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bach_size", r"dataset\.batch_size"),
        ("training.lr", r"optimizer\.lr"),
        ("training.cache_dir", r"dataset\.cache_dir"),  # and not training.text_cache_mib
        ("training.learning_rate", r"optimizer\.lr"),
        ("dataset.path", r"dataset\.image_dir"),  # and not model.path
        ("dataset.seed", "seed"),  # and not validation_seed
    ],
)
def test_the_setting_of_another_section_that_was_meant_is_named(written, meant):
    told = rf"unknown key {written} \(the nearest is {meant}; known"
    with pytest.raises(ConfigError, match=told):
        build_run_config(MINIMAL, [f"{written}=1"], source="t")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("training.steps", "max_steps"),
        ("validation.steps", "every_steps"),
        ("schedule.steps", "decay_steps"),
        ("saving.steps", "state_every_steps"),
        ("logging.steps", "every_steps"),
        ("method.lr", r"optimizer\.lr"),  # and not text_encoder_lr
    ],
)
def test_a_longer_name_in_the_same_section_comes_before_that_name_in_another(written, meant):
    with pytest.raises(ConfigError, match=rf"key {written} \(the nearest is {meant}; known"):
        build_run_config(MINIMAL, [f"{written}=1"], source="t")


def test_what_others_call_a_setting_leads_to_one_that_is_there():
    known = tree.all_settings()
    assert {*elsewhere.MEANT.values(), *elsewhere.OF_OTHER_TRAINERS.values()} <= set(known)
    named = {path.rpartition(".")[2] for path in known}
    assert named.isdisjoint(elsewhere.OF_OTHER_TRAINERS)
    assert set(known).isdisjoint(elsewhere.MEANT)


def test_resolved_settings_read_back_the_same():
    config = build_run_config(MINIMAL, ["dataset.resolution=[512, 768]"], source="t")
    assert build_run_config(tomllib.loads(dump_toml(config)), source="t") == config


def test_set_none_takes_a_setting_out():
    values = {**MINIMAL, "validation": {"image_dir": "held-out"}}
    config = build_run_config(values, ["validation.image_dir=none"], source="t")
    assert config.validation.image_dir is None


OWN_IMAGES = {"image_dir": "held-out"}
BY_SPLIT = {"dataset": {"datasets": [
    {"validation_split": 0.1, "subsets": [{"image_dir": "a"}]}, {"subsets": [{"image_dir": "b"}]},
], "validation_seed": 3}}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": {**OWN_IMAGES, "split": 0.1}}, r"image_dir and validation\.split contrad"),
        ({"validation": OWN_IMAGES}, ""),
        ({"dataset": {"image_dir": "a", "validation_seed": 3}}, "validation_seed .* nothing is"),
        ({"dataset": {"image_dir": "a", "validation_seed": 3}, "validation": {"split": 0.1}}, ""),
        (BY_SPLIT, ""),
        (
            {"dataset": {"image_dir": "a", "buckets": [[512, 512]], "enable_bucket": False}},
            r"dataset\.buckets has no effect",
        ),
        *(
            ({"dataset": {"image_dir": "a", "enable_bucket": False, **other}}, words)
            for other, words in (
                ({"bucket_no_upscale": True}, r"dataset\.bucket_no_upscale has no effect"),
                ({"bucket_table": "novelai"}, r"dataset\.bucket_table has no effect"),
                ({"bucket_table": "metadata"}, ""),
            )
        ),
        (
            {"dataset": {"buckets": [[512, 512]], "datasets": [
                {"enable_bucket": False, "subsets": [{"image_dir": "a"}]},
                {"subsets": [{"image_dir": "b"}]},
            ]}},
            "",
        ),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_on_held_out_images_and_sizes_is_refused(changes, words):
    if not words:
        build_run_config({**MINIMAL, **changes}, source="t")
        return
    with pytest.raises(ConfigError, match=words):
        build_run_config({**MINIMAL, **changes}, source="t")


def test_validation_and_previews_are_switched_off_by_one_setting():
    """The frequency and other settings stay in the file, for when they are enabled again."""
    how = {
        "validation": {"split": 0.1, "every_steps": 50, "standard_error": 0.0, "copies": "bytes"},
        "previews": {"prompts": ["a cat"], "sampler": "euler", "every_epochs": 1},
    }
    off = ["validation.split=none", "previews.prompts=[]"]
    config = build_run_config({**MINIMAL, **how}, off, source="t")
    assert (config.validation.split, config.previews.prompts) == (0, ())


def test_every_optional_setting_is_off_by_default():
    """TOML has no null: a disabled setting is omitted, and must be read back as disabled."""

    def walk(section):
        for name, field in section.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                walk(field.annotation)
            elif type(None) in getattr(field.annotation, "__args__", ()):
                assert field.default is None, f"{section.__name__}.{name}"

    walk(RunConfig)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lrate=1", ["run.toml", "optimizer.lrate", "nearest is lr"]),
        ("optimiser.lr=1", ["optimiser", "nearest is optimizer"]),
        ("dataset.resolution=big", ["dataset.resolution", "'big'"]),
        ("seed=-1", ["seed", "expected 0 or more"]),
        ("training.max_epochs=2", ["exactly one of max_steps and max_epochs"]),
        ("dataset.bucket_reso_steps=12", ["bucket_reso_steps is 12", "multiple of 8"]),
        ("dataset.min_bucket_reso=2048", ["min_bucket_reso 2048", "max_bucket_reso 1024"]),
        ("previews.width=100", ["width is 100", "multiple of 8"]),
        ("optimizer.lr", ["section.key=value"]),
        ("seed.x=1", ["seed", "a whole number"]),
    ],
)
def test_wrong_settings_are_explained(override, words):
    with pytest.raises(ConfigError) as caught:
        build_run_config(MINIMAL, [override], source="run.toml")
    for word in words:
        assert word in str(caught.value)


def test_missing_settings_are_named():
    with pytest.raises(ConfigError, match=r"dataset is missing.*training is missing"):
        build_run_config({"output_dir": "x", "model": {"path": "m"}}, source="run.toml")


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"seed = ", "not valid TOML"), (b"\xff\xfe\x00", "not UTF-8"), (None, "does not exist")],
)
def test_unreadable_files_are_explained(tmp_path, content, words):
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        load_run_config(path)


def test_a_missing_file_is_called_what_it_should_be(tmp_path):
    for read, what in ((load_run_config, "settings file"), (read_dataset_file, "dataset conf")):
        with pytest.raises(ConfigError, match=f"The {what}.* does not exist"):
            read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda p: p.name
)
def test_examples_load(path):
    if is_dataset_file(path):
        read_dataset_file(path)
    else:
        load_run_config(path)


def test_there_are_examples():
    assert len(list((REPOSITORY / "configs").glob("*.toml"))) >= 3


def test_every_setting_has_a_help_text():
    def walk(section):
        for name, field in section.model_fields.items():
            sections = [
                part
                for part in (field.annotation, *typing.get_args(field.annotation))
                if hasattr(part, "model_fields")
            ]
            for part in sections:
                walk(part)
            if not sections:
                assert docs_of(section, name), f"{section.__name__}.{name} has no docstring"

    walk(RunConfig)


def test_the_settings_page_is_current():
    program = [sys.executable, "scripts/write_config_docs.py", "--check"]
    assert subprocess.run(program, cwd=REPOSITORY, check=False).returncode == 0, (
        "run scripts/write_config_docs.py"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"buckets": [[500, 512]]}, "multiples of 8"),
        ({"buckets": [[512, 512]], "bucket_no_upscale": True}, "contradict"),
        ({"bucket_table": "metadata", "buckets": [[512, 512]]}, "both say which buckets"),
        ({"bucket_table": "novelai", "bucket_no_upscale": True}, "exactly 19 buckets"),
        ({"bucket_selection": "nearest"}, "native"),
    ],
)
def test_bucket_settings_that_contradict_are_explained(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        build_dataset_config({"image_dir": str(tmp_path), **changes}, source="test")


def test_bucket_settings_reach_the_plan(tmp_path):
    from impasto.data.records import FileStamp, ImageRecord, Size
    from impasto.datasets.build import plan_dataset

    record = ImageRecord(tmp_path / "x.png", Size(300, 300), FileStamp(1, 1))

    def bucket(**changes):
        config = build_dataset_config({"image_dir": str(tmp_path), **changes}, source="test")
        return str(plan_dataset(config, [record]).images[0].bucket)

    assert bucket() == "512x512"
    assert bucket(bucket_no_upscale=True) == "256x256"
    assert bucket(bucket_table="novelai", resolution=768) == "512x512"
    assert bucket(buckets=[[640, 512], [256, 512]]) == "640x512"
    wide = ImageRecord(tmp_path / "y.png", Size(1000, 900), FileStamp(1, 1))
    config = {"image_dir": str(tmp_path), "bucket_selection": "kohya"}
    planned = plan_dataset(build_dataset_config(config, source="test"), [wide])
    assert str(planned.images[0].bucket) == "512x512"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("loss.huber_c=0.2", "huber_c has no effect on the kind l2"),
        ("noise.multires_discount=0.5", "no effect without multires_iterations"),
        ("timesteps.logit_mean=1.0", "have no effect unless sampling is logit_normal"),
        ("saving.keep_models=2", "keep_models has no effect"),
        ("saving.keep_step_models=2", "keep_step_models has no effect without model_every_steps"),
        ("saving.keep_epoch_models=2", "keep_epoch_models has no effect without model_every_epo"),
        ("training.ema_power=0.5", "no effect without ema_decay"),
        ("noise.adaptive_scale=0.5", r"adaptive_scale needs noise\.offset above 0"),
        ("noise.offset_random_strength=true", r"noise: offset_random_strength needs noise\.offset"),
        ("saving.posthoc_dtype='fp32'", r"saving\.posthoc_dtype has no effect without training"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        build_run_config(MINIMAL, [override], source="t")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("training.batch_size=0", "training.batch_size: expected 1 or more, or 'auto' (found 0)"),
        ("dataset.resolution=0", "dataset.resolution: expected 8 or more, or a list (found 0)"),
    ],
)
def test_a_value_of_several_forms_is_told_in_one_sentence(override, told):
    with pytest.raises(ConfigError) as caught:
        build_run_config(MINIMAL, [override], source="t")
    assert str(caught.value) == f"t with --set: {told}."


@pytest.mark.parametrize(
    "changes",
    [
        {"validation": {**OWN_IMAGES, "split": 0.1}},
        {"dataset": {"image_dir": "a", "validation_seed": 3}},
        {"dataset": {"image_dir": "a", "buckets": [[512, 512]], "enable_bucket": False}},
        {"dataset": {"image_dir": "a", "buckets": [[512, 512]], "bucket_table": "metadata"}},
        {"dataset": {"image_dir": "a", "bucket_no_upscale": True, "enable_bucket": False}},
        {"dataset": {"mask_dir": "m", "datasets": [{"subsets": [{"image_dir": "a"}]}]}},
        {"schedule": {"kind": "warmup_stable_decay"}},
        {
            "method": {
                "kind": "hypernetwork",
                "start_from": "x.pt",
                "initialization": "XavierNormal",
            }
        },
        {"optimizer": {"eps": 1e-8, "arguments": {"eps": 1e-7}}},
        {"training": {"max_steps": 5, "ema_decay": 0.9, "ema_every": 9}},
    ],
)
def test_a_run_that_was_begun_with_what_had_no_effect_goes_on(changes, tmp_path):
    """The setting cannot be changed any more: its state depends on it."""
    values = {**MINIMAL, **changes}
    with pytest.raises(ConfigError):
        build_run_config(values, source="t")
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    config = load_begun_config(file)
    assert config.is_begun
    dumped = tomllib.loads(dump_toml(config))
    assert build_run_config(dumped, source="t", begun=True) == config
    changed = with_changes(config, {"training": {"gradient_checkpointing": True}})
    assert changed.is_begun
    assert goes_together(changed)
    assert not build_run_config(MINIMAL, source="t").is_begun


def test_all_processes_of_a_run_that_was_begun_go_on_with_what_had_no_effect():
    values = {**MINIMAL, "validation": {**OWN_IMAGES, "split": 0.1}}
    config = build_run_config(values, source="t", begun=True)

    def settings_of(group):
        return settings_of_first(group, config if group.rank == 0 else None, begun=True)

    first, second = in_threads(2, settings_of)
    assert first == second
    assert second.is_begun


def test_a_run_that_was_begun_with_what_had_no_effect_is_drawn_with(tmp_path):
    """A finished run's size may come from settings that a new run could not have."""
    values = {
        **MINIMAL, "dataset": {"image_dir": "a", "validation_seed": 3, "resolution": 264},
    }  # fmt: skip
    (tmp_path / "config.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    assert _native_size(str(tmp_path), None) == (264, 264)
