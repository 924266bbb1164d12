"""sd-scripts' SDXL command as settings: each flag of the recorded parser is handled."""

import json
import tomllib
from pathlib import Path

import pytest
from conftest import GOLDEN

from impasto.config.load import build_run_config
from impasto.errors import ConfigError, OtherFamilyError
from impasto.models.families import FAMILIES
from impasto.sdscripts.flag import FINE_TUNE, SCRIPTS, SDXL_TRAIN, TRAIN_DB
from impasto.sdscripts.flags import flags_of
from impasto.sdscripts.importing import command_to_toml
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.sdxl_rules import BLOCKS
from impasto.sdscripts.settings import build_settings, in_terms_of, scripts_of
from impasto.sdscripts.translate import translate

NEEDED = ["--pretrained_model_name_or_path=xl.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=1024", "--seed=1"]  # fmt: skip
RECORDED = json.loads((GOLDEN / "sdxl_train_flags.json").read_text(encoding="utf-8"))


def settings(*words):
    return translate(SDXL_TRAIN, parse_flags(SDXL_TRAIN, [*NEEDED, *words]))


def value_of(tree, place):
    for key in place.split("."):
        tree = tree[key]
    return tree


def test_every_flag_of_the_parser_has_a_row():
    assert len(RECORDED) == 176
    assert flags_of(SDXL_TRAIN).keys() == RECORDED.keys()
    assert {name: flag.kind for name, flag in flags_of(SDXL_TRAIN).items()} == {
        name: row["kind"] for name, row in RECORDED.items()
    }


OWN_DEFAULTS = {"caption_extension": None, "dataset_repeats": None}
"""Differences in Impasto: both caption suffixes are read, and a dataset file may set repeats."""


def test_defaults_are_those_of_the_parser():
    for name, flag in flags_of(SDXL_TRAIN).items():
        recorded = RECORDED[name].get("default")
        if not flag.notice and not flag.refusal and name not in OWN_DEFAULTS:
            assert _number(flag.default) == _number(recorded), name
        if flag.choices:
            assert set(map(str, RECORDED[name]["choices"])) <= set(flag.choices), name
    assert {name: flags_of(SDXL_TRAIN)[name].default for name in OWN_DEFAULTS} == OWN_DEFAULTS


def _number(value):
    """Return a number; missing, off and 0 are the same, and so are 1 and 1.0."""
    try:
        return float(value or 0)
    except ValueError:
        return value


def test_every_weight_of_the_u_net_is_in_its_one_block_of_23(golden):
    """By sd-scripts' rule on single-file names, over all weights of a full-size model."""
    starts = {"input_blocks": 1, "middle_block": 10, "output_blocks": 13}
    prefix, seen = "model.diffusion_model.", set()
    for name, row in golden("sdxl_map.json").items():
        if not name.startswith(prefix):
            continue
        first, second, *_ = name.removeprefix(prefix).split(".")
        fixed = {"time_embed": 0, "label_emb": 0, "out": 22}
        number = fixed[first] if first in fixed else starts[first] + int(second)
        ours = row["to"].removeprefix("unet.")
        found = [
            n for n, names in enumerate(BLOCKS) if ours.startswith(tuple(f"{b}." for b in names))
        ]
        assert found == [number], name
        seen.add(number)
    assert seen == set(range(23)) == set(range(len(BLOCKS)))


def test_the_command_of_the_guide_as_settings():
    found = settings(
        "--learning_rate=4e-7", "--optimizer_type=adafactor",
        "--optimizer_args", "scale_parameter=False", "relative_step=False", "warmup_init=False",
        "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "100",
        "--max_train_steps=1000", "--mixed_precision=bf16", "--full_bf16", "--fused_backward_pass",
        "--gradient_checkpointing", "--cache_latents", "--no_half_vae", "--sdpa",
    )  # fmt: skip
    config = build_run_config(found.tree, source="test")
    assert config.model.family == "sdxl"
    assert config.model.prediction_type is None
    assert config.optimizer.kind == "adafactor"
    assert config.optimizer.arguments == {
        "scale_parameter": False, "relative_step": False, "warmup_init": False,
    }  # fmt: skip
    training = config.training
    assert (training.weight_dtype, training.optimizer_in_backward) == ("bf16", "last_norm")
    assert (config.schedule.kind, config.schedule.warmup_steps) == ("constant", 100)
    assert config.saving.export_dtype == "bf16"
    assert config.saving.text_encoder_dtype is None  # unchanged
    assert not any("Adafactor" in line for line in found.notices)


@pytest.mark.parametrize("kind", ["adafactor", "AdaFactor"])
def test_rates_of_adafactor_are_those_that_are_given(kind):
    told = settings(f"--optimizer_type={kind}", "--learning_rate=1e-5").notices
    assert sum("finds its rates itself and ignores --learning_rate" in line for line in told) == 1
    assert sum("scales rates by the size of the weights" in line for line in told) == 1
    told = settings(f"--optimizer_type={kind}", "--optimizer_args", "relative_step=False").notices
    assert [line for line in told if "Adafactor" in line] == [
        "--optimizer_type: without scale_parameter=False in --optimizer_args, sd-scripts' "
        "Adafactor scales rates by the size of the weights; here it does so with True only."
    ]
    assert not any("Adafactor" in line for line in settings("--optimizer_type=adamw").notices)


@pytest.mark.parametrize("asked", ["relative_step", "warmup_init"])
def test_rates_that_adafactor_finds_are_refused(asked):
    with pytest.raises(ConfigError, match=f"--optimizer_args has {asked}=True, with which"):
        settings("--optimizer_type=adafactor", "--optimizer_args", f"{asked}=True")


TRAINED = "--train_text_encoder"
CASES = [
    (["--v_parameterization"], "model.family", "sdxl-v"),
    (["--v_parameterization", "--zero_terminal_snr"], "noise.zero_terminal_snr", True),
    (["--v_parameterization", "--zero_terminal_snr", "--min_snr_gamma=5"],
     "loss.snr_schedule", "original"),
    ([TRAINED], "method", {"train_text_encoder": True}),
    ([TRAINED, "--learning_rate_te1=1e-6"], "method.text_encoder_lrs", {"text_encoder": 1e-6}),
    ([TRAINED, "--learning_rate_te1=0", "--learning_rate_te2=0"],
     "method", {"train_text_encoder": False}),
    ([TRAINED, "--learning_rate_te2=0"], "method.text_encoder_lrs", {"text_encoder_2": 0.0}),
    (["--fused_backward_pass"], "training.optimizer_in_backward", "last_norm"),
    (["--fused_backward_pass", "--max_grad_norm=0"], "training.optimizer_in_backward", "exact"),
    (["--fused_optimizer_groups=10", "--mixed_precision=fp16"],
     "training.optimizer_in_backward", "exact"),
    (["--cache_text_encoder_outputs_to_disk"], "training.cache_text_to_disk", True),
    (["--masked_loss", "--conditioning_data_dir=masks"], "dataset.mask_dir", "masks"),
    (["--caption_extension=.txt"], "dataset.caption_extension", ".txt"),
    (["--mixed_precision=fp16", "--full_fp16"], "saving.export_dtype", "fp16"),
    (["--mixed_precision=bf16", "--full_bf16", "--save_precision=fp16"],
     "saving.export_dtype", "fp16"),
    ([], "saving.export_dtype", "fp32"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "place", "expected"), CASES)
def test_what_flags_become(words, place, expected):
    tree = settings(*words).tree
    build_run_config(tree, source="test")
    assert value_of(tree, place) == expected


@pytest.mark.parametrize(
    ("words", "place", "told"),
    [
        (["--clip_skip=2"], "model.clip_skip", "--clip_skip: it has no effect"),
        (["--learning_rate_te1=1e-6"], "method", "--learning_rate_te1: it has no effect without"),
        ([TRAINED, "--learning_rate_te1=0", "--learning_rate_te2=0"],
         "method.text_encoder_lrs", "none is trained"),
        (["--fused_optimizer_groups=4", "--gradient_accumulation_steps=2"],
         "training.optimizer_in_backward", "--fused_optimizer_groups: weights change after all 2"),
        (["--conditioning_data_dir=masks"], "dataset.mask_dir", "without --masked_loss"),
        (["--fused_optimizer_groups=0"], "training.optimizer_in_backward", ""),
    ],
)  # fmt: skip
def test_what_has_no_effect_there_has_none_here(words, place, told):
    found = settings(*words)
    with pytest.raises(KeyError):
        value_of(found.tree, place)
    assert any(told in line for line in found.notices) or not told


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--v2"], "fine_tune.py trains SD 2"),
        (["--learning_rate_te=1e-6"], r"no flag --learning_rate_te\. fine_tune\.py has it\. The "
                                      r"nearest is --learning_rate_te[12]"),
        (["--hypernetwork_module=x"], r"no flag --hypernetwork_module\.$"),
        (["--block_lr=1,2"], "--block_lr is '1,2'; expected 23 numbers"),
        ([TRAINED, f"--block_lr={','.join(['0'] * 23)}"], "--block_lr is 0 for every block"),
        (["--weighted_captions", "--cache_text_encoder_outputs"], "do not work together"),
        (["--weighted_captions", "--cache_text_encoder_outputs_to_disk"], "do not work together"),
        (["--learning_rate=0"], "some of the U-Net is always trained"),
        (["--fused_backward_pass", "--gradient_accumulation_steps=2"], "Remove one of the two"),
        ([TRAINED, "--cache_text_encoder_outputs"], "--train_text_encoder changes these outputs"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_explained(words, expected):
    with pytest.raises(ConfigError, match=expected):
        settings(*words)


def test_each_family_has_its_command():
    trained = {family.key: scripts_of(family.key) for family in FAMILIES}
    sdxl = {key for key, scripts in trained.items() if scripts == (SDXL_TRAIN,)}
    assert sdxl == {family.key for family in FAMILIES if family.generation == "SDXL"}
    assert set(trained.values()) == {(FINE_TUNE, TRAIN_DB), (SDXL_TRAIN,)}
    assert scripts_of(None) == scripts_of("two") == ()
    other = OtherFamilyError("", "model", ("two",))
    assert "none of these sd-scripts commands trains" in str(in_terms_of("sdxl_train.py", other))


def test_flags_of_sdxl_alone_are_named_as_such():
    with pytest.raises(ConfigError, match=r"fine_tune\.py has no flag --block_lr\. sdxl_train\.py"):
        parse_flags(FINE_TUNE, ["--block_lr=1"])


@pytest.mark.parametrize(
    "changing",
    ["shuffle_caption", "caption_dropout_rate", "caption_tag_dropout_rate", "token_warmup_step"],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_outputs_of_captions_that_change_are_not_kept(tmp_path, changing, in_file):
    value = "true" if changing == "shuffle_caption" else "0.5"
    words = ["--cache_text_encoder_outputs"]
    if in_file:
        file = tmp_path / "d.toml"
        file.write_text(
            f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'p'\n{changing} = {value}\n",
            encoding="utf-8",
        )
        words += [f"--dataset_config={file}"]
    else:
        words += [f"--{changing}" + ("" if value == "true" else f"={value}")]
    flags = parse_flags(SDXL_TRAIN, [*NEEDED, *words])
    tree = translate(SDXL_TRAIN, flags).tree
    with pytest.raises(ConfigError, match=f"--cache_text_encoder_outputs caches .* {changing}"):
        build_settings(SDXL_TRAIN, flags, tree)
    without = {name: value for name, value in flags.items() if name != words[0].lstrip("-")}
    build_settings(SDXL_TRAIN, without, translate(SDXL_TRAIN, without).tree)


def built(*words):
    flags = parse_flags(SDXL_TRAIN, [*NEEDED, *words])
    return build_settings(SDXL_TRAIN, flags, translate(SDXL_TRAIN, flags).tree)


def test_each_flag_of_a_rate_is_to_be_taken_out_under_its_name():
    rates = ["--learning_rate_te1=0.5", "--learning_rate_te2=0.2"]
    with pytest.raises(ConfigError, match="Remove --learning_rate_te1 and --learning_rate_te2,"):
        built("--optimizer_type=prodigy", "--learning_rate=1", "--train_text_encoder", *rates)


@pytest.mark.parametrize("in_file", [False, True])
def test_steps_of_buckets_are_multiples_of_32(tmp_path, in_file):
    def words(steps, has_buckets=True):
        if not in_file:
            found = [f"--bucket_reso_steps={steps}"]
            return [*found, "--enable_bucket"] if has_buckets else found
        file = tmp_path / "d.toml"
        file.write_text(
            f"[[datasets]]\nenable_bucket = {str(has_buckets).lower()}\n"
            f"bucket_reso_steps = {steps}\n[[datasets.subsets]]\nimage_dir = 'p'\n",
            encoding="utf-8",
        )
        return [f"--dataset_config={file}"]

    with pytest.raises(ConfigError, match=r"bucket_reso_steps is 16; .* multiples of 32"):
        built(*words(16))
    assert built(*words(32)).dataset.entries[0].bucket_reso_steps == 32
    assert not built(*words(16, has_buckets=False)).dataset.entries[0].enable_bucket


def test_folders_of_repeats_are_subsets(tmp_path):
    for name in ("train/10_sks frog", "reg/1_animal", "flat"):
        (tmp_path / name).mkdir(parents=True)
    train, reg, flat = (f"{tmp_path / name}" for name in ("train", "reg", "flat"))
    found = settings(
        f"--train_data_dir={train}", f"--reg_data_dir={reg}", "--caption_extension=.txt"
    )
    subsets = build_run_config(found.tree, source="test").dataset.entries[0].subsets
    assert [(s.num_repeats, s.class_tokens, s.is_reg, s.caption_extension) for s in subsets] == [
        (10, "sks frog", False, ".txt"), (1, "animal", True, ".txt"),
    ]  # fmt: skip
    assert settings(f"--train_data_dir={train}").tree["dataset"]["train_data_dir"] == train
    assert settings(f"--train_data_dir={flat}").tree["dataset"]["image_dir"] == flat
    named = settings(f"--train_data_dir={train}", f"--reg_data_dir={reg}", "--in_json=m.json")
    assert named.tree["dataset"]["image_dir"] == train
    assert "--reg_data_dir: --in_json is given, so it is not used." in named.notices
    masked = settings(
        f"--train_data_dir={train}", f"--reg_data_dir={reg}", "--masked_loss",
        "--conditioning_data_dir=m",
    )  # fmt: skip
    subsets = build_run_config(masked.tree, source="test").dataset.entries[0].subsets
    assert [subset.mask_dir for subset in subsets] == [Path("m"), None]
    assert not [line for line in masked.notices if line.startswith("--masked_loss")]


def masks_config(tmp_path):
    """Write a dataset configuration for the masked loss, as in sd-scripts' documentation."""
    file = tmp_path / "masks.toml"
    file.write_text(
        "[general]\ncache_info = true\n[[datasets]]\nresolution = 1024\n[[datasets.subsets]]\n"
        "image_dir = 'a'\ncaption_extension = '.txt'\nconditioning_data_dir = 'a_mask'\n"
        "num_repeats = 8\n",
        encoding="utf-8",
    )
    return file


def test_the_masked_loss_takes_the_masks_of_a_dataset_configuration(tmp_path):
    line = [f"--dataset_config={masks_config(tmp_path)}", *NEEDED[:2]]
    flags = parse_flags(SDXL_TRAIN, [*line, "--masked_loss"])
    (subset,) = (
        build_run_config(translate(SDXL_TRAIN, flags).tree, source="test")
        .dataset.entries[0]
        .subsets
    )
    assert (subset.mask_dir, subset.num_repeats) == (Path("a_mask"), 8)
    for script in SCRIPTS:  # sd-scripts treats the key without the flag as an error
        with pytest.raises(ConfigError, match=r"masks only with --masked_loss"):
            translate(script, parse_flags(script, line))


def test_a_command_becomes_settings_that_say_where_they_come_from():
    rates = ",".join(["0", *["1e-6"] * 22])
    words = ["accelerate", "launch", r"C:\kohya\sdxl_train.py", *NEEDED, TRAINED,
             "--learning_rate_te2=1e-7", f"--block_lr={rates}",
             "--disable_mmap_load_safetensors"]  # fmt: skip
    text = command_to_toml(words)
    assert "[method.block_lrs]  # --block_lr\n" in text
    assert "text_encoder_2 = 1e-07  # --learning_rate_te2\n" in text
    assert 'family = "sdxl"' in text
    assert "# --disable_mmap_load_safetensors: tensors are read" in text
    config = build_run_config(tomllib.loads(text), source="test")
    assert config.method.block_lrs["time_embedding"] == 0
    assert len(config.method.block_lrs) == sum(map(len, BLOCKS))
    with pytest.raises(ConfigError, match=r"train_network\.py is not one of .* sdxl_train\.py\."):
        command_to_toml(["python", "sdxl_train_network.py"])


def test_the_page_of_flags_says_where_a_rule_differs():
    rows = (
        (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8").splitlines()
    )
    named = ("alpha_mask", "caption_extension", "caption_extention", "conditioning_data_dir",
             "full_bf16", "full_fp16", "fused_backward_pass", "fused_optimizer_groups",
             "log_tracker_name", "logging_dir", "lr_decay_steps", "lr_scheduler",
             "lr_scheduler_args", "lr_scheduler_timescale", "lr_warmup_steps", "masked_loss",
             "multires_noise_iterations", "optimizer_args",
             "optimizer_type", "resize_interpolation", "resume", "sample_at_first",
             "save_model_as", "save_n_epoch_ratio")  # fmt: skip
    known = flags_of(SDXL_TRAIN)
    assert {name for name, flag in known.items() if flag.differs} == set(named)
    for name in named:
        place = f"`{known[name].to}`, " if known[name].to else ""
        assert f"| `--{name}` | {place}with a difference: {known[name].differs} |" in rows
        assert not any((known[name].notice, known[name].refusal))
