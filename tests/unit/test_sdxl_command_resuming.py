"""`sdxl_train.py --resume` with flags: what they mean follows from what the run has."""

import pytest
import tomli_w

from impasto.runs import RunDirectory
from impasto.sdscripts.flag import SDXL_TRAIN
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.resuming import resumed_config
from impasto.sdscripts.translate import translate
from impasto.training.precision import NativePrecision

NEEDED = ["--pretrained_model_name_or_path=xl.safetensors", "--output_dir=out",
          "--train_data_dir=pictures", "--resolution=1024", "--seed=1"]  # fmt: skip
SLOW = NativePrecision("no", "this CPU has no bf16")


def resumed(tmp_path, started, given, without_gpu=None):
    """The settings of a run that was started with some flags, and goes on with others."""
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
    assert not config.method.train_text_encoder  # a change, which the state is held against
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
