"""Hypernetwork files: round trips of forms of every era, and invalid files."""

import json

import pytest
import torch
from conftest import impasto
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from impasto.checkpoints.hypernetwork_writing import write_hypernetwork
from impasto.checkpoints.hypernetworks import (
    METADATA_KEY,
    HypernetworkContents,
    Structure,
    read_hypernetwork,
)
from impasto.config.hypernetwork import HypernetworkMethod
from impasto.data.loading.templates import read_templates
from impasto.errors import ConfigError, ModelError
from impasto.models.networks.hypernetwork import Hypernetwork, initialize, load_hypernetworks
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.inspection import inspect_model
from impasto.progress import SilentProgress

WIDTHS = (8, 12)


def contents(structure=None, **facts):
    made = Hypernetwork(WIDTHS, structure or Structure())
    initialize(made, "XavierNormal", 1)
    return HypernetworkContents(made.halves(), made.structure, "mine", **facts)


def same(one, other):
    ours, theirs = one.tensors(), other.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


@pytest.mark.parametrize(
    "words",
    [
        ["--ema"], ["--unet-dtype", "fp16"], ["--vae", "x.pt"], ["--weights", "plain"],
        ["--family", "sd1"], ["--variant", "fp16"],
    ],
)  # fmt: skip
def test_options_of_models_have_no_effect_and_are_refused(tmp_path, words):
    write_hypernetwork(contents(), tmp_path / "n.pt", "a1111")
    refused = impasto("convert", tmp_path / "n.pt", tmp_path / "o.pt", *words)
    assert refused.returncode == 2
    assert f"{words[0]} has no effect on a hypernetwork" in refused.stderr
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.parametrize("dialect", ["a1111", "portable", "novelai", "safetensors"])
def test_there_and_back(tmp_path, dialect):
    before = contents(step=42, base_hash="deadbeef", base_name="nai", info="é")
    file = tmp_path / ("n.safetensors" if dialect == "safetensors" else "n.pt")
    lost = write_hypernetwork(before, file, dialect)
    after = read_hypernetwork(file)
    assert same(before, after)
    assert after.structure == before.structure
    if dialect == "novelai":
        assert "are left out" in lost[0]
        assert (after.name, after.step, after.form) == ("n", 0, "NovelAI .pt")
    else:
        assert lost == ()
        assert (after.name, after.step, after.info) == ("mine", 42, "é")
        assert (after.base_hash, after.base_name) == ("deadbeef", "nai")


def test_every_key_of_a1111_is_written(tmp_path):
    """The keys are those of A1111's `Hypernetwork.save` in its last version."""
    structure = Structure((1, 2, 2, 1), "relu", dropout=(0, 0.1, 0.2, 0))
    write_hypernetwork(contents(structure), tmp_path / "n.pt", "a1111")
    content = torch.load(tmp_path / "n.pt", weights_only=True)
    assert [key for key in content if isinstance(key, int)] == [8, 12]
    texts = {key: value for key, value in content.items() if isinstance(key, str)}
    assert texts == {
        "step": 0, "name": "mine", "layer_structure": [1, 2, 2, 1], "activation_func": "relu",
        "is_layer_norm": False, "weight_initialization": "Normal", "sd_checkpoint": None,
        "sd_checkpoint_name": None, "activate_output": False, "use_dropout": True,
        "last_layer_dropout": True, "dropout_structure": [0, 0.1, 0.2, 0], "optional_info": None,
    }  # fmt: skip
    assert list(content[8][0]) == [f"linear.{n}.{k}" for n in (0, 3, 6) for k in ("weight", "bias")]


def saved(tmp_path, content):
    torch.save(content, tmp_path / "file.pt")
    return tmp_path / "file.pt"


def halves(structure, widths=WIDTHS):
    generator = torch.Generator().manual_seed(0)
    return {
        width: tuple(
            {n: torch.randn(s, generator=generator) for n, s in structure.shapes(width).items()}
            for _ in range(2)
        )
        for width in widths
    }


def test_novelais_names_and_lists(tmp_path):
    old = {"linear.0": "linear1", "linear.1": "linear2"}
    content = {
        width: [{old[n[:8]] + n[8:]: t for n, t in half.items()} for half in pair]
        for width, pair in halves(Structure()).items()
    }
    found = read_hypernetwork(saved(tmp_path, content))
    assert found.form == "NovelAI .pt"
    assert torch.equal(found.halves[8][1]["linear.1.bias"], content[8][1]["linear2.bias"])


@pytest.mark.parametrize(
    ("texts", "structure"),
    [
        ({}, Structure()),
        ({"activation_func": None, "layer_structure": None}, Structure()),
        # before activate_output there always was one
        (
            {"activation_func": "relu", "layer_structure": [1.0, 2.0, 1.0]},
            Structure((1, 2, 1), "relu", activate_output=True),
        ),
        (
            {"activation_func": "swish", "is_layer_norm": True, "activate_output": False},
            Structure((1, 2, 1), "swish", layer_norm=True),
        ),
        # the two older flags of dropout
        (
            {"layer_structure": [1, 2, 2, 1], "use_dropout": True, "activate_output": False},
            Structure((1, 2, 2, 1), dropout=(0, 0.3, 0, 0)),
        ),
        (
            {
                "layer_structure": [1, 2, 2, 1],
                "use_dropout": True,
                "last_layer_dropout": True,
                "activate_output": False,
            },
            Structure((1, 2, 2, 1), dropout=(0, 0.3, 0.3, 0)),
        ),
        ({"use_dropout": True}, Structure()),  # [1, 2, 1] has no layer for it
        # the newer key has priority
        (
            {
                "layer_structure": [1, 2, 2, 1],
                "use_dropout": True,
                "dropout_structure": [0, 0.05, 0.15, 0],
            },
            Structure((1, 2, 2, 1), dropout=(0, 0.05, 0.15, 0)),
        ),
        ({"layer_structure": [1, 2, 1], "dropout_structure": [0, 0, 0]}, Structure()),
    ],
)
def test_what_an_older_file_does_not_say_is_a1111s_default(tmp_path, texts, structure):
    content = {**halves(structure), **texts}
    found = read_hypernetwork(saved(tmp_path, content))
    assert found.structure == structure
    assert (found.name, found.step, found.initialization) == ("file", 0, "Normal")


def broken(change):
    content = {**halves(Structure()), "name": "x", "layer_structure": [1, 2, 1]}
    return change(content) or content


def without(content, *keys):
    return {key: value for key, value in content.items() if key not in keys}


BROKEN = {
    "widths as texts": (
        lambda c: {str(k): v for k, v in c.items()},
        "widths as texts .12, 8.; A1111, ComfyUI and NovelAI use integers",
    ),
    "no widths": (lambda c: without(c, *WIDTHS), "no widths such as 320 or 768"),
    "a list": (lambda c: [c], "holds a list, not tensors by name"),
    "wrong depth": (
        lambda c: {**c, "layer_structure": [1, 2, 2, 1]},
        "has 2 linear layers, but its structure .* has 3",
    ),
    "wrong multiple": (
        lambda c: {**c, "layer_structure": [1, 3, 1]},
        r"linear\.0\.weight of the k network of width 8 is \(16, 8\); expected \(24, 8\)",
    ),
    "layer norm not there": (
        lambda c: {**c, "is_layer_norm": True},
        r"linear\.1\.weight .*expected \(16,\)",
    ),
    "one network": (lambda c: {**c, 8: c[8][:1]}, "does not have two networks.* width 8"),
    "text for a tensor": (
        lambda c: {**c, 8: ({"linear.0.weight": "x"}, c[8][1])},
        "does not have two networks",
    ),
    "open structure": (
        lambda c: {**c, "layer_structure": [1, 2]},
        "begin and end with 1",
    ),
    "missing tensor": (
        lambda c: {**c, 8: ({k: v for k, v in c[8][0].items() if "bias" not in k}, c[8][1])},
        r"linear\.0\.bias of the k network of width 8 is missing",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_named(tmp_path, name):
    change, words = BROKEN[name]
    with pytest.raises(ModelError, match=words):
        read_hypernetwork(saved(tmp_path, broken(change)))


class Evil:
    def __reduce__(self):
        return (print, ("it ran",))


def test_a_hostile_file_is_refused_and_not_run(tmp_path, capsys):
    file = saved(tmp_path, {**halves(Structure()), "optional_info": Evil()})
    with pytest.raises(ModelError, match=r"builtin.*print"):
        read_hypernetwork(file)
    assert "it ran" not in capsys.readouterr().out


def test_words_of_a_safetensors_file_that_are_no_words_are_passed_over(tmp_path):
    """Metadata values that are not text are ignored, as in a `.pt`: inspect would join them."""
    file = tmp_path / "style.safetensors"
    write_hypernetwork(contents(), file, "safetensors")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    said = json.loads(metadata[METADATA_KEY])
    odd = {"base_hash": 12, "base_name": ["nai"], "info": {"a": 1}}
    save_file(load_file(file), file, {**metadata, METADATA_KEY: json.dumps({**said, **odd})})
    read = read_hypernetwork(file)
    assert (read.base_hash, read.base_name, read.info) == (None, None, None)
    section = inspect_model(str(file), OpenOptions(), SilentProgress())["Hypernetwork"]
    assert section["On"] == "not said"
    assert "Info" not in section


def test_an_activation_that_nobody_knows(tmp_path):
    structure = Structure((1, 2, 1), "leakyrel")
    file = saved(tmp_path, {**halves(structure), "activation_func": "leakyrel"})
    with pytest.raises(ConfigError, match="The nearest are leakyrelu"):
        load_hypernetworks([str(file)])
    with pytest.raises(ConfigError, match="The nearest are swish"):
        Hypernetwork(WIDTHS, Structure((1, 2, 1), "swissh"))


def test_what_a_form_cannot_say_is_said_before_writing(tmp_path):
    relu, norm = Structure((1, 2, 1), "relu"), Structure(layer_norm=True)
    for structure, dialect, words in (
        (relu, "novelai", "another structure"),
        (norm, "novelai", "another structure"),
        (Structure((1, 2, 1), "gelu"), "portable", "does not know the activation gelu"),
    ):
        with pytest.raises(ModelError, match=words):
            write_hypernetwork(contents(structure), tmp_path / "x.pt", dialect)
    bad = contents()
    bad.halves[8][0]["linear.0.weight"][0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinite; nothing was written"):
        write_hypernetwork(bad, tmp_path / "x.pt", "a1111")
    assert list(tmp_path.iterdir()) == []


def test_what_is_drawn_with_drops_nothing_out(tmp_path):
    """With dropout, previews would be drawn with another half of the hypernetwork at each step."""
    structure = Structure((1, 2, 1), "relu", dropout=(0.0, 0.5, 0.0))
    write_hypernetwork(contents(structure), tmp_path / "style.pt", "a1111")
    stack = load_hypernetworks([str(tmp_path / "style.pt")])
    context = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = Hypernetwork.of(read_hypernetwork(tmp_path / "style.pt")).eval()(*[context] * 2)
    found = stack.contexts(context)
    assert all(map(torch.equal, found, expected))
    assert not any(tensor.requires_grad for tensor in found)


def test_strengths_and_names(tmp_path):
    write_hypernetwork(contents(), tmp_path / "style.pt", "a1111")
    stack = load_hypernetworks([f"{tmp_path / 'style.pt'}:0.4"])
    assert stack.strengths == {"style": 0.4}
    assert load_hypernetworks([str(tmp_path / "style.pt")]).strengths == {"style": 1.0}
    with pytest.raises(ConfigError, match="Two hypernetworks are called 'style'"):
        load_hypernetworks([str(tmp_path / "style.pt")] * 2)
    with pytest.raises(ModelError, match="does not exist"):
        load_hypernetworks([str(tmp_path / "other.pt:0.4")])
    with stack.at({"style": 0.1}):
        assert stack.strengths == {"style": 0.1}
    assert stack.strengths == {"style": 0.4}
    with (
        pytest.raises(ConfigError, match="'stile', which is not loaded; known: style"),
        stack.at({"stile": 1.0}),
    ):
        pass


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layers": [1, 2]}, "must start and end with 1"),
        ({"dropout": [0, 0.1]}, "has 2 rates, and layers 3 entries"),
        ({"dropout": [0.1, 0.1, 0]}, "0 for the first and the last"),
        ({"start_from": "x.pt", "activation": "relu"}, "no effect with start_from"),
        ({"start_from": "x.pt", "initialization": "XavierNormal"}, "initialization has no effect"),
    ],
)
def test_settings_that_do_not_fit(values, words):
    with pytest.raises(ValueError, match=words):
        HypernetworkMethod.model_validate(values)


def test_templates(tmp_path):
    file = tmp_path / "style.txt"
    file.write_text("a painting of [filewords], art by [name]\n\n[filewords]\n", encoding="utf-8")
    made = read_templates(["a photo of [filewords]"], file, "mine")
    found = {made.around("a cat", 5, epoch) for epoch in range(60)}
    assert found == {"a photo of a cat", "a painting of a cat, art by mine", "a cat"}
    assert made.around("a cat", 5, 3) == made.around("a cat", 5, 3)
    assert made.around("", 5, 3) == ""
    for line, words in (("a photo", "needs .filewords."), ("[filewords] [nam]", "no other word")):
        with pytest.raises(ConfigError, match=words):
            read_templates([line], None, "mine")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_templates([], tmp_path / "none.txt", "mine")
