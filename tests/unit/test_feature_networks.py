"""Feature networks: their outputs, their names, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import taggers
import torch
from clips import tiny_clip
from PIL import Image

from impasto.annotate.onnx_layers import penultimate_name, with_output
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.demo.recipe import TAGGER
from impasto.errors import ConfigError, ModelError
from impasto.evaluation.image_features import CaptionedImage, features_of
from impasto.evaluation.networks import load_network, load_tagger
from impasto.progress import SilentProgress

CPU = torch.device("cpu")


def opened(place, shipped=()):
    return load_network(str(place), CPU, SilentProgress(), dict(shipped))


def drawn(folder, count=3, size=(40, 30)):
    folder.mkdir(exist_ok=True)
    pictures = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        pictures.append(CaptionedImage(folder / f"{number}.png"))
    return pictures


@pytest.fixture(scope="module")
def clip(tmp_path_factory, nano_model):
    return tiny_clip(tmp_path_factory.mktemp("features") / "tiny-clip", nano_model / "tokenizer")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """Write a DINOv2 with a few thousand parameters."""
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("features") / "tiny-dino"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(config).save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder)
    return folder


def test_features_of_a_tagger_are_what_its_last_layer_is_given(tmp_path):
    """The stand-in's last layer receives the maximum of each channel."""
    taggers.make("wd14", tmp_path)
    tagger = OnnxTagger(tmp_path, with_features=True)
    pixels = np.zeros((tagger.profile.side, tagger.profile.side, 3), np.uint8)
    pixels[0, 0] = (1, 0, 0)
    scores, features = tagger.scores_and_features([pixels, pixels * 0])
    assert features == pytest.approx(np.array([[0, 0, 1], [0, 0, 0]]))  # it expects blue first
    assert scores.shape[0] == 2


def test_the_demos_tagger_is_the_product_of_its_features():
    from onnx import load_model, numpy_helper

    tagger = OnnxTagger(TAGGER, with_features=True)
    pixels = np.random.default_rng(0).integers(0, 256, (448, 448, 3)).astype(np.uint8)
    scores, features = tagger.scores_and_features([pixels])
    weights = {
        t.name: numpy_helper.to_array(t)
        for t in load_model(TAGGER / "model.onnx").graph.initializer
    }
    logits = features @ weights["tagger.head.weight"].T + weights["tagger.head.bias"]
    assert scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-5)
    assert scores == pytest.approx(OnnxTagger(TAGGER).scores([pixels]), abs=1e-6)


def test_a_model_of_bytes_that_end_is_none(tmp_path):
    content = (TAGGER / "model.onnx").read_bytes()
    name = penultimate_name(content, "output")
    assert name is not None
    assert with_output(content, name).startswith(content)
    for end in (1, 100, 5000):
        with pytest.raises(ValueError, match="ends within"):
            penultimate_name(content[:-end], "output")
    assert penultimate_name(content, "no such output") is None
    assert penultimate_name(b"", "output") is None


def test_a_tagger_without_a_last_layer_has_no_features(tmp_path):
    from onnx import TensorProto, helper, save_model

    nodes = [helper.make_node("GlobalAveragePool", ["x"], ["output"])]
    shapes = [("x", ["N", 3, 32, 32]), ("output", ["N", 3, 1, 1])]
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes]
    graph = helper.make_graph(nodes, "pool", tensors[:1], tensors[1:])
    taggers.selected_tags(tmp_path / "selected_tags.csv", rows=[("a", 0)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save_model(model, str(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match="does not end in a fully connected layer"):
        opened(tmp_path)


def test_clip_gives_features_of_images_and_texts(clip, tmp_path):
    from transformers import CLIPModel

    network = opened(clip)
    pictures = drawn(tmp_path / "images")
    looks = features_of(pictures, [network], "images", SilentProgress())
    inputs = torch.from_numpy(
        np.stack([network.prepare(Image.open(p.path).convert("RGB")) for p in pictures])
    )
    expected = CLIPModel.from_pretrained(clip).get_image_features(pixel_values=inputs)
    expected = getattr(expected, "pooler_output", expected).detach().numpy()
    assert looks.features["tiny-clip"] == pytest.approx(expected, abs=1e-5)
    texts = network.of_texts(["a cat", "a dog " * 100])
    assert texts.shape == (2, 8)
    assert not np.allclose(texts[0], texts[1])
    assert looks.tags is None


def test_a_tokenizer_without_a_maximum_is_cut_where_the_network_ends(clip, tmp_path):
    """Tokenizer files may lack a maximum: transformers then uses a number of 31 digits."""
    endless = tmp_path / "endless"
    shutil.copytree(clip, endless)
    file = endless / "tokenizer_config.json"
    words = json.loads(file.read_text(encoding="utf-8"))
    del words["model_max_length"]
    file.write_text(json.dumps(words), encoding="utf-8")
    texts = ["a cat", "a dog " * 100]
    network = opened(endless)
    assert network._tokenizer.model_max_length > 10**20
    assert network.of_texts(texts) == pytest.approx(opened(clip).of_texts(texts), abs=1e-6)


def test_a_network_that_takes_no_such_images_is_refused_when_it_is_opened(dino, tmp_path):
    """The error comes before hours of drawing, not after them."""
    broken = tmp_path / "broken"
    shutil.copytree(dino, broken)
    file = broken / "preprocessor_config.json"
    prepared = json.loads(file.read_text(encoding="utf-8"))
    prepared |= {"size": {"shortest_edge": 9}, "crop_size": {"height": 9, "width": 9}}
    file.write_text(json.dumps(prepared), encoding="utf-8")
    with pytest.raises(ModelError, match="fails on a plain image"):
        opened(broken)


@pytest.mark.parametrize("reads", [False, True])
def test_a_network_comes_to_the_device_when_it_is_first_used(clip, tmp_path, reads):
    """The network is moved to the device at first use: before, models that draw use the memory."""
    network = load_network(str(clip), torch.device("meta"), SilentProgress(), {})
    assert network._model.device == CPU
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):  # now it is there
        network.of_texts(["a cat"]) if reads else network.look(
            [network.prepare(Image.new("RGB", (20, 20)))]
        )
    assert network._model.device.type == "meta"


def test_dinov2_gives_its_class_token(dino, tmp_path):
    from transformers import Dinov2Model

    network = opened(dino)
    (picture,) = drawn(tmp_path / "images", 1)
    prepared = network.prepare(Image.open(picture.path).convert("RGB"))
    expected = Dinov2Model.from_pretrained(dino)(torch.from_numpy(prepared[None]))
    found = network.look([prepared]).features
    assert found == pytest.approx(expected.last_hidden_state[:, 0].detach().numpy(), abs=1e-5)
    assert network.of_texts(["a cat"]) is None


def test_pooling_that_a_file_does_not_have_is_not_made_up(dino, tmp_path):
    """A classifier's ViT has no pooler: transformers would initialise one at random."""
    from transformers import ViTConfig, ViTModel

    folder = tmp_path / "tiny-vit"
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=28, patch_size=14,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False)
    model.save_pretrained(folder)
    shutil.copy(dino / "preprocessor_config.json", folder)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 28, 28)).astype(np.float32)
    expected = model.eval()(torch.from_numpy(pixels)).last_hidden_state[:, 0].detach().numpy()
    for _ in range(2):
        assert opened(folder).look(list(pixels)).features == pytest.approx(expected, abs=1e-5)


def test_a_network_is_named_by_its_weights(dino, tmp_path):
    from transformers import Dinov2Model

    other = tmp_path / "tiny-dino"
    shutil.copytree(dino, other)
    assert opened(dino).facts == opened(other).facts
    model = Dinov2Model.from_pretrained(other)
    with torch.no_grad():
        model.layernorm.bias[0] += 1
    model.save_pretrained(other)
    assert opened(dino).facts.sha256 != opened(other).facts.sha256


def test_missing_weights_are_not_made_up(dino, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(dino, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("layernorm.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the weights layernorm\.weight"):
        opened(broken)


def test_nan_in_a_network_is_named(dino, tmp_path):
    network = opened(dino)
    with torch.no_grad():
        network._model.layernorm.weight[0] = float("nan")
    with pytest.raises(ModelError, match=r"tiny-dino gives NaN or infinity .* 0\.png to 2\.png"):
        features_of(drawn(tmp_path / "images"), [network], "images", SilentProgress())


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no feature network 'clap'.*demo, clip, dinov2"):
        opened("clap", {"demo": TAGGER})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty cannot be loaded"):
        opened(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no model 'clap'"):
        load_tagger("clap", SilentProgress(), {})


def test_images_that_cannot_be_read_are_left_out_with_reasons(tmp_path):
    pictures = drawn(tmp_path / "images")
    pictures[1].path.write_bytes(b"no image")
    Image.new("RGB", (9, 9), (1, 2, 3)).save(pictures[2].path)
    network = opened("demo", {"demo": TAGGER})
    looks = features_of(pictures, [network], "images", SilentProgress())
    assert [p.path.name for p in looks.images] == ["0.png", "2.png"]
    assert looks.unread[0].path.name == "1.png"
    assert looks.flat.tolist() == [False, True]
    assert looks.features["demo"].shape == (2, 448)
    assert len(looks.tags) == 2


def test_memory_that_runs_out_halves_a_batch(tmp_path, dino, monkeypatch):
    network = opened(dino)
    pictures = drawn(tmp_path / "images", 5)
    whole = features_of(pictures, [network], "images", SilentProgress()).features["tiny-dino"]
    once = network.look

    def small(prepared):
        if len(prepared) > 2:
            raise torch.OutOfMemoryError
        return once(prepared)

    monkeypatch.setattr(network, "look", small)
    halved = features_of(pictures, [network], "images", SilentProgress()).features["tiny-dino"]
    assert halved == pytest.approx(whole, abs=1e-5)


def test_names_of_this_machine_are_not_told(dino):
    assert Path(opened(dino).facts.name) == Path("tiny-dino")


def test_a_folder_does_not_take_the_place_of_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert opened("demo", {"demo": TAGGER}).facts.name == "demo"
    with pytest.raises(ModelError, match=r"\./demo cannot be loaded"):
        opened("./demo", {"demo": TAGGER})
