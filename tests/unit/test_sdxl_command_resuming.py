"""`sdxl_train.py --resume` with flags: their meaning depends on the run's settings."""

import shutil
import tomllib

import pytest
import tomli_w

from impasto import files
from impasto.config.load import build_run_config, dump_toml, load_begun_config
from impasto.errors import ConfigError, RunError
from impasto.runs import RunDirectory
from impasto.sdscripts.flag import SDXL_TRAIN
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.resuming import resumed_config
from impasto.sdscripts.translate import translate
from impasto.training.compute.precision import NativePrecision

NEEDED = ["--pretrained_model_name_or_path=xl.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=1024", "--seed=1"]  # fmt: skip
SLOW = NativePrecision("no", "this CPU has no bf16")


def resumed(tmp_path, started, given, without_gpu=None):
    """Return the settings of a run that was started with some flags, and resumed with others."""
    run = RunDirectory(tmp_path / "r")
    run.path.mkdir()
    tree = translate(SDXL_TRAIN, parse_flags(SDXL_TRAIN, [*NEEDED, *started])).tree
    run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    flags = parse_flags(SDXL_TRAIN, given)
    return resumed_config(SDXL_TRAIN, run, flags, without_gpu=without_gpu, has_tensorboard=False)


RATES = ["--learning_rate_te1=0", "--learning_rate_te2=0"]


@pytest.mark.parametrize("given", [RATES, ["--train_text_encoder", *RATES]])
@pytest.mark.parametrize("started", [[], ["--learning_rate_te1=1e-6", "--learning_rate_te2=1e-7"]])
def test_rates_of_0_end_the_training_of_encoders(tmp_path, started, given):
    config, _ = resumed(tmp_path, ["--train_text_encoder", *started], given)
    assert not config.method.train_text_encoder  # a change, which the state is compared with
    assert config.method.text_encoder_lrs == {}


@pytest.mark.parametrize("fused", ["--fused_backward_pass", "--fused_optimizer_groups=4"])
@pytest.mark.parametrize(
    ("started", "expected"),
    [
        ([], "last_norm"),
        (["--mixed_precision=bf16"], "last_norm"),
        (["--max_grad_norm=0"], "exact"),
        (["--mixed_precision=fp16"], "exact"),
    ],
)
def test_a_flag_that_is_given_again_changes_nothing(tmp_path, fused, started, expected):
    config, notices = resumed(tmp_path, [fused, *started], [fused], SLOW)
    assert config.training.optimizer_in_backward == expected
    assert all(notice.startswith(fused.partition("=")[0]) for notice in notices)


def test_groups_on_a_run_that_adds_gradients_up_have_no_effect(tmp_path):
    fused = "--fused_optimizer_groups=4"
    config, notices = resumed(tmp_path, ["--gradient_accumulation_steps=2", fused], [fused])
    assert config.training.optimizer_in_backward == "off"
    assert notices[0].startswith("--fused_optimizer_groups: weights change after all 2")


def test_weights_in_16_bits_go_with_the_precision_of_the_run(tmp_path):
    words = ["--mixed_precision=bf16", "--full_bf16"]
    config, _ = resumed(tmp_path, words, words[1:])
    assert (config.training.mixed_precision, config.training.weight_dtype) == ("bf16", "bf16")


DRAWN = ["--sample_prompts=p.txt", "--sample_every_n_steps=50", "--sample_at_first"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--sample_every_n_steps=5"], ("p.txt", 5, None, True)),
        (["--sample_every_n_epochs=2"], ("p.txt", 200, 2, True)),
        (["--sample_prompts=new.txt"], ("new.txt", 50, None, True)),
        (["--sample_at_first"], ("p.txt", 50, None, True)),
    ],
)
def test_previews_of_a_run_may_change(tmp_path, given, expected):
    config, notices = resumed(tmp_path, DRAWN, given)
    drawn = config.previews
    found = (str(drawn.prompt_file), drawn.every_steps, drawn.every_epochs, drawn.at_first)
    assert found == expected
    assert notices == ()


def test_an_interval_in_steps_replaces_one_in_epochs(tmp_path):
    started = [DRAWN[0], "--sample_every_n_epochs=1"]
    config, _ = resumed(tmp_path, started, ["--sample_every_n_steps=5"])
    assert (config.previews.every_steps, config.previews.every_epochs) == (5, None)


def test_a_run_without_previews_needs_prompts_and_an_interval(tmp_path):
    with pytest.raises(ConfigError, match="--sample_every_n_steps needs --sample_prompts"):
        resumed(tmp_path, [], ["--sample_every_n_steps=5"])
    shutil.rmtree(tmp_path / "r")
    config, notices = resumed(tmp_path, [], [DRAWN[0]])
    assert config.previews.prompt_file is None
    assert notices[0].startswith("--sample_prompts: it has no effect without --sample_every")


def test_the_epochs_of_a_run_are_known(tmp_path):
    config, _ = resumed(tmp_path, ["--max_train_epochs=10"], ["--save_n_epoch_ratio=5"])
    assert (config.saving.model_every_epochs, config.training.max_epochs) == (2, 10)


def test_flags_of_the_rate_go_with_the_schedule_of_the_run(tmp_path):
    least = ["--lr_scheduler=cosine_with_min_lr", "--learning_rate=1e-4"]
    argument = ["--lr_scheduler_args", "min_lr=1e-5"]
    config, notices = resumed(tmp_path, [*least, *argument], argument)
    assert (config.schedule.kind, config.schedule.min_lr_ratio) == (
        "cosine_with_min_lr", pytest.approx(0.1),
    )  # fmt: skip
    assert notices == ()


def test_a_fall_at_the_end_stays_that_of_the_run(tmp_path):
    falls = ["--lr_scheduler=warmup_stable_decay", "--lr_decay_steps=20", "--lr_warmup_steps=5"]
    config, notices = resumed(tmp_path, falls, ["--lr_scheduler_min_lr_ratio=0.1"])
    schedule = config.schedule
    assert (schedule.kind, schedule.decay_steps, schedule.min_lr_ratio) == (
        "warmup_stable_decay", 20, 0.1,
    )  # fmt: skip
    assert notices == ()


@pytest.mark.parametrize("kept", [["--save_last_n_steps=4"], ["--save_last_n_epochs=2"]])
def test_a_limit_of_one_kind_of_models_leaves_the_other(tmp_path, kept):
    every = ["--save_every_n_steps=2", "--save_every_n_epochs=1"]
    config, _ = resumed(tmp_path, every, kept)
    limits = (config.saving.kept_step_models, config.saving.kept_epoch_models)
    assert limits == ((3, None) if "steps" in kept[0] else (None, 2))


def folders_of(tmp_path, *names):
    """Write folders named `N_class` in one folder."""
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    return tmp_path / names[0].partition("/")[0]


def begun(tmp_path, started):
    """Write a run with its settings, whose flags name its images."""
    flags = parse_flags(SDXL_TRAIN, [*NEEDED, *started])
    config = build_run_config(translate(SDXL_TRAIN, flags).tree, source="test")
    run = RunDirectory(tmp_path / "r")
    run.path.mkdir()
    run.config_file.write_text(dump_toml(config), encoding="utf-8")
    return run, config


def again(run, given):
    flags = parse_flags(SDXL_TRAIN, given)
    return resumed_config(SDXL_TRAIN, run, flags, without_gpu=SLOW, has_tensorboard=False)


def test_a_fall_of_1_point_0_steps_that_a_run_has_stays(tmp_path):
    """A flag may not be 1.0; earlier versions took it for one step."""
    run, _ = begun(tmp_path, ["--lr_scheduler=warmup_stable_decay", "--lr_decay_steps=20"])
    text = run.config_file.read_text(encoding="utf-8")
    assert "decay_steps = 20\n" in text
    formerly = text.replace("decay_steps = 20\n", "decay_steps = 1.0\n")
    run.config_file.write_text(formerly, encoding="utf-8")
    config, _ = again(run, ["--lr_scheduler_min_lr_ratio=0.1"])
    assert (config.schedule.decay_steps, config.schedule.min_lr_ratio) == (1, 0.1)


BUCKETS = ["--enable_bucket", "--min_bucket_reso=512", "--keep_tokens=2", "--flip_aug"]


@pytest.mark.parametrize(
    ("started", "given"),
    [
        ([], ["--train_data_dir=pictures"]),
        (["--in_json=meta.json"], ["--in_json=meta.json"]),
        (["--in_json=meta.json"], ["--train_data_dir=pictures"]),
    ],
)
def test_a_folder_that_is_named_again_leaves_the_rest_of_the_dataset(tmp_path, started, given):
    run, config = begun(tmp_path, [*BUCKETS, *started])
    found, notices = again(run, given)
    assert found.dataset == config.dataset
    assert notices == ()
    assert again(run, [*given, "--keep_tokens=3"])[0].dataset.keep_tokens == 3


def test_folders_with_classes_that_are_named_again_leave_the_rest(tmp_path):
    trained = folders_of(tmp_path, "mine/10_sks dog", "mine/2_sks cat")
    regular = folders_of(tmp_path, "others/1_dog")
    named = [f"--train_data_dir={trained}", f"--reg_data_dir={regular}"]
    run, config = begun(tmp_path, [*BUCKETS, *named])
    assert again(run, named)[0].dataset == config.dataset


def test_a_part_of_the_images_is_refused_in_a_sentence(tmp_path, monkeypatch):
    """Nothing is searched for in the current folder."""
    trained = folders_of(tmp_path, "mine/10_sks dog")
    regular = folders_of(tmp_path, "others/1_dog")
    monkeypatch.chdir(trained)
    named = [f"--train_data_dir={trained}", f"--reg_data_dir={regular}"]
    run, _ = begun(tmp_path, named)
    for flag in named:
        name = flag.partition("=")[0]
        with pytest.raises(RunError, match=f"^{name} with --resume name.*all flags that name its"):
            again(run, [flag])
    plain = folders_of(tmp_path, "plain/else")
    with pytest.raises(RunError, match="other images than those of the run"):
        again(run, [f"--train_data_dir={plain}"])


def test_a_dataset_configuration_says_that_flags_count_with_it(tmp_path):
    (tmp_path / "ds.toml").write_text(
        '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pictures"\n', encoding="utf-8"
    )
    named = f"--dataset_config={tmp_path / 'ds.toml'}"
    run, _ = begun(tmp_path, [named, "--keep_tokens=2"])
    _, notices = again(run, [named, "--keep_tokens=2", "--resolution=1024"])
    assert notices == ()
    _, notices = again(run, [named, "--resolution=1024"])
    assert "Give all those that the run was started with" in notices[0]


def test_paths_of_the_run_and_of_flags_begin_in_folders_of_their_own(tmp_path, monkeypatch):
    begun_in = folders_of(tmp_path, "begun/pictures").absolute()
    run, _ = begun(tmp_path, [])
    files.write_json(run.status_file, {"folder": str(begun_in)})
    folders_of(tmp_path, "here/more")
    (tmp_path / "here" / "p.txt").write_text("a cat", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "here")
    drawn = ["--sample_prompts=p.txt", "--sample_every_n_steps=5"]
    config, _ = again(run, [*drawn, "--output_dir=out"])
    assert config.dataset.image_dir == begun_in / "pictures"
    assert config.previews.prompt_file == tmp_path / "here" / "p.txt"
    assert config.saving.model_dir == tmp_path / "here" / "out"


IDLE = "enable_bucket = false\nbucket_no_upscale = true\n"
OWN = "enable_bucket = true\nbuckets = [[1024, 1024]]\n"


@pytest.mark.parametrize("formerly", [False, True])
@pytest.mark.parametrize("kept", [IDLE, OWN])
def test_a_dataset_configuration_means_what_it_meant_when_the_run_began(tmp_path, kept, formerly):
    """Earlier versions kept ineffective bucket settings, and preferred metadata to buckets."""
    (tmp_path / "ds.toml").write_text(
        f'[[datasets]]\nresolution = 1024\n{kept}[[datasets.subsets]]\nimage_dir = "pictures"\n',
        encoding="utf-8",
    )
    named = f"--dataset_config={tmp_path / 'ds.toml'}"
    run, config = begun(tmp_path, [named])
    (entry,) = config.dataset.datasets
    assert (entry.bucket_no_upscale, entry.bucket_table == "metadata") == (False, kept == IDLE)
    if formerly:
        tree = tomllib.loads(run.config_file.read_text(encoding="utf-8"))
        tree["dataset"]["datasets"][0] |= {
            "bucket_no_upscale": kept == IDLE,
            "bucket_table": "metadata",
        }
        run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
        config = load_begun_config(run.config_file)
    found, notices = again(run, [named])
    assert found.dataset.datasets == config.dataset.datasets
    assert notices == ()
