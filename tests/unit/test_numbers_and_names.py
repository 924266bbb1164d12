"""Invalid numbers and names that are no file names are refused wherever they are given."""

import pytest
from click.testing import CliRunner

from impasto.cli.dataset_caption import caption
from impasto.cli.sample import sample
from impasto.config.load import build_run_config
from impasto.errors import ConfigError
from impasto.models.networks.hypernetwork import load_hypernetworks
from impasto.sampling.prompt_files import read_prompt_file
from impasto.sampling.prompts import Prompt
from impasto.sdscripts.flag import FINE_TUNE
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.translate import translate


def config(overrides, output_dir="runs/mine"):
    tree = {
        "output_dir": output_dir,
        "model": {"path": "base"},
        "dataset": {"image_dir": "pictures"},
        "training": {"max_steps": 1},
    }
    return build_run_config(tree, overrides, source="test")


@pytest.mark.parametrize("word", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    "key",
    [
        "optimizer.lr",
        "optimizer.eps",
        "optimizer.weight_decay",
        "noise.adaptive_scale",
        "noise.offset",
        "timesteps.logit_mean",
        "loss.huber_scale",
        "schedule.warmup_steps",
        "schedule.power",
        "saving.state_every_minutes",
        "previews.guidance_scale",
        "dataset.token_warmup_step",
        "training.max_grad_norm",
        "validation.split",
        "method.text_encoder_lr",
    ],
)
def test_settings_are_finite(key, word):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        config(["loss.kind=huber", f"{key}={word}"])


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.betas=[nan, 0.9]",
        "optimizer.arguments={d_coef = nan}",
        "optimizer.arguments={betas = [0.9, inf]}",
        "method.block_lrs={mid_block = nan}",
        "method={kind = 'hypernetwork', layers = [1, inf, 1]}",
        "method={kind = 'hypernetwork', dropout = [0, nan, 0]}",
        "dataset.face_crop_aug_range=[1.0, nan]",
        "schedule.warmup_steps='nan%'",
    ],
)
def test_numbers_in_lists_and_tables_are_finite(override):
    with pytest.raises(ConfigError):
        config([override])


@pytest.mark.parametrize("rules", ["nan:10, 0.1", "1:10, inf"])
def test_rates_of_rules_are_finite(rules):
    with pytest.raises(ConfigError, match="rules is"):
        config(["schedule.kind=rates", f"schedule.rules='{rules}'"])


@pytest.mark.parametrize(
    "arguments", [["m", "p", "--guidance", "nan"], ["m", "p", "--guidance", "inf"]]
)
def test_options_of_sample_are_finite(arguments):
    result = CliRunner().invoke(sample, arguments)
    assert result.exit_code == 2
    assert "--guidance" in result.output


def test_options_of_caption_are_finite(tmp_path):
    result = CliRunner().invoke(caption, [str(tmp_path), "--top-p", "nan"])
    assert result.exit_code == 2
    assert "is not a finite number" in result.output


@pytest.mark.parametrize("name", ["learning_rate", "noise_offset", "max_grad_norm"])
def test_flags_of_the_old_command_are_finite(name):
    with pytest.raises(ConfigError, match=f"--{name} is 'nan'"):
        parse_flags(FINE_TUNE, [f"--{name}=nan"])


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--lr_warmup_steps=nan", "--lr_warmup_steps is 'nan'"),
        ("--lr_scheduler=adafactor:nan", "--lr_scheduler is 'adafactor:nan'"),
        ("--lr_scheduler=adafactor:x", "--lr_scheduler is 'adafactor:x'"),
        ("--resolution=²", "--resolution is"),
        ("--output_name=sub/style", "--output_name"),
    ],
)
def test_rules_of_the_old_command_refuse_what_is_none(flag, words):
    flags = parse_flags(
        FINE_TUNE,
        ["--pretrained_model_name_or_path=b", "--output_dir=o", "--train_data_dir=p", flag]
        + (["--resolution=64"] if "resolution" not in flag else []),
    )
    with pytest.raises(ConfigError, match=words):
        translate(FINE_TUNE, flags)


def test_strengths_are_finite():
    with pytest.raises(ConfigError, match="expected a number such as"):
        load_hypernetworks(["style.pt:nan"])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a --l nan", "guidance_scale is 'nan'; expected a number"),
        ("a --l inf", "expected a number"),
        ("a --l -1", "guidance_scale is -1.0; expected 0 to 1000"),
        ("a --s 20.5", "steps is '20.5'; expected a number without a fraction"),
        ("a --s 0", "steps is 0; expected 1 to 1000"),
        ("a --d -1", "seed is -1"),
        (f"a --d {2**64}", "seed is"),
        ("a --w 100000", "width is 100000; expected 1 to 8192"),
        ("a --q 5", "--q is unknown"),
    ],
)
def test_options_of_prompts_are_numbers_in_their_range(line, words, tmp_path):
    (tmp_path / "p.txt").write_text(line, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_prompt_file(tmp_path / "p.txt", Prompt(""))
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["20.5", "true", "nan", '"x"'])
def test_whole_numbers_of_a_toml_prompt_are_whole(value, tmp_path):
    text = f'[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a"\nsample_steps = {value}\n'
    (tmp_path / "p.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a number without a fraction"):
        read_prompt_file(tmp_path / "p.toml", Prompt(""))


def test_a_guidance_rescale_in_a_file_is_a_share(tmp_path):
    file = tmp_path / "p.json"
    file.write_text('[{"prompt": "a", "guidance_rescale": 0.5}, {"prompt": "b"}]', encoding="utf-8")
    found = read_prompt_file(file, Prompt(""))
    assert [prompt.guidance_rescale for prompt in found] == [0.5, 0.0]
    file.write_text('[{"prompt": "a", "guidance_rescale": 1.5}]', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"guidance_rescale is 1\.5; expected 0 to 1"):
        read_prompt_file(file, Prompt(""))


def test_options_of_prompts_may_be_in_upper_case(tmp_path):
    line = "a cat --N a dog --W 64 --H 128 --D 3 --S 7 --L 2.5 --SS k_euler_a\n"
    (tmp_path / "p.txt").write_text(line, encoding="utf-8")
    (prompt,) = read_prompt_file(tmp_path / "p.txt", Prompt(""))
    assert prompt == Prompt("a cat", "a dog", 3, 64, 128, 7, 2.5, "euler_a")


NAMES = [
    "../escaped",
    "sub/style",
    "sub\\style",
    "..",
    ".",
    "",
    " ",
    "a\0b",
    "a\nb",
    "a\x1bb",
    "a" * 300,
    "é" * 100,
    "CON",
    "nul.v2",
    "com1",
    "LPT9.safetensors",
    "style.",
    "style ",
    "a:b",
    'a"b',
    "what?",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_models_are_names_of_files(name):
    tree = {"output_dir": "r", "model": {"path": "b"}, "dataset": {"image_dir": "p"}}
    tree |= {"training": {"max_steps": 1}, "saving": {"name": name}}
    with pytest.raises(ConfigError, match=r"saving\.name"):
        build_run_config(tree, source="test")


@pytest.mark.parametrize("name", ["my-style", "猫", "v1.5 (test)", "con-style", "a" * 180, "-x"])
def test_usual_names_are_taken(name):
    tree = {"output_dir": "r", "model": {"path": "b"}, "dataset": {"image_dir": "p"}}
    tree |= {"training": {"max_steps": 1}, "saving": {"name": name}}
    assert build_run_config(tree, source="test").export_name == name


def test_the_name_after_the_run_directory_is_one_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config([], ".").export_name == tmp_path.name
    assert config([], "runs/a/..").export_name == "runs"
    for output_dir in ("runs/" + "a" * 200, "runs/nul", "runs/a."):
        with pytest.raises(ConfigError, match=r"saving\.name"):
            config([], output_dir)
        assert config(["saving.name=mine"], output_dir).export_name == "mine"


def test_variants_are_parts_of_file_names():
    with pytest.raises(ConfigError, match=r"model\.variant"):
        config(["model.variant='../x'"])
