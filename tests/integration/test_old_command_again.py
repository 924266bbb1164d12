"""The old command: earlier runs are kept, --resume takes flags, import-command keeps them."""

import json
import shlex

import pytest
from conftest import draw_images
from flat_models import one_level_model
from runs import copied

from impasto.config.load import build_run_config
from impasto.config.setting_files import read_toml
from impasto.errors import ConfigError, RunError
from impasto.runs import RunDirectory
from impasto.sdscripts import drop_in as program
from impasto.sdscripts.flag import FINE_TUNE, SCRIPTS
from impasto.sdscripts.flags import flags_of
from impasto.sdscripts.import_command import _tokens
from impasto.sdscripts.importing import command_to_toml
from impasto.sdscripts.origins import BY_RULE
from impasto.sdscripts.parsing import parse_flags
from impasto.sdscripts.translate import translate
from impasto.training.compute.precision import NativePrecision
from impasto.training.trainer import resume

nano_model = one_level_model

SLOW = NativePrecision("no", "this CPU has no bf16")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder of images. Read-only by agreement."""
    return draw_images(tmp_path_factory.mktemp("project"), 13)


def words_for(project, model, out):
    """Return the flags of a command that trains two steps."""
    return [
        f"--pretrained_model_name_or_path={model}",
        f"--train_data_dir={project}",
        "--resolution=64",
        "--min_bucket_reso=64",
        "--max_bucket_reso=64",
        f"--output_dir={out}",
        "--output_name=mine",
        "--save_model_as=safetensors",
        "--learning_rate=1e-3",
        "--max_train_steps=2",
        "--train_batch_size=4",
        "--seed=3",
    ]


@pytest.fixture
def words(project, nano_model, tmp_path):
    return words_for(project, nano_model, tmp_path / "out")


@pytest.fixture(scope="module")
def trained_once(project, nano_model, tmp_path_factory):
    """The run of `words_for`. Read-only by agreement."""
    out = tmp_path_factory.mktemp("trained") / "out"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(program, "_machine", slow_machine)
        program.run(FINE_TUNE, words_for(project, nano_model, out))
    return out


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of that run in a folder of this test."""
    return copied(RunDirectory(trained_once / "mine-run"), tmp_path / "out").path


def slow_machine():
    return {"without_gpu": SLOW, "has_tensorboard": False}


@pytest.fixture(autouse=True)
def _on_any_machine(monkeypatch):
    monkeypatch.setattr(program, "_machine", slow_machine)


def with_flags(words, *changes):
    names = {change.partition("=")[0] for change in changes}
    return [w for w in words if w.partition("=")[0] not in names] + list(changes)


def test_a_repeated_command_replaces_no_model(words, trained, tmp_path):
    model = tmp_path / "out" / "mine.safetensors"
    before = model.read_bytes()
    with pytest.raises(RunError, match=r"mine\.safetensors already exists"):
        program.run(FINE_TUNE, with_flags(words, "--learning_rate=1e-4"))
    assert model.read_bytes() == before
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["mine-run", "mine.safetensors"]
    assert trained.name == "mine-run"


def test_resume_takes_more_steps_and_another_name(words, trained, tmp_path, capsys):
    out = tmp_path / "out"
    program.run(FINE_TUNE, with_flags(words, "--output_name=whole", "--max_train_steps=4"))
    first = (out / "mine.safetensors").read_bytes()
    again = with_flags(words, "--max_train_steps=4", "--output_name=longer")
    program.run(FINE_TUNE, [*again, f"--resume={trained}"])
    assert "with the given flags" in capsys.readouterr().out
    assert (out / "mine.safetensors").read_bytes() == first
    assert json.loads((trained / "status.json").read_text())["step"] == 4
    states = [out / f"{name}-run/states/step-00000004/weights.safetensors" for name in
              ("whole", "mine")]  # fmt: skip
    assert states[0].read_bytes() == states[1].read_bytes()
    assert (out / "longer.safetensors").is_file()
    kept = read_toml(trained / "config.toml")
    assert (kept["training"]["max_steps"], kept["saving"]["name"]) == (4, "longer")


def test_resume_takes_few_flags(trained):
    state = trained / "states" / "step-00000002"
    program.run(FINE_TUNE, [f"--resume={state}", "--max_train_steps=3"])
    assert json.loads((trained / "status.json").read_text())["step"] == 3
    with pytest.raises(RunError, match="is not the newest state"):
        program.run(FINE_TUNE, [f"--resume={state}", "--max_train_steps=4"])


def test_resume_refuses_what_changes_numbers_and_leaves_the_run(words, trained):
    before = (trained / "config.toml").read_bytes()
    changed = with_flags(words, "--max_train_steps=4", "--learning_rate=1e-4")
    with pytest.raises(RunError, match=r"optimizer\.lr \(was 0\.001, is 0\.0001\)"):
        program.run(FINE_TUNE, [*changed, f"--resume={trained}"])
    assert (trained / "config.toml").read_bytes() == before


def test_a_resume_that_would_be_shorter_leaves_the_run(words, trained):
    """A shorter run is refused after the state is loaded, later than changed results are."""
    before = (trained / "config.toml").read_bytes()
    with pytest.raises(RunError, match="can be made longer, not shorter"):
        program.run(FINE_TUNE, with_flags(words, "--max_train_steps=1", f"--resume={trained}"))
    assert (trained / "config.toml").read_bytes() == before
    assert resume(trained).saved_steps() == [2]


def test_flags_that_the_old_program_takes_without_effect_are_taken(words):
    flags = parse_flags(FINE_TUNE, [*words, "--fused_backward_pass", "--logging_dir=logs"])
    translation = translate(FINE_TUNE, flags, SLOW, has_tensorboard=False)
    said = " ".join(translation.notices)
    assert "--fused_backward_pass: it has no effect in sd-scripts' fine_tune.py" in said
    assert "--logging_dir: TensorBoard is not installed" in said
    assert "logging" not in translation.tree
    there = translate(FINE_TUNE, flags, SLOW, has_tensorboard=True).tree
    assert there["logging"]["trackers"] == ["tensorboard"]


@pytest.mark.parametrize(
    ("scheduler", "nearest"),
    [
        ("CosineAnnealingLR", "The nearest to CosineAnnealingLR is --lr_scheduler cosine."),
        ("torch.optim.lr_scheduler.StepLR", "is --lr_scheduler piecewise_constant."),
        ("my.Own", "--lr_scheduler has the usual shapes."),
    ],
)
def test_classes_of_schedulers_are_refused_with_the_nearest(scheduler, nearest, words):
    with pytest.raises(ConfigError) as caught:
        parse_flags(FINE_TUNE, [*words, f"--lr_scheduler_type={scheduler}"])
    assert nearest in str(caught.value)


def test_any_class_is_an_optimizer(words, tmp_path):
    program.run(FINE_TUNE, [*words, "--optimizer_type=torch.optim.RAdam", "--max_grad_norm=0"])
    kept = read_toml(tmp_path / "out" / "mine-run" / "config.toml")
    assert kept["optimizer"]["kind"] == "torch.optim.RAdam"


GIVEN = {
    "--train_batch_size=1": "batch_size = 1  # --train_batch_size",
    "--optimizer_type=AdamW": 'kind = "adamw"  # --optimizer_type',
    "--lr_scheduler=constant": 'kind = "constant"  # --lr_scheduler',
    "--lr_warmup_steps=0": "warmup_steps = 0  # --lr_warmup_steps",
    "--mixed_precision=no": 'mixed_precision = "no"  # --mixed_precision',
    "--max_grad_norm=1.0": "max_grad_norm = 1.0  # --max_grad_norm",
    "--loss_type=l2": 'kind = "l2"  # --loss_type',
    "--gradient_accumulation_steps=1": "gradient_accumulation_steps = 1",
    "--max_token_length=75": "max_tokens = 75  # --max_token_length",
    "--keep_tokens=0": "keep_tokens = 0  # --keep_tokens",
}


@pytest.mark.parametrize("flag", GIVEN)
def test_what_was_given_is_kept_where_it_is_the_default(flag, words):
    text = command_to_toml(["fine_tune.py", *with_flags(words, flag)])
    assert GIVEN[flag] in text


def test_a_command_is_read_as_its_shell_reads_it(words):
    assert _tokens("accelerate launch fine_tune.py \\\n  --seed=1 \\\r\n --v2") == [
        "accelerate", "launch", "fine_tune.py", "--seed=1", "--v2",
    ]  # fmt: skip
    assert _tokens(r"fine_tune.py --output_dir=C:\train\new --output_name='my style'") == [
        "fine_tune.py", r"--output_dir=C:\train\new", "--output_name=my style",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be read"):
        _tokens("fine_tune.py --output_name='x")
    launched = ["accelerate", "launch", "--num_processes", "2", "fine_tune.py"]
    text = command_to_toml([*launched, *words, "--metadata_title=my style"])
    assert "'--metadata_title=my style'" in text
    assert "# --num_processes 2 belongs to the launcher" in text
    module = ["python", "-m", "accelerate.commands.launch", "--mixed_precision", "bf16"]
    assert "# --mixed_precision bf16 belongs to" in command_to_toml(
        [*module, "fine_tune.py", *words]
    )
    assert "belongs to the launcher" not in command_to_toml(["python", "fine_tune.py", *words])


@pytest.mark.parametrize(
    "path",
    [
        r"\\server\share\img",
        r"C:\out\(new)\x",
        r"C:\train\new",
        "C:\\out\\",
        "/home/me/it#1",
    ],
)
@pytest.mark.parametrize("end", ["\\\n", "^\r\n", "`\n"])
def test_paths_of_windows_stay_whole(path, end):
    words = ["fine_tune.py", "--output_dir", path, "--seed=1", "--output_name=my style"]
    quoted = f"fine_tune.py --output_dir {path} {end} --seed=1 {end} --output_name='my style'"
    assert _tokens(quoted) == words
    assert _tokens(quoted.replace(path, f'"{path}"')) == words


def test_what_a_shell_escapes_is_read_as_it_is_there():
    """Shell completion escapes spaces in names, in commands without a Windows path."""
    line = r"""fine_tune.py --train_data_dir my\ images\ \(1\) --name it\'s --x "a \"b\" c" """
    assert _tokens(line) == shlex.split(line)


def test_each_flag_with_a_rule_is_known():
    every = [flag for script in SCRIPTS for flag in flags_of(script).values()]
    assert set(BY_RULE) <= {flag.name for flag in every}
    ruled = {flag.name for flag in every if not (flag.to or flag.notice or flag.refusal)}
    assert ruled - set(BY_RULE) == {"config_file", "resume"}


def test_imported_settings_are_those_of_the_command(words, tmp_path):
    text = command_to_toml(["fine_tune.py", *words])
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    imported = build_run_config(read_toml(tmp_path / "run.toml"), source="test")
    tree = translate(FINE_TUNE, parse_flags(FINE_TUNE, words)).tree
    assert imported == build_run_config(tree, source="test")
