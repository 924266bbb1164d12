"""sd-scripts' command as in its guide, on the nano model; prompt files; checkpoints on the way."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from flat_models import one_level_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.warm import running

from impasto.cli.main import impasto as commands
from impasto.errors import ConfigError, RunError
from impasto.sampling.prompt_files import read_prompt_file
from impasto.sampling.prompts import Prompt
from impasto.sdscripts import drop_in
from impasto.sdscripts.flag import FINE_TUNE
from impasto.training.trainer import resume, train

nano_model = one_level_model

SCRIPT = Path(__file__).parents[2] / "fine_tune.py"


@pytest.fixture
def project(tmp_path, pictures, nano_model, ldm_file):
    """A checkpoint, metadata, and a dataset configuration, as in sd-scripts' guide."""
    entries = {path.stem: {"caption": path.read_text()} for path in pictures.glob("*.txt")}
    (tmp_path / "meta.json").write_text(json.dumps(entries), encoding="utf-8")
    (tmp_path / "dataset.toml").write_text(
        f"""
[general]
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 96
bucket_reso_steps = 32

[[datasets]]
resolution = 80
batch_size = 4

  [[datasets.subsets]]
  metadata_file = "{(tmp_path / "meta.json").as_posix()}"
  image_dir = "{pictures.as_posix()}"
""",
        encoding="utf-8",
    )
    return ldm_file(nano_model)


def test_the_literal_command_of_the_guide(tmp_path, project):
    """Launcher, 8-bit Adam, xformers and fp16 are accepted; on a CPU their absence is reported."""
    accelerate = ("-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1")
    done = running.run(
        *accelerate,
        SCRIPT,
        f"--pretrained_model_name_or_path={project}",
        f"--output_dir={tmp_path / 'out'}",
        "--output_name=mine",
        f"--dataset_config={tmp_path / 'dataset.toml'}",
        "--save_model_as=safetensors",
        "--learning_rate=5e-6",
        "--max_train_steps=3",
        "--use_8bit_adam",
        "--xformers",
        "--gradient_checkpointing",
        "--mixed_precision=fp16",
        "--save_every_n_steps=1",
        "--save_last_n_steps=1",
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == [
        "mine-run", "mine-step00000001.safetensors", "mine-step00000002.safetensors",
        "mine.safetensors",
    ]  # fmt: skip
    assert "--xformers: " in done.stdout
    if not torch.cuda.is_available():
        assert "as there is no GPU and" in done.stdout
    before, after = load_file(project), load_file(out / "mine.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("model.diffusion_model.") for name in changed)
    assert len(changed) > 50
    with safe_open(out / "mine.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "mine"
    assert metadata["modelspec.resolution"] == "80x80"
    status = json.loads((out / "mine-run" / "status.json").read_text())
    assert status["model"] == "../mine.safetensors"  # relative to the run directory


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_command_can_be_repeated_and_resumed(tmp_path, project, capsys):
    words = [
        f"--pretrained_model_name_or_path={project}",
        f"--output_dir={tmp_path / 'out'}",
        f"--dataset_config={tmp_path / 'dataset.toml'}",
        "--max_train_epochs=2",
        "--save_every_n_epochs=1",
        "--save_model_as=diffusers",
        "--seed=3",
    ]
    drop_in.run(FINE_TUNE, words)
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"last-000001", "last", "last-run"}
    capsys.readouterr()
    drop_in.run(FINE_TUNE, [*words, f"--resume={out / 'last-run'}"])
    assert "Continuing" in capsys.readouterr().out
    with pytest.raises(RunError, match="is not a run of Impasto"):
        drop_in.run(FINE_TUNE, [*words, f"--resume={tmp_path}"])


def test_faults_of_the_command_are_one_sentence(project, tmp_path, capsys):
    words = [f"--pretrained_model_name_or_path={project}", f"--output_dir={tmp_path / 'o'}"]
    for extra, expected in (
        (["--learnin_rate=1"], "no flag --learnin_rate. The nearest is --learning_rate"),
        (["--deepspeed"], "--deepspeed is not supported"),
        ([], "Give --dataset_config, or --train_data_dir"),
        ([f"--dataset_config={tmp_path / 'none.toml'}"], "none.toml does not exist"),
    ):
        with pytest.raises(SystemExit) as end:
            drop_in.main(FINE_TUNE, [*words, *extra])
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert expected in " ".join(said.split())
        assert "Traceback" not in said
    assert not (tmp_path / "o").exists()


def test_an_old_command_is_imported_and_planned(tmp_path, project):
    command = (
        f"accelerate launch fine_tune.py --pretrained_model_name_or_path={project.as_posix()} "
        f"--output_dir={(tmp_path / 'out').as_posix()} --seed=1 "
        f"--dataset_config={(tmp_path / 'dataset.toml').as_posix()} --max_train_steps=3"
    )
    file = str(tmp_path / "run.toml")
    done = CliRunner().invoke(commands, ["import-command", command, "--out", file])
    assert done.exit_code == 0, done.output
    planned = CliRunner().invoke(commands, ["train", file, "--plan"])
    assert planned.exit_code == 0, planned.output
    assert "3 in all" in planned.stdout


PROMPTS = {
    "p.txt": "# of cats\n"
    "a cat --n dog --w 70 --h 128 --d 5 --l 3.5 --s 4 --ss k_euler\n\na (big) dog\n",
    "p.toml": """
[prompt]
width = 64
[[prompt.subset]]
prompt = "a cat"
negative_prompt = "dog"
height = 128
seed = 5
scale = 3.5
sample_steps = 4
sample_sampler = "k_euler"
[[prompt.subset]]
prompt = "a (big) dog"
""",
    "p.json": json.dumps(
        [
            {
                "prompt": "a cat", "negative_prompt": "dog", "width": 64, "height": 128,
                "seed": 5, "scale": 3.5, "sample_steps": 4, "sample_sampler": "k_euler",
            },
            "a (big) dog --w 64",
        ]
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROMPTS)
def test_prompt_files_of_each_form(tmp_path, name):
    file = tmp_path / name
    file.write_text(PROMPTS[name], encoding="utf-8")
    defaults = Prompt("", seed=10, width=64, height=64)
    assert read_prompt_file(file, defaults) == [
        Prompt("a cat", "dog", 5, 64, 128, 4, 3.5, "euler"),
        Prompt("a (big) dog", "", 11, 64, 64, 20, 7.0, "ddim"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.txt", "a\nb --x 3", "p.txt, line 2: --x is unknown; expected --n, --w"),
        ("p.txt", "a --w wide", "line 1: width is 'wide'; expected a number"),
        ("p.txt", "a --ss magic", "there is no sampler 'magic'"),
        ("p.txt", "a --cn x.png", "is for ControlNet images"),
        ("p.txt", "# nothing", "has no prompt in it"),
        ("p.toml", "[x]", "has no [prompt]"),
        ("p.json", '{"prompt": "a"}', "expected a list of prompts"),
        ("p.json", "[1]", "prompt 1 is 1"),
        ("p.csv", "a", "does not end in .txt"),
    ],
)
def test_faults_in_prompt_files_are_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_prompt_file(tmp_path / name, Prompt(""))
    assert words in str(caught.value)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_broken_prompt_file_is_found_before_anything_is_made(train_config, tmp_path):
    config = train_config(previews={"prompt_file": str(tmp_path / "none.txt")})
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
        train(config)
    assert not config.output_dir.exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_each_sampler_draws(train_config, tmp_path):
    """One sampler is chosen by the setting, the others by a prompt's option."""
    named = ("lms", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsingle")
    plain = "a ball --w 32 --h 32 --s 3"
    lines = [plain, *(f"{plain} --d 1 --ss {sampler}" for sampler in named)]
    (tmp_path / "p.txt").write_text("\n".join(lines), encoding="utf-8")
    run = train(
        train_config(
            previews={
                "prompt_file": str(tmp_path / "p.txt"),
                "sampler": "heun",
                "every_epochs": 1,
                "at_first": False,
            },
            training={"max_steps": 2},
        )
    )
    assert run.sampled_steps() == [2]
    drawn = []
    for image in sorted((run.samples / "step-00000002").glob("*.png")):
        with Image.open(image) as opened:
            low, high = opened.convert("L").getextrema()
            assert high - low > 10, image.name  # NaN would be one colour
            drawn.append(opened.tobytes())
    assert len(drawn) == len(set(drawn)) == len(lines), "each gives another image"


@pytest.mark.usefixtures("fresh_accelerate")
def test_models_on_the_way_are_kept_and_resuming_makes_the_same(train_config, tmp_path):
    saving = {"model_every_steps": 2, "keep_models": 2, "format": "safetensors",
              "state_every_steps": 3}  # fmt: skip
    run = train(train_config(training={"max_steps": 9}, saving=saving))
    models = sorted(p.name for p in (run.path / "models").iterdir())
    assert models == ["model-step00000006.safetensors", "model-step00000008.safetensors"]
    before = (run.path / "models" / models[-1]).read_bytes()
    import shutil

    shutil.rmtree(run.states / "step-00000009")
    (run.path / "models" / models[-1]).unlink()
    again = resume(run.path)
    kept = load_file(again.path / "models" / models[-1])
    (tmp_path / "x.safetensors").write_bytes(before)
    expected = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ({"keep_epoch_models": 1}, ["000002", "step00000003", "step00000006", "step00000009"]),
        ({"keep_step_models": 1}, ["000001", "000002", "step00000009"]),
        ({"keep_models": 2, "keep_epoch_models": 1}, ["000002", "step00000006", "step00000009"]),
    ],
)
def test_models_by_steps_and_by_epochs_have_limits_of_their_own(train_config, limit, kept):
    saving = {"model_every_steps": 3, "model_every_epochs": 1, "format": "safetensors", **limit}
    run = train(train_config(training={"max_steps": 10}, saving=saving))
    names = sorted(p.name for p in (run.path / "models").iterdir())
    assert names == [f"model-{ending}.safetensors" for ending in kept]
