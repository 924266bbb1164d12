"""Hypernetworks against NovelAI's and A1111's formulas, rewritten from their files.

The rewritten formulas read a `.pt` with torch.load and use none of Impasto's classes: they rely
only on the file's keys, as A1111 and ComfyUI do.
"""

import functools
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from impasto.checkpoints.hypernetwork_writing import COMFYUI_ACTIVATIONS, write_hypernetwork
from impasto.checkpoints.hypernetworks import (
    HypernetworkContents,
    Structure,
    read_hypernetwork,
)
from impasto.errors import ConfigError, ModelError
from impasto.models.networks.hypernetwork import (
    ACTIVATIONS,
    INITIALIZATIONS,
    Hypernetwork,
    HypernetworkStack,
    context_widths,
    initialize,
    require_matching_widths,
)
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.making import empty_network
from impasto.models.writing.architectures import find_architecture

WIDTH = 12
STRUCTURES = [(1, 2, 1), (1, 1.5, 1.5, 1), (1, 2, 4, 2, 1)]
NAMES = {
    "leakyrelu": "leaky_relu", "swish": "hardswish", "logsigmoid": "logsigmoid",
    **{n: n for n in ("relu", "elu", "tanh", "sigmoid", "softsign", "mish", "gelu", "silu")},
    **{n: n for n in ("relu6", "softplus", "hardtanh", "celu", "selu", "tanhshrink")},
    **{n: n for n in ("softshrink", "hardshrink", "hardsigmoid", "hardswish")},
}  # fmt: skip
FORMULAS = {
    "linear": lambda x: x,
    **{ours: getattr(functional, name) for ours, name in NAMES.items()},
}


def network(structure, widths=(WIDTH,), initialization="Normal", seed=0):
    made = Hypernetwork(widths, structure)
    initialize(made, initialization, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in made.parameters():  # biases and scales that show
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return made.eval()


def contents_of(made, name="mine"):
    return HypernetworkContents(made.halves(), made.structure, name)


def novelai(sd, x, strength):
    """Return ctx + m * (W2 (W1 ctx + b1) + b2)."""
    hidden = x @ sd["linear1.weight"].T + sd["linear1.bias"]
    return x + strength * (hidden @ sd["linear2.weight"].T + sd["linear2.bias"])


def a1111(content, half, x, strength):
    """Apply modules in the order in which A1111 builds them, numbered as in its Sequential."""
    sd, index, y = content[WIDTH][half], 0, x
    transitions = len(content["layer_structure"]) - 1
    for i in range(transitions):
        y = functional.linear(y, sd[f"linear.{index}.weight"], sd[f"linear.{index}.bias"])
        index += 1
        is_last = i == transitions - 1
        if content["activation_func"] != "linear" and (not is_last or content["activate_output"]):
            y = FORMULAS[content["activation_func"]](y)
            index += 1
        if content["is_layer_norm"]:
            scale, shift = sd[f"linear.{index}.weight"], sd[f"linear.{index}.bias"]
            y = functional.layer_norm(y, scale.shape, scale, shift)
            index += 1
        if content["dropout_structure"][i + 1] > 0:
            index += 1
    return x + y * strength


def comfyui(content, half, x, strength):
    """Apply linear layers in the order of the keys; each 1-D weight is a layer norm."""
    assert all(isinstance(int(k), int) for k in content if not isinstance(k, str))
    sd, layers = content[WIDTH][half], []
    activation = content.get("activation_func", "linear")
    assert activation in COMFYUI_ACTIVATIONS
    assert not content.get("use_dropout", False), "it would apply dropout while drawing"
    names = [name for name in sd if name.endswith(".weight")]
    for number, name in enumerate(names):
        bias = sd[name.replace(".weight", ".bias")]
        if sd[name].dim() == 1:
            layers.append(lambda y, w=sd[name], b=bias: functional.layer_norm(y, w.shape, w, b))
            continue
        layers.append(lambda y, w=sd[name], b=bias: functional.linear(y, w, b))
        if activation != "linear" and (
            number < len(names) - 1 or content.get("activate_output", False)
        ):
            layers.append(FORMULAS[activation])
    y = x
    for layer in layers:
        y = layer(y)
    return x + y * strength


def inputs(width=WIDTH):
    return torch.randn(2, 5, width, generator=torch.Generator().manual_seed(9))


def test_every_activation_of_a1111_is_there_and_every_formula_is_checked():
    named = {
        name.lower()
        for name, kind in vars(nn.modules.activation).items()
        if isinstance(kind, type)
        and issubclass(kind, nn.Module)
        and kind.__module__ == nn.modules.activation.__name__
    }
    over_images = {"softmax", "softmin", "logsoftmax"}
    without_sense = {"multiheadattention", "threshold", "glu", "softmax2d", *over_images}
    assert named - without_sense <= set(ACTIVATIONS)
    assert {"linear", "swish"} <= set(ACTIVATIONS)
    assert set(ACTIVATIONS) - set(FORMULAS) == {"prelu", "rrelu"}  # in training; in sampling


ALL_SHAPES = list(itertools.product(STRUCTURES, *[[False, True]] * 3))
PAIRS_OF_SHAPES = [
    (STRUCTURES[0], False, False, False),
    (STRUCTURES[1], False, True, True),
    (STRUCTURES[2], True, False, True),
    (STRUCTURES[1], True, True, False),
]
"""Each pair of norm, output and dropout in each of their states."""


@pytest.mark.parametrize("activation", FORMULAS)
def test_it_is_a1111s_formula(tmp_path, activation):
    """Each structure gives A1111's output, with and without layer norm, activation and dropout.

    A layer's position does not depend on the kind of activation, only on whether there is one: all
    structures are tested with none and with one kind, and the other kinds with each pair of
    features.
    """
    x = inputs()
    shapes = ALL_SHAPES if activation in ("linear", "leakyrelu") else PAIRS_OF_SHAPES
    for layers, norm, output, drops in shapes:
        dropout = (0.0, *[0.3] * (len(layers) - 2), 0.0) if drops else ()
        made = network(
            Structure(layers, activation, layer_norm=norm, activate_output=output, dropout=dropout)
        )
        write_hypernetwork(contents_of(made), tmp_path / "n.pt", "a1111")
        content = torch.load(tmp_path / "n.pt", weights_only=True)
        again = Hypernetwork.of(read_hypernetwork(tmp_path / "n.pt")).eval()
        for strength in (1.0, 0.4, -1.0):
            ours, loaded = made(x, x, strength), again(x, x, strength)
            for half in (0, 1):
                expected = a1111(content, half, x, strength)
                torch.testing.assert_close(ours[half], expected, rtol=1e-5, atol=1e-6)
                assert torch.equal(ours[half], loaded[half])


def test_an_activation_that_learns_goes_there_and_back(tmp_path):
    """A learned activation survives a round trip, numbered as in A1111's Sequential."""
    made, x = network(Structure((1, 2, 1), "prelu", activate_output=True)), inputs()
    write_hypernetwork(contents_of(made), tmp_path / "n.pt", "a1111")
    content = torch.load(tmp_path / "n.pt", weights_only=True)
    again = Hypernetwork.of(read_hypernetwork(tmp_path / "n.pt")).eval()
    wide = nn.Linear(WIDTH, 2 * WIDTH), nn.PReLU(), nn.Linear(2 * WIDTH, WIDTH), nn.PReLU()
    for half in (0, 1):
        theirs = nn.Sequential(*wide)
        named = {n.removeprefix("linear."): t for n, t in content[WIDTH][half].items()}
        theirs.load_state_dict(named)
        torch.testing.assert_close(made(x, x)[half], x + theirs(x))
        assert torch.equal(again(x, x)[half], made(x, x)[half])


@pytest.mark.parametrize("name", ["softmax", "softmin", "logsoftmax"])
def test_what_a1111_computes_over_the_images_of_a_batch_is_refused(name):
    with pytest.raises(ConfigError, match="over all images generated together"):
        Hypernetwork((WIDTH,), Structure(activation=name))


@pytest.mark.parametrize("activation", COMFYUI_ACTIVATIONS)
def test_a_portable_file_is_the_same_in_comfyui(tmp_path, activation):
    x = inputs()
    for layers, norm, output in itertools.product(STRUCTURES, [False, True], [False, True]):
        dropout = (0.0, *[0.3] * (len(layers) - 2), 0.0)
        made = network(
            Structure(layers, activation, layer_norm=norm, activate_output=output, dropout=dropout)
        )
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        if norm and activation != "linear":
            with pytest.raises(ModelError, match="activates the last layer too"):
                write_hypernetwork(contents_of(made), file, "portable")
            assert not file.exists()
            continue
        lost = write_hypernetwork(contents_of(made), file, "portable")
        assert "Dropout is left out" in lost[0]
        content = torch.load(file, weights_only=True)
        for half in (0, 1):
            expected = made(x, x, 0.7)[half]
            for reader in (comfyui, a1111):
                found = reader(content, half, x, 0.7)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_is_novelais_formula(tmp_path):
    made, x = network(Structure()), inputs()
    write_hypernetwork(contents_of(made), tmp_path / "nai.pt", "novelai")
    content = torch.load(tmp_path / "nai.pt", weights_only=True)
    assert list(content) == [WIDTH]
    for half in (0, 1):
        expected = novelai(content[WIDTH][half], x, 0.6)
        torch.testing.assert_close(made(x, x, 0.6)[half], expected, rtol=1e-5, atol=1e-6)
    again = Hypernetwork.of(read_hypernetwork(tmp_path / "nai.pt"))
    assert torch.equal(again(x, x)[0], made(x, x)[0])


@pytest.fixture(params=["nano_model", "nano_sd2_model", "nano_sdxl_model"])
def unet(request):
    return load_base_model(request.getfixturevalue(request.param)).unet.eval()


def call(unet):
    generator = torch.Generator().manual_seed(4)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    arguments = {"encoder_hidden_states": states}
    if unet.config.addition_embed_type == "text_time":
        sizes = torch.tensor([[64, 48, 0, 8, 64, 64]] * 2)
        numbers = unet.config.projection_class_embeddings_input_dim
        pooled = torch.randn(
            2, numbers - 6 * unet.config.addition_time_embed_dim, generator=generator
        )
        arguments["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": sizes}
    with torch.no_grad():
        return unet(latents, torch.tensor([10, 900]), **arguments).sample


def stack_of(*networks, strengths=(1.0, 1.0)):
    stack = HypernetworkStack()
    for number, made in enumerate(networks):
        stack.add(f"n{number}", made, strengths[number])
    return stack


def test_in_the_unet_it_changes_what_keys_and_values_are_made_of(unet):
    """Two in sequence equal hooks on to_k and to_v of diffusers' own attention."""
    widths = context_widths(unet)
    first = network(Structure(), widths, seed=1)
    second = network(Structure((1, 2, 1), "relu"), widths[:1], seed=2)
    plain = call(unet)
    hooks = []
    for name, module in unet.named_modules():
        for number, half in enumerate(("to_k", "to_v")):
            if name.endswith(f".{half}"):

                def changed(_, arguments, number=number):
                    (x,) = arguments
                    for made, strength in ((first, 0.8), (second, -0.5)):
                        key = str(x.shape[-1])
                        if key in made.pairs:
                            mlp = made.pairs[key]["kv"[number]].linear
                            x = x + strength * mlp(x)
                    return (x,)

                hooks.append(module.register_forward_pre_hook(changed))
    expected = call(unet)
    for hook in hooks:
        hook.remove()
    assert not torch.allclose(plain, expected, atol=1e-3)
    with stack_of(first, second, strengths=(0.8, -0.5)).attached(unet):
        torch.testing.assert_close(call(unet), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(call(unet), plain)


def test_nothing_changes_at_strength_0_or_with_zero_output(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    plain = call(unet)
    loud = network(Structure(), context_widths(unet))
    with stack_of(loud, strengths=(0.0,)).attached(unet):
        assert torch.equal(call(unet), plain)
    for norm in (False, True):
        fresh = Hypernetwork(context_widths(unet), Structure((1, 2, 1), "relu", layer_norm=norm))
        initialize(fresh, "ZeroOutput", 3)
        with stack_of(fresh).attached(unet):
            assert torch.equal(call(unet), plain)
    with stack_of(loud).attached(unet):
        assert not torch.allclose(call(unet), plain)
    assert torch.equal(call(unet), plain)
    after = unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", INITIALIZATIONS)
@pytest.mark.parametrize("activation", ["linear", "leakyrelu"])
def test_initializations_are_a1111s(name, activation):
    """640 x 1280 numbers have the spread by which each initialization is defined."""
    made = Hypernetwork([640], Structure((1, 2, 1), activation, layer_norm=True))
    initialize(made, name, 5)
    linear = [m for m in made.modules() if isinstance(m, nn.Linear)]
    for number, module in enumerate(linear):
        rows, columns = module.weight.shape
        deviation = {
            "Normal": 0.01,
            "ZeroOutput": 0.01,
            "XavierUniform": (2 / (rows + columns)) ** 0.5,
            "XavierNormal": (2 / (rows + columns)) ** 0.5,
            "KaimingUniform": (2 / columns) ** 0.5,
            "KaimingNormal": (2 / columns) ** 0.5,
        }[name]
        assert float(module.weight.detach().std()) == pytest.approx(deviation, rel=0.01)
        is_uniform = name.endswith("Uniform")
        assert (float(module.weight.detach().abs().max()) <= 1.733 * deviation) == is_uniform
        assert not module.bias.any(), number
    norms = [m for m in made.modules() if isinstance(m, nn.LayerNorm)]
    silent = 1 if name == "ZeroOutput" else 0
    for pair in range(2):
        first, last = norms[2 * pair], norms[2 * pair + 1]
        assert float(first.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
        assert bool(last.weight.any()) != silent
    again = Hypernetwork([640], Structure((1, 2, 1), activation, layer_norm=True))
    initialize(again, name, 5)
    assert all(
        torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True)
    )


@functools.cache
def full_size_unet(base):
    architecture = find_architecture(base)
    component = architecture.family.unet
    return empty_network(component, architecture.by_name[component.name], base)


@pytest.mark.parametrize(
    ("base", "widths", "said"),
    [
        ("sdxl", (320, 640, 768, 1280), "is for SD 1.x: it has networks for contexts of width 320"),
        ("sdxl", (1024,), "is for SD 2.x"),
        ("sd1", (640, 1280, 2048), "is for SDXL: it has networks for contexts of width 2048"),
        ("sd2", (2048,), "is for SDXL"),
        ("sdxl", (640, 1280, 2048), None),
        ("sdxl", (2048,), None),
    ],
)
def test_a_full_size_one_is_taken_by_its_own_family_alone(base, widths, said):
    """Widths 640 and 1280 occur in all families; the text width distinguishes them."""
    unet = full_size_unet(base)
    if said is None:
        require_matching_widths("ink", widths, unet)
        return
    with pytest.raises(ModelError) as raised:
        require_matching_widths("ink", widths, unet)
    assert said in str(raised.value)


def test_a_full_size_sd1_file_is_as_large_as_a1111s(tmp_path):
    made = Hypernetwork((320, 640, 768, 1280), Structure())
    initialize(made, "Normal", 0)
    assert sum(p.numel() for p in made.parameters()) == 21_939_840
    write_hypernetwork(contents_of(made), tmp_path / "full.pt", "a1111")
    assert (tmp_path / "full.pt").stat().st_size / 2**20 == pytest.approx(83.7, abs=0.05)
