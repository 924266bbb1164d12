"""Mixing models: formulas against their arithmetic, per block, in every form, and bad input."""

import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from nano_sdxl import deep_architecture
from safetensors.torch import load_file, save_file

from impasto.checkpoints.reading import open_tensor_file
from impasto.config.load import dump_toml
from impasto.errors import ConfigError, ModelError
from impasto.models.families import by_kind
from impasto.models.merging.blocks import Ratios, block_order, known_names
from impasto.models.merging.merging import (
    Mixture,
    Output,
    merge_models,
    open_mixture,
    require_models,
)
from impasto.models.merging.mixing import FORMULAS, average, letter_of, mix
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.architectures import meta_model_of_architecture, write_random_model
from impasto.models.writing.conversion import convert_model
from impasto.models.writing.saving import About, write_model
from impasto.models.writing.targets import form_of
from impasto.progress import SilentProgress
from impasto.runs import RunDirectory
from impasto.training.saving.run_models import models_of_run

UNET, CLIP, VAE = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."


@pytest.fixture(scope="module")
def three(nano_architecture, tmp_path_factory):
    """Write three models as files, in float32."""
    folder = tmp_path_factory.mktemp("three")
    first = write(nano_architecture, folder / "a", 0)
    files, generator = [first], torch.Generator().manual_seed(1)
    for name in "bc":
        tensors = {
            n: t + 0.1 * torch.randn(t.shape, generator=generator)
            for n, t in load_file(first).items()
        }
        files.append(folder / f"{name}.safetensors")
        save_file(tensors, files[-1], metadata(first))
    return files


def values(tensors, names):
    """Return all values of some tensors in one row, in float64."""
    return torch.cat([tensors[name].double().flatten() for name in names])


def write(architecture, folder, seed):
    write_random_model(architecture, folder, seed=seed, dtype=torch.float32)
    file = folder.with_suffix(".safetensors")
    convert_model(str(folder), file, "safetensors", {}, OpenOptions())
    return file


def merge(target, models, formula=None, dtypes=None, *, overwrite=False, **asked):
    mixture = Mixture([str(m) for m in models], formula, **asked)
    require_models(mixture)
    output = Output(target, form_of(target, None), by_kind(dtypes or {}), overwrite=overwrite)
    return merge_models(mixture, output, OpenOptions())


def metadata(file):
    return dict(open_tensor_file(file).metadata)


LAYOUT = json.dumps({"max_tokens": 150, "join": "kohya", "split": "comma", "emphasis": "off"})
TAUGHT = {
    "modelspec.encoder_layer": "2",
    "modelspec.resolution": "96x96",
    "impasto.text_layout": LAYOUT,
    "impasto.empty_text": "zeros",
    "impasto.zero_terminal_snr": "true",
}


@pytest.fixture
def of_velocity(three, tmp_path):
    """Write the three as velocity models, the second as a run writes it."""
    velocity = {"modelspec.prediction_type": "v"}
    files = [tmp_path / f"{name}.safetensors" for name in ("first", "taught", "third")]
    for source, file, more in zip(three, files, ({}, TAUGHT, {}), strict=True):
        save_file(load_file(source), file, metadata(source) | velocity | more)
    return files


@pytest.mark.parametrize(
    ("formula", "changes", "is_taught"),
    [
        (FORMULAS["weighted-sum"], {"ratio": 1.0}, True),
        (FORMULAS["weighted-sum"], {"ratio": 0.8}, True),
        (FORMULAS["weighted-sum"], {"ratio": 0.2}, False),
        (FORMULAS["weighted-sum"], {"ratio": 0.2, "named": {"unet": 0.9}}, True),
        (FORMULAS["add-difference"], {"ratio": 1.0}, False),
        (average([1, 2, 1]), {}, True),
        (average([2, 1, 2]), {}, False),
    ],
)
def test_a_mixture_is_drawn_as_the_model_that_it_has_most_of(
    of_velocity, tmp_path, formula, changes, is_taught
):
    """CLIP layer, size, prompt layout, empty captions, noise; differences are reported."""
    target = tmp_path / "m.safetensors"
    rows = merge(target, of_velocity[: formula.models], formula, **changes)
    said = metadata(target)
    usual = metadata(of_velocity[0])
    for key, text in TAUGHT.items():
        assert said.get(key) == (text if is_taught else usual.get(key)), key
    mine = "B: layer 2 of CLIP, 96x96, prompts of 150 tokens joined as by kohya, empty prompts as"
    other = "A: layer 1 of CLIP, 128x128, prompts of 225 tokens joined as by a1111, empty prompts"
    assert (mine if is_taught else other) in rows["Drawn as"]
    assert f"({other if is_taught else mine}" in rows["Drawn as"]
    assert rows["Drawn as"].startswith("B" if is_taught else "A")


def test_of_equal_shares_the_model_that_says_how_it_is_drawn_counts(of_velocity, tmp_path):
    usual, taught, third = of_velocity
    plain = tmp_path / "plain.safetensors"
    unsaid = {k: v for k, v in metadata(usual).items() if k not in TAUGHT}
    save_file(load_file(usual), plain, unsaid)
    for number, models in enumerate(([plain, taught], [taught, plain])):
        target = tmp_path / f"{number}.safetensors"
        merge(target, models, FORMULAS["weighted-sum"])
        assert metadata(target)["modelspec.encoder_layer"] == "2"
    assert "Drawn as" not in merge(tmp_path / "like", [usual, third], FORMULAS["weighted-sum"])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("weighted-sum", lambda a, b, c: 0.7 * a + 0.3 * b),
        ("add-difference", lambda a, b, c: a + 0.3 * (b - c)),
        (
            "train-difference",
            lambda a, b, c: a + 0.54 * (b - c) * (b - a).abs() / ((b - a).abs() + (b - c).abs()),
        ),
    ],
)
def test_formulas_in_float64(three, tmp_path, key, expected):
    count = FORMULAS[key].models
    merge(tmp_path / "m.safetensors", three[:count], FORMULAS[key], ratio=0.3)
    a, b, c = map(load_file, three)
    made = load_file(tmp_path / "m.safetensors")
    assert made.keys() == a.keys()
    wanted = expected(*(values(tensors, made) for tensors in (a, b, c)))
    torch.testing.assert_close(values(made, made), wanted, rtol=2e-6, atol=1e-7)


def test_an_average_counts_shares(three, tmp_path):
    merge(tmp_path / "m.safetensors", three, average([1.0, 1.0, 2.0]))
    made = load_file(tmp_path / "m.safetensors")
    a, b, c = (values(load_file(file), made) for file in three)
    torch.testing.assert_close(values(made, made), (a + b + 2 * c) / 4, rtol=2e-6, atol=1e-7)


def test_few_tensors_are_in_memory_whatever_the_number_of_models(three, tmp_path):
    """Of six models at most two tensors are in memory, and none before something is written."""
    alive, most = weakref.WeakSet(), [0]

    def watched(lazy):
        def read():
            tensor = lazy.read()
            alive.add(tensor)
            most.append(len(alive))
            return tensor

        return replace(lazy, read=read)

    def model(file):
        contents = open_model(file)
        parts = {p: {n: watched(t) for n, t in ts.items()} for p, ts in contents.components.items()}
        return replace(contents, components=parts)

    models = [model(file) for file in three * 2]
    mixed = mix(models, average([1.0] * 6).combine, Ratios(1.0))
    assert len(most) == 1
    write_model(mixed, tmp_path / "m.safetensors", "safetensors", About("m"))
    assert len(most) > 6 * 100
    assert max(most) <= 2


def test_more_models_than_letters():
    assert [letter_of(number) for number in (0, 25, 26, 53)] == ["A", "Z", "A2", "B3"]
    many = average([1.0] * 27)
    assert many.text.endswith("+ Y + Z + A2) / 27")
    assert not many.takes_ratio


def test_ratios_of_blocks_networks_and_modules(three, tmp_path):
    """IN01 has ratio 1, except its residual block, named as in diffusers; the VAE stays."""
    named = {"in1": 1.0, "down_blocks.0.resnets.0": 0.5, "vae": 0.0, "time_embedding": 0.25}
    merge(tmp_path / "m.safetensors", three[:2], FORMULAS["weighted-sum"], ratio=0.1, named=named)
    a, b = map(load_file, three[:2])
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        ratio = 0.1
        if name.startswith(f"{UNET}input_blocks.1.0."):
            ratio = 0.5
        elif name.startswith(f"{UNET}input_blocks.1."):
            ratio = 1.0
        elif name.startswith(f"{UNET}time_embed."):
            ratio = 0.25
        elif name.startswith(VAE):
            assert torch.equal(tensor, a[name]), name
            continue
        wanted = (1 - ratio) * a[name].double() + ratio * b[name].double()
        torch.testing.assert_close(tensor.double(), wanted, rtol=2e-6, atol=1e-7)
    record = json.loads(metadata(tmp_path / "m.safetensors")["impasto.merge"])
    assert record["ratios"] == {"IN01" if n == "in1" else n: ratio for n, ratio in named.items()}


def test_a_list_of_all_blocks_begins_with_the_base(three, tmp_path):
    order = block_order(open_model(three[0]))
    numbers = [0.0, *(index / 10 for index in range(len(order)))]
    merge(tmp_path / "m.ckpt", three[:2], FORMULAS["weighted-sum"], listed=numbers)
    a, b = map(load_file, three[:2])
    made = open_tensor_file(tmp_path / "m.ckpt").tensors
    for start, ratio in (
        (f"{UNET}input_blocks.0.", 0.0), (f"{UNET}time_embed.", 0.0), (CLIP, 0.0), (VAE, 0.0),
        (f"{UNET}input_blocks.1.", 0.1), (f"{UNET}middle_block.", order.index("M00") / 10),
        (f"{UNET}output_blocks.0.", (order.index("M00") + 1) / 10),
        (f"{UNET}out.", (len(order) - 1) / 10),
    ):  # fmt: skip
        names = [name for name in a if name.startswith(start)]
        assert names, start
        wanted = (1 - ratio) * values(a, names) + ratio * values(b, names)
        found = values({name: made[name].read() for name in names}, names)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=1e-7)
    assert "ratio" not in json.loads(metadata(tmp_path / "m.ckpt")["impasto.merge"])
    with pytest.raises(ConfigError, match=rf"has 2 numbers; .* has {len(order)} blocks"):
        merge(tmp_path / "n", three[:2], FORMULAS["weighted-sum"], listed=[0.0, 1.0])
    with pytest.raises(ConfigError, match="--ratio has no effect: the"):
        merge(
            tmp_path / "n", three[:2], FORMULAS["weighted-sum"], listed=numbers, ratio=0.3
        )  # no tensor has this name


def test_several_files_that_are_read_as_a_whole_are_warned_of(three, tmp_path):
    old, told = str(tmp_path / "old.ckpt"), Notes()
    convert_model(str(three[0]), tmp_path / "old.ckpt", "ckpt", {}, OpenOptions())
    open_mixture(Mixture([old, old], FORMULAS["weighted-sum"]), OpenOptions(), told)
    assert any("2 files are in PyTorch's format before 1.6" in note for note in told.notes)
    told.notes.clear()
    open_mixture(Mixture([old, str(three[1])], FORMULAS["weighted-sum"]), OpenOptions(), told)
    assert not any("PyTorch's form before 1.6" in note for note in told.notes)


class Notes(SilentProgress):
    """Records notes."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


def test_sdxl_has_the_blocks_that_a1111_lists(nano_architecture):
    model = meta_model_of_architecture(deep_architecture(nano_architecture))
    numbers = [f"IN{n:02}" for n in range(9)], [f"OUT{n:02}" for n in range(9)]
    assert block_order(model.contents) == [*numbers[0], "M00", *numbers[1]]


def test_every_family_and_form_in_and_out(nano_sdxl_model, nano_sd2_model, three, tmp_path):
    """At ratio 0 the result is the first model, at 1 the second, through every form."""
    folder = three[0].with_suffix("")
    for models, name, ratio in (
        ([three[1], folder], "mixed", 1.0),
        ([nano_sd2_model] * 2, "two.ckpt", 0.0),
        ([nano_sdxl_model] * 2, "xl.safetensors", 0.0),
    ):
        merge(tmp_path / name, models, FORMULAS["weighted-sum"], ratio=ratio)
        made, wanted = open_model(tmp_path / name), open_model(models[1])
        assert made.identity.family is wanted.identity.family
        for part, tensors in wanted.components.items():
            own = made.components[part]
            assert own.keys() >= tensors.keys(), part
            assert all(torch.equal(own[n].read(), t.read()) for n, t in tensors.items()), part


def test_what_is_written_has_the_first_models_precision(three, tmp_path):
    half = tmp_path / "half.safetensors"
    convert_model(
        str(three[0]), half, "safetensors", by_kind({"unet": torch.float16}), OpenOptions()
    )
    rows = merge(tmp_path / "m.safetensors", [half, three[1]], FORMULAS["weighted-sum"])
    assert "(unet float16, vae float32" in rows["A"]
    assert "(unet float32, vae float32" in rows["B"]
    assert rows["Precision"].startswith("unet float16, vae float32")
    wide = merge(
        tmp_path / "w.safetensors",
        [half, three[1]],
        FORMULAS["weighted-sum"],
        {"unet": torch.float32},
    )
    assert wide["Precision"].startswith("unet float32")
    a, b = load_file(half), load_file(three[1])
    name = f"{UNET}input_blocks.0.0.weight"
    wanted = a[name].float() * 0.5 + b[name] * 0.5
    assert torch.equal(load_file(tmp_path / "w.safetensors")[name], wanted)
    assert torch.equal(load_file(tmp_path / "m.safetensors")[name], wanted.half())


def test_eight_bits_are_too_few_for_new_values(three, tmp_path):
    """Mixed tensors of an fp8 model are float16; unchanged ones keep their dtype."""
    tensors = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.dim() > 1 else tensor
        for name, tensor in load_file(three[0]).items()
    }
    small = tmp_path / "small.safetensors"
    save_file(tensors, small, metadata(three[0]))
    pair = [small, three[1]]
    merge(tmp_path / "m.safetensors", pair, FORMULAS["weighted-sum"], named={"vae": 0.0})
    for name, tensor in load_file(tmp_path / "m.safetensors").items():
        if name.startswith(VAE):
            assert tensor.dtype == tensors[name].dtype, name
        else:
            assert tensor.dtype in (torch.float16, torch.float32), name


def test_the_file_says_what_was_mixed(three, tmp_path):
    from hashlib import sha256

    rows = merge(tmp_path / "m.safetensors", three[:2], FORMULAS["weighted-sum"], ratio=0.25)
    texts = metadata(tmp_path / "m.safetensors")
    record = json.loads(texts["impasto.merge"])
    assert record["formula"] == "weighted-sum"
    assert record["meaning"] == rows["Formula"] == "(1 - M) * A + M * B"
    assert record["ratio"] == 0.25
    assert [entry["letter"] for entry in record["models"]] == ["A", "B"]
    assert [entry["file"] for entry in record["models"]] == ["a.safetensors", "b.safetensors"]
    hashes = [sha256(file.read_bytes()).hexdigest() for file in three[:2]]
    assert [entry["sha256"] for entry in record["models"]] == hashes
    assert texts["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    assert texts["modelspec.title"] == "m"
    assert str(tmp_path) not in json.dumps(texts)


def test_how_one_of_them_was_trained_is_not_said_of_the_mixture(three, tmp_path):
    ours = {"modelspec.author": "A", "modelspec.license": "L", "ss_steps": "5", "note": "n"}
    for name, author in (("a", "A"), ("b", "B")):
        texts = {**metadata(three[0]), **ours, "modelspec.author": author}
        save_file(load_file(three[0]), tmp_path / f"{name}.safetensors", texts)
    pair = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    merge(tmp_path / "m.safetensors", pair, FORMULAS["weighted-sum"])
    texts = metadata(tmp_path / "m.safetensors")
    assert texts["modelspec.license"] == "L"
    assert texts["note"] == "n"
    assert "modelspec.author" not in texts
    assert "ss_steps" not in texts


@pytest.mark.parametrize("fault", ["missing", "more", "shape"])
def test_models_of_other_tensors_are_refused(three, tmp_path, nano_architecture, fault):
    """Each model is complete by itself; differences are reported."""
    unet, vae, text = nano_architecture.configs
    changed = {
        "missing": (unet, vae, {**text, "num_hidden_layers": 2}),
        "more": (unet, vae, {**text, "num_hidden_layers": 4}),
        "shape": (unet, vae, {**text, "intermediate_size": 48}),
    }[fault]
    other = write(replace(nano_architecture, configs=changed), tmp_path / "o", 0)
    words = {"missing": "missing there: ", "more": "more there: ", "shape": "of another shape: "}
    with pytest.raises(ModelError, match=words[fault]) as caught:
        merge(tmp_path / "m", [three[0], other], FORMULAS["weighted-sum"])
    assert str(other) in str(caught.value)
    assert not (tmp_path / "m").exists()


def test_other_families_and_predictions_are_refused(
    three, tmp_path, nano_sd2_model, nano_sdxl_model
):
    with pytest.raises(ModelError, match=r"is SD 1\.x and .* is SD 2\.x"):
        merge(tmp_path / "m", [three[0], nano_sd2_model], FORMULAS["weighted-sum"])
    velocity = shutil.copytree(nano_sdxl_model, tmp_path / "v")
    scheduler = velocity / "scheduler" / "scheduler_config.json"
    config = json.loads(scheduler.read_text(encoding="utf-8"))
    scheduler.write_text(
        json.dumps({**config, "prediction_type": "v_prediction"}), encoding="utf-8"
    )
    with pytest.raises(ModelError, match="would predict neither"):
        merge(tmp_path / "m", [nano_sdxl_model, velocity], FORMULAS["weighted-sum"])
    assert not (tmp_path / "m").exists()


def test_nan_in_any_model_is_named_and_nothing_is_written(three, tmp_path):
    tensors = load_file(three[1])
    name = f"{UNET}input_blocks.1.0.in_layers.2.weight"
    tensors[name][0, 0] = float("nan")
    broken = tmp_path / "broken.safetensors"
    save_file(tensors, broken, metadata(three[1]))
    for target in ("m.safetensors", "m.ckpt", "m"):
        with pytest.raises(ModelError, match=r"broken\.safetensors \(unet\): down_blocks\.0") as e:
            merge(tmp_path / target, [three[0], broken], FORMULAS["weighted-sum"])
        assert "Nothing was written" in str(e.value)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.safetensors"]


def test_names_of_no_block_are_refused_with_those_there_are(three, tmp_path):
    with pytest.raises(ConfigError, match=r"IN11 is not a network or block .* IN00 to IN03, M00"):
        merge(tmp_path / "m", three[:2], FORMULAS["weighted-sum"], named={"IN11": 0.5})
    everywhere = {f"{block}": 0.1 for block in block_order(open_model(three[0]))}
    with pytest.raises(ConfigError, match=r"unet is not a .* or other names cover all of it"):
        merge(
            tmp_path / "m", three[:2], FORMULAS["weighted-sum"], named={**everywhere, "unet": 1.0}
        )
    assert "down_blocks.0, down_blocks.1, mid_block" in known_names(open_model(three[0]))


def test_numbers_of_models_and_targets(three, tmp_path):
    with pytest.raises(ConfigError, match="takes 3 models; 2 were given"):
        merge(tmp_path / "m", three[:2], FORMULAS["add-difference"])
    with pytest.raises(ConfigError, match="nothing to merge"):
        merge(tmp_path / "m", three[:1])
    with pytest.raises(ConfigError, match="is the source itself"):
        merge(three[1], three[:2], FORMULAS["weighted-sum"], overwrite=True)
    with pytest.raises(ConfigError, match="already exists"):
        merge(three[2], three[:2], FORMULAS["weighted-sum"])


@pytest.mark.parametrize("name", ["s", "the-best", "my-ema"])
def test_models_of_a_run_leave_out_copies_and_averages(train_config, tmp_path, name):
    """Models are sorted by step, the finished one last; names may end like a variant's."""
    config = train_config(output_dir=str(tmp_path), saving={"name": name})
    (tmp_path / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    steps = [f"{name}-step{step:08d}" for step in (2, 4, 6, 10)]
    copies = [f"{name}-best", f"{name}-best-ema", f"{steps[1]}-ema", f"{name}-ema"]
    names = [*steps[:2], *copies, name, steps[3], steps[2], f"{name}-step00000012"]
    for stem in names[:-1]:
        (tmp_path / f"{stem}.safetensors").touch()
    written = [f"{stem}.safetensors" for stem in names]
    (tmp_path / "models.json").write_text(json.dumps({"written": written}), encoding="utf-8")
    run = RunDirectory(tmp_path)
    assert [path.stem for path in models_of_run(run)] == [*steps, name]
    epoch = f"{name}-000001"
    (tmp_path / f"{epoch}.safetensors").touch()
    written = [f"{stem}.safetensors" for stem in (steps[0], name, epoch, steps[1])]
    (tmp_path / "models.json").write_text(json.dumps({"written": written}), encoding="utf-8")
    assert [path.stem for path in models_of_run(run)] == [steps[0], epoch, steps[1], name]


def test_a_finished_model_beside_that_of_another_run_is_not_of_an_epoch(train_config, tmp_path):
    """A finished model whose name was in use got a numbered name, which is not an epoch's."""
    config = train_config(output_dir=str(tmp_path), saving={"name": "dog"})
    (tmp_path / "config.toml").write_text(dump_toml(config), encoding="utf-8")
    names = ["dog-2", "dog-000001", "dog-000002-2", "dog-000003"]
    for stem in names:
        (tmp_path / f"{stem}.safetensors").touch()
    written = [f"{stem}.safetensors" for stem in names]
    (tmp_path / "models.json").write_text(json.dumps({"written": written}), encoding="utf-8")
    assert [path.stem for path in models_of_run(RunDirectory(tmp_path))] == [*names[1:], "dog-2"]
