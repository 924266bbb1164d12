"""The drop-in commands: every flag of sd-scripts is known, and none silently has no effect."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import GOLDEN
from torch import nn

from impasto.config.load import build_run_config
from impasto.errors import ConfigError
from impasto.models.trainable import TrainedModule
from impasto.sdscripts import translate
from impasto.sdscripts.flag import FINE_TUNE, SCRIPTS, SDXL_TRAIN, TRAIN_DB
from impasto.sdscripts.flags import ROWS, flags_of
from impasto.sdscripts.importing import command_to_toml
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.settings import build_settings
from impasto.training.compute.precision import NativePrecision
from impasto.training.optim.optimizers import build_optimizer

REPOSITORY = Path(__file__).parents[2]
NEEDED = ["--pretrained_model_name_or_path=sd.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=512", "--seed=1"]  # fmt: skip


SAMPLE = {"int": "7", "float": "0.5", "text": "word", "flag": None, "list": "a=1"}


def companions_of(script, name):
    """Return the flags that a flag needs to have an effect."""
    if name == "learning_rate_te":
        return [] if script == TRAIN_DB else ["--train_text_encoder"]
    return COMPANIONS.get(name, [])


def settings(*flags, script=FINE_TUNE):
    return translate.translate(script, parse_flags(script, [*NEEDED, *flags]))


VALUES = {"min_bucket_reso": "64", "max_bucket_reso": "2048", "max_timestep": "700"}
COMPANIONS = {
    "learning_rate_te1": ["--train_text_encoder"],
    "learning_rate_te2": ["--train_text_encoder"],
    "conditioning_data_dir": ["--masked_loss"],
    "masked_loss": ["--conditioning_data_dir=masks"],
    "bucket_no_upscale": ["--enable_bucket"],
    "use_safetensors": ["--pretrained_model_name_or_path=sd.ckpt"],
    "save_last_n_epochs": ["--save_every_n_epochs=1"],
    "save_last_n_steps": ["--save_every_n_steps=1"],
    "save_n_epoch_ratio": ["--max_train_epochs=9"],
    "lr_warmup_steps": ["--lr_scheduler=cosine"],
    "sample_every_n_steps": ["--sample_prompts=p.txt"],
    "sample_every_n_epochs": ["--sample_prompts=p.txt"],
    "sample_at_first": ["--sample_prompts=p.txt"],
    "sample_sampler": ["--sample_prompts=p.txt", "--sample_every_n_steps=5"],
    "full_fp16": ["--mixed_precision=fp16"],
    "full_bf16": ["--mixed_precision=bf16"],
    "lr_scheduler_num_cycles": ["--lr_scheduler=cosine_with_restarts"],
    "lr_scheduler_power": ["--lr_scheduler=polynomial"],
    "lr_scheduler_timescale": ["--lr_scheduler=inverse_sqrt"],
    "lr_scheduler_min_lr_ratio": ["--lr_scheduler=cosine_with_min_lr"],
    "lr_scheduler_args": ["--lr_scheduler=piecewise_constant"],
    "lr_decay_steps": ["--lr_scheduler=warmup_stable_decay"],
    "log_tracker_name": ["--log_with=wandb"],
    "wandb_run_name": ["--log_with=wandb"],
    "prior_loss_weight": ["--reg_data_dir=reg"],
}
WITH_RULES = {
    "resolution": "256", "face_crop_aug_range": "1,2", "lr_warmup_steps": "5",
    "lr_decay_steps": "5", "lr_scheduler": "cosine", "lr_scheduler_args": "step_rules=1:2,3",
    "mixed_precision": "bf16", "train_data_dir": "other", "seed": "9", "output_dir": "elsewhere",
    "max_token_length": "150", "optimizer_type": "Lion", "block_lr": ",".join(["1e-6"] * 23),
}  # fmt: skip


def words_for(flag):
    value = WITH_RULES.get(flag.name) or VALUES.get(flag.name)
    value = value or (flag.choices[0] if flag.choices else SAMPLE[flag.kind])
    return [f"--{flag.name}"] if value is None else [f"--{flag.name}={value}"]


def test_every_flag_is_in_the_table():
    recorded = (GOLDEN / "fine_tune_flags.txt").read_text(encoding="utf-8").split()
    assert len(recorded) == 167
    known = flags_of(FINE_TUNE).keys()
    assert set(recorded) <= known
    assert known - set(recorded) == {"hypernetwork_module", "hypernetwork_weights"}


def test_a_command_has_one_row_for_a_flag():
    for script in SCRIPTS:
        names = [row.name for row in ROWS if script in row.only]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("script", "name"),
    [
        (script, name)
        for script in SCRIPTS
        for name in sorted(flags_of(script).keys() - {"config_file", "resume", "sample_prompts"})
    ],
)
def test_no_flag_is_without_effect_in_silence(script, name):
    """A flag changes the settings, is reported as having no effect, or is refused."""
    flag, companions = flags_of(script)[name], companions_of(script, name)
    words = words_for(flag)
    if flag.refusal:
        with pytest.raises(ConfigError, match=f"--{name} is not supported"):
            parse_flags(script, words)
        return
    found = settings(*companions, *words, script=script)
    if flag.notice:
        assert any(line.startswith(f"--{name}: ") for line in found.notices)
        return
    assert found.tree != settings(*companions, script=script).tree
    if flag.to:
        value = found.tree
        for key in flag.to.split("."):
            value = value[key]
        assert str(value) == words[0].partition("=")[2] or value is True


@pytest.mark.parametrize("script", [FINE_TUNE, TRAIN_DB])
def test_a_weight_of_the_loss_that_sdxl_alone_has_is_not_set(script):
    found = settings("--v_pred_like_loss=0.5", script=script)
    assert found.tree == settings(script=script).tree
    assert [line for line in found.notices if line.startswith("--v_pred_like_loss: it has no")]
    assert settings("--v_pred_like_loss=0.5", script=SDXL_TRAIN).tree["loss"]


def test_the_folder_of_logs_is_told_not_to_be_used():
    (told,) = settings("--logging_dir=x", "--log_with=wandb").notices
    assert told == (
        "--logging_dir: Weights & Biases' files are in the folder wandb of the run; x is not used."
    )
    (told,) = settings("--logging_dir=x").notices
    assert told == (
        "--logging_dir: TensorBoard's files are in the folder tensorboard of the run; x is not "
        "used."
    )


def test_prompts_are_read_if_samples_are_asked_for():
    """kohya_ss' form always names a prompt file, which may be empty."""
    found = settings("--sample_prompts=p.txt", "--sample_every_n_steps=5")
    assert found.tree["previews"]["prompt_file"] == "p.txt"
    found = settings("--sample_prompts=empty.txt")
    assert "prompt_file" not in found.tree["previews"]
    assert any(line.startswith("--sample_prompts: it has no effect") for line in found.notices)


def test_a_sampler_of_previews_that_are_not_drawn_is_told():
    """kohya_ss' form always names a sampler."""
    found = settings("--sample_sampler=euler_a")
    assert "sampler" not in found.tree["previews"]
    assert [line for line in found.notices if line.startswith("--sample_sampler: it has no effect")]


def test_never_enlarging_without_buckets_is_told():
    """The flag has no effect in sd-scripts either, and forms always set it."""
    found = settings("--bucket_no_upscale")
    assert "bucket_no_upscale" not in found.tree["dataset"]
    assert [line for line in found.notices if line.startswith("--bucket_no_upscale: it has no eff")]
    assert settings("--bucket_no_upscale", "--enable_bucket").tree["dataset"]["bucket_no_upscale"]


def test_a_sample_at_first_is_no_sample_on_the_way():
    """Nothing is drawn later there; every 200 steps is Impasto's own default."""
    words = ["--sample_prompts=p.txt", "--sample_at_first"]
    assert settings(*words).tree["previews"]["every_steps"] == 0
    found = settings(*words, "--sample_every_n_steps=-1")
    assert found.tree["previews"]["every_steps"] == 0
    assert "--sample_every_n_steps: -1 means never." in found.notices
    assert "every_steps" not in settings(*words, "--sample_every_n_epochs=1").tree["previews"]


def test_a_warm_up_that_sd_scripts_ignores_is_told():
    """`get_scheduler_fix` passes the scheduler nothing but its arguments."""
    words = ["--lr_scheduler=piecewise_constant", "--lr_scheduler_args", "step_rules=1:3,0.1"]
    found = settings(*words, "--lr_warmup_steps=10")
    assert found.tree["schedule"] == settings(*words).tree["schedule"]
    assert [line for line in found.notices if line.startswith("--lr_warmup_steps: it has no eff")]
    assert not [line for line in settings(*words).notices if "warmup" in line]


def test_a_fall_at_the_end_without_steps_is_a_level_rate_as_there():
    found = settings("--lr_scheduler=warmup_stable_decay", "--lr_warmup_steps=10")
    assert found.tree["schedule"] == {"kind": "constant", "warmup_steps": 10}
    assert any("it never decays" in notice for notice in found.notices)
    found = settings("--lr_scheduler=warmup_stable_decay", "--lr_decay_steps=0.1")
    assert found.tree["schedule"]["kind"] == "warmup_stable_decay"
    assert found.tree["schedule"]["decay_steps"] == 0.1


def test_a_constant_rate_has_no_warmup():
    """sd-scripts' `get_scheduler_fix` refuses it too."""
    with pytest.raises(ConfigError, match="choose constant_with_warmup, or remove it"):
        settings("--lr_scheduler=constant", "--lr_warmup_steps=10")
    assert settings("--lr_scheduler=constant", "--lr_warmup_steps=0").tree["schedule"] == {
        "kind": "constant", "warmup_steps": 0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["AdamWScheduleFree", "prodigyplus.ProdigyPlusScheduleFree"])
def test_optimizers_that_average_weights_have_no_schedule(kind):
    """sd-scripts' `get_scheduler_fix` gives them a dummy scheduler in every case."""
    given = {
        "lr_scheduler": "cosine_with_restarts", "lr_warmup_steps": "10",
        "lr_scheduler_num_cycles": "3", "lr_scheduler_args": "a=1",
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in given.items()]
    found = settings(f"--optimizer_type={kind}", *words)
    assert found.tree["schedule"] == {"kind": "constant", "warmup_steps": 0}
    told = [line for line in found.notices if "the rate is constant" in line]
    assert {line.partition(":")[0] for line in told} == {f"--{name}" for name in given}
    as_it_is = settings(f"--optimizer_type={kind}", "--lr_scheduler=constant")
    assert as_it_is.tree["schedule"] == found.tree["schedule"]
    assert not [line for line in as_it_is.notices if "lr_scheduler" in line]


def test_each_kind_of_models_has_a_limit_of_its_own():
    every = ["--save_every_n_steps=2", "--save_every_n_epochs=1"]
    for last, kept in (
        (["--save_last_n_epochs=1"], (None, 1)),
        (["--save_last_n_steps=4"], (3, None)),
        (["--save_last_n_epochs=1", "--save_last_n_steps=4"], (3, 1)),
    ):
        config = build_run_config(settings(*every, *last).tree, source="test")
        assert (config.saving.kept_step_models, config.saving.kept_epoch_models) == kept


def test_models_every_0_steps_have_no_limit():
    found = settings("--save_every_n_steps=0", "--save_last_n_steps=4")
    assert "--save_last_n_steps: nothing is saved every n steps." in found.notices


def test_beginnings_of_names_are_taken():
    """argparse does the same there if only one flag has the prefix."""
    assert settings("--train_batch=2").tree["training"]["batch_size"] == 2
    with pytest.raises(ConfigError, match=r"no flag --sample\. The nearest is --sample_"):
        settings("--sample=2")


def test_a_refused_flag_is_named_before_a_file_is_read():
    with pytest.raises(ConfigError, match="--output_config is not supported"):
        parse_flags(FINE_TUNE, ["--output_config", "--config_file=nowhere.toml"])


MIN_LR = ["--lr_scheduler=cosine_with_min_lr"]
OF_CKPT = "--pretrained_model_name_or_path=sd.ckpt"
OF_FOLDER = "--pretrained_model_name_or_path=sd"
RULES = [
    (["--v2"], "model.family", "sd2-base"),
    (["--v2", "--v_parameterization"], "model.family", "sd2-v"),
    ([], "model.prediction_type", "epsilon"),
    (["--v_parameterization"], "model.prediction_type", "v_prediction"),
    (["--max_token_length=225"], "model.max_tokens", 225),
    ([], "model.token_join", "kohya"),
    (["--weighted_captions"], "model.caption_emphasis", "no_norm"),
    (["--resolution=512,768"], "dataset.resolution", [512, 768]),
    (["--face_crop_aug_range=2.0,4.0"], "dataset.face_crop_aug_range", [2.0, 4.0]),
    (["--in_json=m.json"], "dataset.metadata_file", "m.json"),
    (["--min_bucket_reso=300"], "dataset.min_bucket_reso", 256),
    (["--max_bucket_reso=1000"], "dataset.max_bucket_reso", 1024),
    ([], "dataset.enable_bucket", False),
    ([], "dataset.bucket_selection", "kohya"),
    ([], "optimizer.lr", 2e-6),
    ([], "training.max_steps", 1600),
    (["--max_train_epochs=3"], "training.max_epochs", 3),
    (["--use_8bit_adam"], "optimizer.kind", "adamw8bit"),
    (["--use_lion_optimizer"], "optimizer.kind", "lion"),
    (["--optimizer_type=PagedAdamW8bit"], "optimizer.kind", "paged_adamw8bit"),
    (["--optimizer_type=AdamWScheduleFree"], "optimizer.kind", "adamw_schedule_free"),
    (["--optimizer_type=NAdam"], "optimizer.kind", "NAdam"),
    (["--optimizer_args", "betas=0.9,0.99", "amsgrad=True"], "optimizer.betas", (0.9, 0.99)),
    (["--optimizer_args", "amsgrad=True"], "optimizer.arguments", {"amsgrad": True}),
    (["--optimizer_type=DAdaptAdaGrad"], "optimizer.eps", 1e-6),
    (["--optimizer_type=DAdaptAdan"], "optimizer.weight_decay", 0.02),
    (["--optimizer_type=DAdaptAdan", "--optimizer_args", "no_prox=True"], "optimizer.arguments",
     {"weight_decouple": True}),
    (["--optimizer_type=DAdaptLion"], "optimizer.betas", (0.9, 0.99)),
    (["--optimizer_type=DAdaptLion"], "optimizer.arguments", {"weight_decouple": True}),
    (["--optimizer_type=DAdaptSGD"], "optimizer.arguments", {"momentum": 0.0}),
    (["--lr_scheduler=constant_with_warmup", "--lr_warmup_steps=10"], "schedule.warmup_steps", 10),
    (["--lr_scheduler=cosine", "--lr_warmup_steps=0.1"], "schedule.warmup_steps", 0.1),
    (["--lr_scheduler=polynomial", "--lr_scheduler_power=2"], "schedule.power", 2.0),
    (
        ["--lr_scheduler=piecewise_constant", '--lr_scheduler_args', 'step_rules="1:3,0.1"'],
        "schedule.rules",
        "1:3,0.1",
    ),
    ([*MIN_LR, "--lr_scheduler_args", "min_lr_rate=0.1"], "schedule.min_lr_ratio", 0.1),
    (
        [*MIN_LR, "--learning_rate=1e-4", "--lr_scheduler_args", "min_lr=1e-5"],
        "schedule.min_lr_ratio",
        pytest.approx(0.1),
    ),
    (["--output_name=mine"], "saving.name", "mine"),
    ([], "saving.name", "last"),
    ([], "saving.model_dir", "out"),
    ([], "output_dir", str(Path("out", "last-run"))),
    ([], "saving.format", "safetensors"),
    (["--save_model_as=diffusers_safetensors"], "saving.format", "diffusers"),
    (["--save_model_as=ckpt"], "saving.format", "ckpt"),
    (["--save_model_as=ckpt", "--use_safetensors"], "saving.format", "safetensors"),
    ([OF_CKPT], "saving.format", "ckpt"),
    ([OF_CKPT, "--use_safetensors"], "saving.format", "safetensors"),
    (["--pretrained_model_name_or_path=sd.pt"], "saving.format", "ckpt"),
    (["--pretrained_model_name_or_path=sd.SFT"], "saving.format", "safetensors"),
    (["--pretrained_model_name_or_path=me/sd-v1.5"], "saving.format", "diffusers"),
    ([OF_FOLDER, "--use_safetensors"], "saving.format", "diffusers"),
    ([OF_FOLDER, "--save_model_as=ckpt"], "saving.format", "ckpt"),
    ([], "saving.export_dtype", "fp32"),
    (["--save_precision=fp16"], "saving.vae_dtype", "fp16"),
    (["--save_every_n_steps=10", "--save_last_n_steps=30"], "saving.keep_step_models", 4),
    (["--save_every_n_epochs=2", "--save_last_n_epochs=3"], "saving.keep_epoch_models", 3),
    (
        ["--max_train_epochs=10", "--save_n_epoch_ratio=5"],
        "saving.model_every_epochs",
        2,
    ),
    (
        ["--sample_sampler=k_euler_a", "--sample_prompts=p.txt", "--sample_every_n_steps=5"],
        "previews.sampler",
        "euler_a",
    ),
    (["--min_timestep=500", "--max_timestep=500"], "timesteps", {"first": 500, "last": 501}),
    (["--mixed_precision=fp16"], "training.mixed_precision", "fp16"),
    (["--torch_compile"], "training.compile", "full"),
    (["--metadata_title=T"], "saving.metadata.title", "T"),
    (["--logging_dir=logs"], "logging.trackers", ["tensorboard"]),
    (["--log_with=all"], "logging.trackers", ["tensorboard", "wandb"]),
    (["--log_with=wandb"], "logging.wandb_project", "finetuning"),
    (["--log_with=all", "--wandb_run_name=x"], "logging.wandb_name", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "place", "expected"), RULES)
def test_what_flags_become(flags, place, expected):
    tree = settings(*flags).tree
    build_run_config(tree, source="test")
    for key in place.split("."):
        tree = tree[key]
    assert tree == expected


PRODIGY = ["d_coef=2", "d0=1e-5", "growth_rate=1.02", "safeguard_warmup=True", "weight_decay=0.01"]


@pytest.mark.parametrize(
    ("name", "given"), [("Prodigy", PRODIGY), ("DAdaptAdam", ["growth_rate=1.02"])]
)
def test_optimizers_that_find_their_rate_take_the_arguments_of_their_own_packages(name, given):
    given = ["decouple=True", "use_bias_correction=True", *given]
    tree = settings(
        f"--optimizer_type={name}", "--learning_rate=1", "--optimizer_args", *given
    ).tree
    config = build_run_config(tree, source="test").optimizer
    expected = {"weight_decouple", "bias_correction"} | {pair.split("=")[0] for pair in given[2:]}
    assert config.arguments.keys() == expected - {"weight_decay"}
    build_optimizer([TrainedModule("unet", nn.Linear(2, 2), 1.0)], config)


@pytest.mark.parametrize(
    "name", ["DAdaptation", "DAdaptAdamPreprint", "DAdaptAdan", "DAdaptAdanIP"]
)
def test_an_optimizer_in_the_place_of_another_is_told(name):
    (told,) = [n for n in settings(f"--optimizer_type={name}").notices if "optimizer_type" in n]
    assert told.startswith(f"--optimizer_type={name}: ")
    assert "other rates than the one in sd-scripts" in told


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--use_8bit_adam", "--optimizer_type=Lion"], "contradict each other"),
        (
            ["--optimizer_type=Prodigy", "--optimizer_args", "decouple=False", "weight_decay=0.1"],
            "would have no effect here",
        ),
        (["--resolution=big"], "expected 512 or 512,768"),
        (["--sample_every_n_steps=5"], "needs --sample_prompts"),
        (["--optimizer_args", "betas"], "expected key=value"),
        (["--learnin_rate=1"], "The nearest is --learning_rate"),
        (["--max_train_steps=many"], "expected a number"),
        (["--mixed_precision=fp8"], "choose one of no, fp16, bf16"),
        (["--save_n_epoch_ratio=5"], "Give --save_every_n_epochs instead"),
        (["--lr_scheduler_args", "min_lr"], "expected key=value"),
        (
            ["--lr_scheduler=polynomial", "--lr_scheduler_args", "lr_end=0"],
            "has lr_end, which --lr_scheduler polynomial does not accept here: remove it",
        ),
        (
            ["--lr_scheduler=polynomial", "--lr_scheduler_args", "power=2"],
            "does not accept here: give --lr_scheduler_power",
        ),
        ([*MIN_LR, "--lr_scheduler_args", "lr=1"], "it accepts min_lr or min_lr_rate"),
        ([*MIN_LR, "--lr_scheduler_args", "min_lr=x"], "'min_lr=x'; expected a number"),
        (
            [*MIN_LR, "--lr_scheduler_min_lr_ratio=0.2", "--lr_scheduler_args", "min_lr_rate=0.1"],
            "is given twice",
        ),
    ],
)
def test_what_cannot_be_is_explained(flags, words):
    with pytest.raises(ConfigError, match=words):
        settings(*flags)


def test_only_flags_that_are_given_are_to_be_taken_out():
    words = ["--optimizer_type=prodigy", "--learning_rate=1", "--train_text_encoder"]
    given = parse_flags(FINE_TUNE, [*NEEDED, *words, "--learning_rate_te=0.5"])
    with pytest.raises(ConfigError) as caught:
        build_settings(FINE_TUNE, given, translate.translate(FINE_TUNE, given).tree)
    assert "Remove --learning_rate_te, or choose an --optimizer_type" in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--train_batch_size=0"], "--train_batch_size: expected 1 or more (found 0)"),
        (["--resolution=0"], "--resolution: expected 8 or more (found 0)"),
        (["--save_every_n_steps=0"], "--save_every_n_steps: expected 1 or more (found 0)"),
        (["--optimizer_args", "betas=3"], "--optimizer_args: expected a list (found 3)"),
        (["--lr_scheduler=piecewise_constant"], "--lr_scheduler_args is ''; expected value:step"),
        (["--huber_c=0"], "--huber_c has no effect on --loss_type l2"),
        (["--dataset_repeats=0"], "--dataset_repeats is 0 in every subset"),
    ],
)
def test_faults_of_settings_are_told_in_flags(flags, told):
    given = parse_flags(FINE_TUNE, [*NEEDED, *flags])
    with pytest.raises(ConfigError) as caught:
        build_settings(FINE_TUNE, given, translate.translate(FINE_TUNE, given).tree)
    assert str(caught.value).startswith(f"fine_tune.py: {told}")


def test_what_has_to_be_given_is_named():
    for missing in NEEDED[:2]:
        given = parse_flags(FINE_TUNE, [word for word in NEEDED if word != missing])
        with pytest.raises(ConfigError, match=missing.partition("=")[0]):
            translate.translate(FINE_TUNE, given)
    with pytest.raises(ConfigError, match="--dataset_config, or --train_data_dir"):
        translate.translate(FINE_TUNE, parse_flags(FINE_TUNE, NEEDED[:2]))


@pytest.mark.parametrize(
    ("words", "native", "computed", "weights"),
    [
        (["--mixed_precision=fp16"], "bf16", "bf16", None),
        (["--mixed_precision=fp16"], "no", "no", None),
        (["--mixed_precision=bf16"], "no", "no", None),
        (["--mixed_precision=fp16", "--full_fp16"], "bf16", "bf16", "bf16"),
        (["--mixed_precision=bf16", "--full_bf16"], "no", "no", None),
    ],
)
def test_without_a_gpu_the_cpu_computes_in_what_it_is_fast_in(words, native, computed, weights):
    without_gpu = NativePrecision(native, "this CPU is fastest in that")
    translation = translate.translate(
        FINE_TUNE, parse_flags(FINE_TUNE, [*NEEDED, *words]), without_gpu
    )
    assert translation.tree["training"]["mixed_precision"] == computed
    assert translation.tree["training"].get("weight_dtype") == weights
    told = " ".join(translation.notices)
    assert "there is no GPU and this CPU is fastest in that" in told
    assert ("float32" in told) == (computed == "no")


def test_what_the_cpu_is_fast_in_anyway_is_not_remarked_on():
    flags = parse_flags(FINE_TUNE, [*NEEDED, "--mixed_precision=bf16"])
    with_gpu, without = (
        translate.translate(FINE_TUNE, flags, native)
        for native in (None, NativePrecision("bf16", "so it is"))
    )
    assert with_gpu == without


def test_a_file_of_flags_comes_second(tmp_path):
    file = tmp_path / "flags.toml"
    file.write_text("[a]\nlearning_rate = 1e-4\n[b]\nclip_skip = 2\nv2 = false\n", encoding="utf-8")
    found = parse_flags(FINE_TUNE, [f"--config_file={file}", "--learning_rate=3e-4"])
    assert found == {"learning_rate": 3e-4, "clip_skip": 2}
    file.write_text("learning_rat = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"flags\.toml: .*The nearest is --learning_rate"):
        parse_flags(FINE_TUNE, [f"--config_file={file}"])


def test_a_command_becomes_settings_that_say_where_they_come_from():
    command = ["accelerate", "launch", "--num_cpu_threads_per_process", "1", "fine_tune.py"]
    text = command_to_toml([*command, *NEEDED, "--clip_skip=2", "--log_prefix=x"])
    assert "clip_skip = 2  # --clip_skip\n" in text
    assert "lr = 2e-06  # --learning_rate, by default\n" in text
    assert "# --log_prefix: metrics go to metrics.jsonl" in text
    import tomllib

    build_run_config(tomllib.loads(text), source="test")
    with pytest.raises(ConfigError, match=r"train_network\.py is not one of .* fine_tune\.py"):
        command_to_toml(["python", "train_network.py"])


def test_the_page_of_flags_is_current():
    program = [sys.executable, "scripts/write_flag_docs.py", "--check"]
    assert subprocess.run(program, cwd=REPOSITORY, check=False).returncode == 0, (
        "run scripts/write_flag_docs.py"
    )
