"""The contents of `import impasto`: the names, the examples of the guide, and custom parts."""

import math
import re
import shutil
from pathlib import Path

import pytest
import tomli_w
import torch
from click.testing import CliRunner
from component_files import UNET_FILE, VAE_FILE
from flat_models import one_level_model, write_flat_model
from safetensors.torch import load_file

import impasto
from impasto.cli.main import impasto as commands
from impasto.data.records import Size
from impasto.diffusion.loss import squared
from impasto.diffusion.noise import NoiseRecipe
from impasto.diffusion.timesteps import Uniform
from impasto.diffusion.weighting import unweighted
from impasto.errors import ConfigError, DatasetError, ModelError, RunError
from impasto.progress import SilentProgress
from impasto.training.analysis.along import walk
from impasto.training.analysis.posthoc_models import measure

nano_model = one_level_model

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "python.md"
PAGE = GUIDE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_list_of_public_names():
    assert set(impasto.__all__) == {
        "BaseModel", "Batches", "Console", "FullFineTune", "ImpastoError", "Overrides", "Prompt",
        "RunConfig", "RunDirectory", "Sampler", "SilentEvents", "StepRecipe", "Trainable",
        "TrainedModule", "TrainingEvents", "__version__", "build_trainable", "load_base_model",
        "load_run_config", "plan_images", "prepare", "resume", "save_model", "scan_folder", "train",
        "training_step", "write_report",
    }  # fmt: skip
    guide = GUIDE.read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)[`(.]", guide))
    assert not set(impasto.__all__) - named - {"__version__"}


@pytest.fixture(scope="module")
def flat_model(tmp_path_factory, nano_architecture):
    return write_flat_model(nano_architecture, tmp_path_factory.mktemp("models") / "flat")


@pytest.fixture
def desk(tmp_path, run_values, flat_model, pictures, monkeypatch):
    """A folder with the names used in the examples: my.toml, base, pictures."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(flat_model, "base")
    values = {**run_values, "output_dir": "runs/mine", "model": {"path": str(flat_model)}}
    values["training"] = {**values["training"], "max_steps": 3}
    Path("my.toml").write_text(tomli_w.dumps(values), encoding="utf-8")
    return tmp_path


SIZES = "resolution=80, min_bucket_reso=32, max_bucket_reso=96, bucket_reso_steps=32"


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_guide_run(number, desk):
    """The examples run unchanged on a CPU, with the nano model's sizes."""
    text = EXAMPLES[number].replace('"cuda"', '"cpu"').replace("resolution=512", SIZES)
    text = text.replace("steps(100)", "steps(3)").replace("seed=3", "seed=3, width=32, height=32")
    exec(compile(text, f"example {number}", "exec"), {"__name__": "example"})
    made = Path("mine.safetensors") if "save_model" in text else Path("runs/mine/export/model")
    assert made.exists()
    if "save_model" in text:
        before, after = impasto.load_base_model("base"), impasto.load_base_model(made)
        moved = before.unet.conv_in.weight - after.unet.conv_in.weight
        assert moved.abs().max() > 0
        assert Path("ball.png").stat().st_size > 0
    if "less_where_noisy" in text:
        require_resumed_as_the_page_says()


def require_resumed_as_the_page_says():
    """Require that a finished run resumes, and one with steps left is refused with the shown
    message.
    """
    told, shown = re.search(
        r"In this example the run above(.*?)```\n\$ impasto (.*?)\n```", PAGE, re.S
    ).groups()
    command, _, error = shown.partition("\n")
    finished = CliRunner().invoke(commands, command.split())
    assert "is finished; its model is" in finished.output
    [longer] = re.findall(r"`max_steps = \d+`", told)
    settings = Path("runs/mine/config.toml")
    text = settings.read_text(encoding="utf-8").replace("max_steps = 3", longer.strip("`"))
    settings.write_text(text, encoding="utf-8")
    refused = CliRunner().invoke(commands, command.split())
    assert refused.exit_code != 0
    plain = " ".join(str(refused.exception).split())
    expected = " ".join(error.split()).removeprefix("... Error: ").replace("00000020", "00000003")
    begins = expected.partition("(was")[0]
    assert "cannot be resumed exactly" in begins
    assert plain.startswith(begins)


def test_there_are_the_examples_that_the_page_promises():
    assert len(EXAMPLES) == 4
    weight, loop, *_ = EXAMPLES
    weight = weight.partition("impasto.write_report")[0]
    assert _lines(weight.partition('"my.toml")')[2]) == 3
    assert _lines(loop.partition("import impasto")[2].partition("impasto.save")[0]) == 10


def _lines(code):
    return sum(bool(line.strip()) for line in code.splitlines())


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_loop_of_ones_own_has_the_losses_of_a_run(desk, run_values, flat_model, pictures):
    """A custom loop has the losses of a run, under the condition that the page names."""
    [unclipped] = re.findall(
        r"if `train` does not\s+clip gradients \(`(.+?)`", GUIDE.read_text("utf-8")
    )
    config = impasto.load_run_config(
        "my.toml", ["optimizer.kind=sgd", unclipped, "training.max_steps=5"]
    )
    expected = [r["loss"] for r in impasto.train(config).read_metrics() if "loss" in r]

    model = impasto.load_base_model(flat_model)
    model.unet.requires_grad_(requires_grad=True).train()
    sizes = {k: v for k, v in run_values["dataset"].items() if k not in ("image_dir", "cache_dir")}
    batches = impasto.prepare(pictures, model, batch_size=4, seed=7, **sizes)
    recipe = impasto.StepRecipe.of(model)
    optimizer = torch.optim.SGD(model.unet.parameters(), lr=config.optimizer.lr)
    found = []
    assert len(batches) == 4
    for batch in (*batches, *batches.steps(1)):
        loss = impasto.training_step(model.unet, batches.conditioner, batch, recipe).losses.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-5)
    assert batches.step == 5


@pytest.mark.usefixtures("fresh_accelerate")
def test_batches_go_on_from_where_a_loop_says(nano_model, pictures):
    model = impasto.load_base_model(nano_model)
    options = {"resolution": 64, "min_bucket_reso": 64, "batch_size": 4, "flip_aug": True}
    whole = list(impasto.prepare(pictures, model, **options).steps(9))
    later = impasto.prepare(pictures, model, **options)
    later.step = 6
    rest = list(later.steps(3))
    for one, other in zip(whole[6:], rest, strict=True):
        assert one.captions == other.captions
        assert torch.equal(one.latents, other.latents)
    with pytest.raises(ConfigError, match=r"impasto\.prepare"):
        impasto.prepare(pictures, model, resolution="large")
    with pytest.raises(ConfigError, match="flip_augg"):
        impasto.prepare(pictures, model, flip_augg=True)
    with pytest.raises(ConfigError, match="Give it as a number of steps"):
        impasto.prepare(pictures, model, token_warmup_step=0.5)
    with pytest.raises(ConfigError, match="takes one folder of images"):
        impasto.prepare(pictures, model, image_dir="other")
    for ray in ({"executor": "ray"}, {"ray_address": "auto"}):
        with pytest.raises(ConfigError, match=r"not with Ray\. Remove executor"):
            impasto.prepare(pictures, model, **ray)
    with pytest.raises(ConfigError, match="expected a number of images"):
        impasto.prepare(pictures, model, batch_size="auto")
    with pytest.raises(ConfigError, match=r"clip_skip: expected 1 or more \(found 0\)"):
        impasto.prepare(pictures, model, clip_skip=0)
    with pytest.raises(ConfigError, match=r'prepare\(""\): expected a folder'):
        impasto.prepare("", model)
    with pytest.raises(ConfigError, match="expected a number of images"):
        impasto.prepare(pictures, model, batch_size=True)
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match="expected the number of a batch, 0 or more"):
            later.step = wrong
    with pytest.raises(DatasetError, match="nothing"):
        impasto.prepare(pictures / "nothing", model)
    assert not (pictures / "nothing").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 76}, "width of a prompt is 76; expected a multiple of 8"),
        ({"steps": 0}, "steps of a prompt is 0; expected 1 to 1000"),
    ],
)
def test_what_cannot_be_drawn_is_refused(nano_model, changes, said):
    sampler = impasto.Sampler.of(impasto.load_base_model(nano_model))
    with pytest.raises(ConfigError, match=said):
        sampler.draw(impasto.Prompt("a cat", **{"width": 64, "height": 64, "steps": 1, **changes}))


def test_a_run_with_parts_in_code_is_not_measured_without_them(fresh_accelerate, train_config):
    config = train_config(validation={"split": 0.3}, training={"max_steps": 2})
    overrides = impasto.Overrides(loss_weight=lambda t, schedule, prediction: 2.0 + 0.0 * t)
    run = impasto.train(config, overrides=overrides)
    said = r"was given parts in code \(loss_weight\), which its settings do not have"
    with pytest.raises(ConfigError, match=said):
        walk(run, [0.0, 1.0], SilentProgress())
    (run.path / "changed-settings.json").write_text('{"paths": []}', encoding="utf-8")
    with pytest.raises(ConfigError, match=said):  # as written by an earlier version
        measure(run, [], SilentProgress())


@pytest.mark.usefixtures("fresh_accelerate")
def test_batches_are_made_as_a_run_makes_them(nano_model, pictures, monkeypatch):
    """Batches use the file's text encoder layer, the VAE's precision and tiles, in any folder."""
    monkeypatch.chdir("/")
    model = impasto.load_base_model(nano_model)
    whole = impasto.save_model(model, pictures.parent / "layer2.safetensors", clip_skip=2)
    recorded = impasto.load_base_model(whole)
    options = {"resolution": 64, "min_bucket_reso": 64, "batch_size": 4}
    plain, other = (impasto.prepare(pictures, m, **options) for m in (model, recorded))
    asked = impasto.prepare(pictures, model, clip_skip=2, **options)
    geometry = next(iter(plain)).geometry

    def states(batches):
        conditioning = batches.conditioner(["a red ball"] * len(geometry), geometry)
        return conditioning.arguments["encoder_hidden_states"]

    assert torch.equal(states(other), states(asked))
    assert not torch.equal(states(other), states(plain))
    half = impasto.prepare(pictures, model, vae_precision="bf16", **options)
    assert model.vae.dtype == torch.float32
    exact, rough = (next(iter(batches.steps(1))).latents for batches in (asked, half))
    assert not torch.equal(exact, rough)
    torch.testing.assert_close(exact, rough, atol=0.2, rtol=0.2)
    again = impasto.prepare(pictures, model, vae_tiling=True, **options)
    assert again.prepared.training.encoded > 0


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_notebook_with_an_accelerator_of_its_own(nano_model, pictures):
    from accelerate import Accelerator

    Accelerator(cpu=True, mixed_precision="bf16")
    model = impasto.load_base_model(nano_model)
    assert len(impasto.prepare(pictures, model, resolution=64, min_bucket_reso=64)) == 13


def test_a_network_that_something_is_attached_to_is_not_saved(nano_model, tmp_path):
    model = impasto.load_base_model(nano_model)
    model.unet.conv_in = torch.nn.Sequential(model.unet.conv_in)
    with pytest.raises(
        ModelError, match=r"The unet is not as it was loaded: conv_in\.0\.bias is new"
    ):
        impasto.save_model(model, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_there_is_no_layer_0(nano_model, tmp_path):
    """Layer 1 is the last; 0 once meant the file's default."""
    model = impasto.load_base_model(nano_model)
    with pytest.raises(ConfigError, match="clip_skip is 0, but this text encoder has"):
        impasto.Sampler.of(model, clip_skip=0)
    with pytest.raises(ConfigError, match="clip_skip is 0"):
        impasto.save_model(model, tmp_path / "m.safetensors", clip_skip=0)
    assert not list(tmp_path.glob("m*"))


def test_a_saved_model_has_what_did_not_learn_bit_for_bit(nano_model, tmp_path):
    model = impasto.load_base_model(nano_model)
    with torch.no_grad():
        model.unet.conv_in.weight += 1
    out = impasto.save_model(model, tmp_path / "out")
    assert (out / VAE_FILE).read_bytes() == (nano_model / VAE_FILE).read_bytes()
    before, after = load_file(nano_model / UNET_FILE), load_file(out / UNET_FILE)
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed == {"conv_in.weight"}
    assert {n: t.dtype for n, t in before.items()} == {n: t.dtype for n, t in after.items()}
    with pytest.raises(ConfigError, match=r"already exists.* or overwrite=True"):
        impasto.save_model(model, out)
    half = impasto.save_model(model, tmp_path / "half.safetensors", dtype=torch.float16)
    assert {t.dtype for t in load_file(half).values() if t.is_floating_point()} == {torch.float16}
    with pytest.raises(ConfigError, match="Impasto writes no models in such files"):
        impasto.save_model(model, tmp_path / "out.zip")


def run_of(desk, *overrides, output="runs/mine"):
    return impasto.load_run_config("my.toml", [f"output_dir={output}", *overrides])


def losses(run):
    return [record["loss"] for record in run.read_metrics() if "loss" in record]


class Twice:
    """Noise of double strength."""

    def noise(self, x_0, randomness):
        return 2 * NoiseRecipe().noise(x_0, randomness)

    def on_input(self, noise, randomness):
        return noise

    def generate_ahead(self, shape, randomness):
        NoiseRecipe().generate_ahead(shape, randomness)


def tripled(output, target, t, schedule):
    return 3 * squared(output, target, t, schedule)


def without_words(conditioner):
    return lambda captions, geometry: conditioner([""] * len(captions), geometry)


def attention_alone(config, model):
    trainable = impasto.build_trainable(config, model)
    for name, parameter in trainable.unet.named_parameters():
        parameter.requires_grad_("attn" in name)
    return trainable


@pytest.mark.usefixtures("fresh_accelerate")
def test_each_part_given_in_code_is_used_and_belongs_to_the_run(desk, deeper_model):
    """Each part changes the loss of a deeper model, by more than rounding."""
    one_step = (
        "training.max_steps=1", "training.cache_text_to_disk=false", f"model.path={deeper_model}"
    )  # fmt: skip
    plain = losses(impasto.train(run_of(desk, *one_step)))
    given = {"error": tripled, "noise": Twice(), "conditioner": without_words}
    for name, part in given.items():
        config = run_of(desk, *one_step, output=f"runs/{name}")
        overrides = impasto.Overrides(**{name: part})
        found = losses(impasto.train(config, overrides=overrides))
        if name == "error":
            assert found == pytest.approx([3 * loss for loss in plain], rel=1e-5)
        else:
            assert abs(found[0] / plain[0] - 1) > 1e-3, name
    config, overrides = run_of(desk, *one_step, output="runs/all"), impasto.Overrides(**given)
    impasto.train(config, overrides=overrides)
    longer = impasto.load_run_config(config.output_dir / "config.toml", ["training.max_steps=2"])
    for name in given:
        others = impasto.Overrides(**{other: given[other] for other in given if other != name})
        with pytest.raises(RunError, match=rf"{name} \(given in code\)"):
            impasto.resume(config.output_dir, overrides=others, changed=longer)
    assert len(losses(impasto.resume(config.output_dir, overrides=overrides, changed=longer))) == 2


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_way_of_training_given_in_code(desk, flat_model):
    run = impasto.train(run_of(desk), overrides=impasto.Overrides(trainable=attention_alone))
    before = load_file(flat_model / UNET_FILE)
    after = load_file(run.exported_model() / UNET_FILE)
    moved = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert moved
    assert all("attn" in name for name in moved)


class Adapter(impasto.FullFineTune):
    def export(self):
        return {"adapter": {}}


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        (
            (),
            {"trainable": lambda config, model: Adapter(model, lr=1e-3)},
            r"Adapter.export\(\) returns 'adapter', which is not a network",
        ),
        (
            ("method.kind=hypernetwork", "saving.format=a1111"),
            {"trainable": attention_alone},
            "method.kind is hypernetwork, but Overrides.trainable",
        ),
        (
            ("training.weight_dtype=bf16", "training.mixed_precision=bf16"),
            {"build_optimizer": lambda parts, settings, rules: torch.optim.SGD(
                [{"params": list(part.parameters().values())} for part in parts], lr=1e-3
            )},
            "required of every optimizer, but SGD",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_training(desk, settings, overrides, words):
    config = run_of(desk, *settings)
    with pytest.raises(ConfigError, match=words):
        impasto.train(config, overrides=impasto.Overrides(**overrides))
    assert not (desk / "runs/mine/states").exists()


def test_folders_sizes_and_runs_are_named_plainly(pictures, train_config, fresh_accelerate):
    scan = impasto.scan_folder(str(pictures))
    asked = (64, (64, 64), Size(64, 64))
    found = [impasto.plan_images(scan.records, size).bucket_counts for size in asked]
    assert found[0] == found[1] == found[2]
    run = impasto.train(train_config(training={"max_steps": 1}))
    assert impasto.write_report(str(run.path)) == run.report
    with pytest.raises(RunError, match="is not a run directory"):
        impasto.write_report(pictures)


def test_memory_is_not_found_for_an_optimizer_in_code(train_config):
    config = train_config(training={"memory": 1})
    overrides = impasto.Overrides(build_optimizer=lambda modules, settings, rules: None)
    with pytest.raises(ConfigError, match=r"Overrides\.build_optimizer builds another"):
        impasto.train(config, overrides=overrides)


def sgd(modules, settings, rules):
    return torch.optim.SGD([{"params": list(m.parameters().values())} for m in modules], lr=1e-3)


def sgd_with_decay(modules, settings, rules):
    made = sgd(modules, settings, rules)
    made.param_groups[0]["weight_decay"] = settings.weight_decay
    return made


@pytest.mark.parametrize(
    ("part", "setting", "shown"),
    [
        ("timesteps", "timesteps.last=200", "200"),
        ("loss_weight", "loss.min_snr_gamma=5", "5.0"),
        ("loss_weight", "loss.soft_min_snr_gamma=4", "4.0"),
        ("loss_weight", "loss.uncertainty=true", "true"),
        ("loss_weight", "loss.debiased=true", "true"),
        ("error", "loss.kind=huber", "huber"),
        ("error", "loss.kind=l1", "l1"),
        ("noise", "noise.offset=0.5", "0.5"),
        ("noise", "noise.immiscible=true", "true"),
        ("lr_schedule", "schedule.warmup_steps=2", "2"),
        ("lr_schedule", "schedule.kind=cosine", "cosine"),
    ],
)
def test_a_setting_that_a_part_in_code_replaces_is_refused(desk, part, setting, shown):
    path = re.escape(setting.partition("=")[0])
    parts = {
        "timesteps": Uniform(), "loss_weight": unweighted, "error": tripled, "noise": Twice(),
        "lr_schedule": lambda step, total: 1.0,
    }  # fmt: skip
    said = rf"{path} is {shown}, which has no effect with Overrides\.{part}\. Remove one"
    with pytest.raises(ConfigError, match=said):
        impasto.train(run_of(desk, setting), overrides=impasto.Overrides(**{part: parts[part]}))
    assert not (desk / "runs/mine").exists()
    del parts[part]
    impasto.Overrides(**parts).require_fitting(run_of(desk, setting))


@pytest.mark.usefixtures("fresh_accelerate")
def test_settings_of_an_optimizer_in_code_are_those_that_it_reads(desk):
    config = run_of(desk, "optimizer.weight_decay=300", "training.max_steps=1")
    said = r"optimizer\.weight_decay is 300.0, which has no effect with Overrides\.build_optimizer"
    with pytest.raises(ConfigError, match=said):
        impasto.train(config, overrides=impasto.Overrides(build_optimizer=sgd))
    assert not (desk / "runs/mine").exists()
    overrides = impasto.Overrides(build_optimizer=sgd_with_decay)
    assert len(losses(impasto.train(config, overrides=overrides))) == 1


class Notes(impasto.SilentEvents):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_that_was_begun_with_idle_settings_goes_on_with_a_note(desk, monkeypatch):
    """Earlier versions accepted settings without effect, so resuming reports and accepts them."""
    overrides = impasto.Overrides(error=tripled, build_optimizer=sgd)
    settings = ("loss.kind=l1", "optimizer.eps=0.5", "training.max_steps=1")
    with monkeypatch.context() as earlier:
        earlier.setattr(impasto.Overrides, "require_fitting", lambda *_: None)
        earlier.setattr("impasto.training.builders.overrides.unread_settings", lambda *_: [])
        run = impasto.train(run_of(desk, *settings), overrides=overrides)
    longer = (run.path / "config.toml").read_text("utf-8").replace("max_steps = 1", "max_steps = 2")
    (run.path / "config.toml").write_text(longer, encoding="utf-8")
    events = Notes()
    assert len(losses(impasto.resume(run.path, events, overrides))) == 2
    for path, part in (("loss.kind is l1", "error"), ("optimizer.eps is 0.5", "build_optimizer")):
        assert f"{path}, which has no effect with Overrides.{part}." in events.notes


@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        ("loss_weight", 0.5, r"a function called with \(t, schedule, prediction\), found 0\.5"),
        ("error", lambda a, b: a, r"with \(output, target, t, schedule\), but .* takes \(a, b\)"),
        (
            "noise",
            torch.randn_like,
            "the methods noise, on_input, generate_ahead; this .* no noise",
        ),
        ("build_optimizer", None, r"called with \(modules, settings, rules\), found None"),
    ],
)
def test_what_cannot_be_called_is_no_part(part, given, said):
    with pytest.raises((TypeError, ConfigError), match=said):
        impasto.Overrides(**{part: given})


class FlatNoise(Twice):
    def on_input(self, noise, randomness):
        return noise[0]


def frozen(config, model):
    trainable = impasto.build_trainable(config, model)
    trainable.unet.requires_grad_(requires_grad=False)
    return trainable


def lbfgs(modules, settings, rules):
    return torch.optim.LBFGS(list(modules[0].parameters().values()))


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("part", "given", "said"),
    [
        (
            "loss_weight",
            lambda t, *_: torch.ones(len(t), 1),
            r"\[4, 1\] on cpu; expected numbers of",
        ),
        ("loss_weight", lambda t, *_: None, "returned None; expected numbers of the shape of t"),
        ("error", lambda output, *_: output.mean(dim=(1, 2, 3)), r"\[4\] on cpu; .* each place"),
        (
            "error",
            lambda output, *_: output.mean(),
            r"shape \[\] on cpu; .* shape of output, \[4, 4",
        ),
        (
            "noise",
            FlatNoise(),
            r"Overrides\.noise\.on_input returned .* shape of the latents, \[4, 4",
        ),
        ("timesteps", lambda r, n: n * r.uniform("t"), r"torch.float64 .* one integer for each"),
        (
            "timesteps",
            lambda r, n: torch.full((4,), n),
            "from 0 to 999; found 1000 to 1000",
        ),
        ("timesteps", lambda r, n: torch.full((4,), -1), "from 0 to 999; found -1 to -1"),
        (
            "lr_schedule",
            lambda step, total: None,
            r"None for \(0, 3\), which is step 1 of 3; expected",
        ),
        (
            "lr_schedule",
            lambda step, total: [1.0, math.nan][step],
            r"nan for \(1, 3\), .* a finite",
        ),
        ("conditioner", lambda conditioner: None, "returned None; expected a function of"),
        ("build_optimizer", lambda *_: None, "None, a NoneType; expected a torch.optim.Optimizer"),
        ("build_optimizer", lbfgs, "returned LBFGS, which computes the loss several times"),
        ("trainable", lambda config, model: model, "a BaseModel; expected a Trainable"),
        ("trainable", frozen, "that trains nothing: no parameter"),
    ],
)
def test_what_a_part_returns_is_checked_and_named(desk, part, given, said):
    overrides = impasto.Overrides(**{part: given})
    with pytest.raises(ConfigError, match=said) as raised:
        impasto.train(run_of(desk), overrides=overrides)
    assert str(raised.value).startswith(f"Overrides.{part}")


def test_a_loop_of_ones_own_is_told_of_a_wrong_shape(nano_model, pictures):
    """A wrong shape would be broadcast: [B, 1] times [B] gives [B, B] losses."""
    model = impasto.load_base_model(nano_model)
    batches = impasto.prepare(pictures, model, resolution=64, min_bucket_reso=64, batch_size=4)
    recipe = impasto.StepRecipe.of(model, loss_weight=lambda t, *_: torch.ones(len(t), 1))
    said = r"^StepRecipe\.of\(loss_weight\) returned a torch.float32 tensor of shape \[4, 1\]"
    with pytest.raises(ConfigError, match=said):
        impasto.training_step(model.unet, batches.conditioner, next(iter(batches)), recipe)


class StepsAlone:
    def stepped(self, step):
        pass


def test_arguments_of_another_kind_are_named(desk, nano_model):
    config = run_of(desk)
    train, resume, prepare, load = (
        impasto.train, impasto.resume, impasto.prepare, impasto.load_run_config
    )  # fmt: skip
    calls = [
        (train, ("my.toml",), r"train\(config\): expected settings, .*found 'my\.toml'"),
        (train, (config, impasto.Overrides()), r"train\(events\): expected events, such as"),
        (train, (config, StepsAlone()), "of the type StepsAlone, which has no method"),
        (train, (config, None, {"error": tripled}), r"expected impasto\.Overrides"),
        (resume, (config,), r"resume\(path\): expected the path of a run directory"),
        (resume, ("runs", None, None, "my.toml"), r"resume\(changed\): expected settings"),
        (prepare, ("pictures", "base"), r"prepare\(model\): expected a model, as"),
        (prepare, (None, "base"), r"prepare\(folder\): expected the path of a folder"),
        (load, ("my.toml", "seed=3"), r"a list of strings, .*'seed=3'"),
        (load, ({},), r"load_run_config\(path\): expected the path of a TOML file"),
    ]
    for call, arguments, said in calls:
        with pytest.raises(TypeError, match=said):
            call(*arguments)
    assert not (desk / "runs").exists()
