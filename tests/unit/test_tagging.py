"""Taggers: profiles by their files, thresholds, spelling; the tagger that A1111 users have."""

import errno
import itertools
from pathlib import Path

import httpx2
import huggingface_hub
import numpy as np
import pytest
import taggers
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from impasto.annotate import models
from impasto.annotate.deepdanbooru import STAGES, DeepDanbooruTagger, ResNetCustomV3, _convolutions
from impasto.annotate.models import (
    CAPTIONERS,
    TAGGERS,
    locate_captioner,
    locate_tagger,
    require_reachable,
)
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.annotate.profiles import DEEPDANBOORU, KINDS, PrepareImages, Profile, fit_square
from impasto.annotate.tags import (
    KAOMOJI,
    Selection,
    Spelling,
    Tag,
    TagTable,
    mcut_threshold,
    parse_replacements,
)
from impasto.annotator_table import DEMO_TAGGER
from impasto.data.engines.stages import Failure
from impasto.errors import ConfigError, ModelError, OutOfMemoryError
from impasto.progress import SilentProgress


def plain(side):
    return np.broadcast_to(np.array([200, 100, 50], dtype=np.uint8), (side, side, 3))


@pytest.mark.parametrize("kind", taggers.KINDS)
def test_each_kind_gets_its_pictures_as_it_wants_them(tmp_path, kind):
    expected = taggers.make(kind, tmp_path)
    tagger = OnnxTagger(tmp_path)
    pixels = [plain(tagger.profile.side)] * 3
    if kind.startswith("wd14"):  # the mean of 0 to 255 is not a probability
        with pytest.raises(ModelError, match="not probabilities"):
            tagger.scores(pixels)
        tagger._run = lambda p: tagger._session.run(None, {tagger._input: tagger.profile.batch(p)})[
            0
        ]
    elif kind == "pixai":
        with pytest.raises(ModelError, match="not probabilities"):
            tagger.scores(pixels)
        tagger._run = lambda p: tagger._session.run(
            [tagger._output], {tagger._input: tagger.profile.batch(p)}
        )[0]
    scores = tagger.scores(pixels)
    found = scores[:, list(tagger.table.rows[:3])] if kind != "cl_tagger" else scores[:, :3]
    assert found == pytest.approx(np.tile(expected, (3, 1)), rel=1e-4)
    assert tagger.table.names[:2] == ("a", "b")
    assert (tagger.fixed_batch == 1) == (kind == "wd14 of batch 1")


def test_a_kind_can_be_given(tmp_path):
    """A JoyTag with a WD14's table: as a WD14 it gets no normalisation."""
    taggers.make("joytag", tmp_path)
    (tmp_path / "top_tags.txt").unlink()
    taggers.selected_tags(tmp_path / "selected_tags.csv")
    assert OnnxTagger(tmp_path).profile.bgr
    told = OnnxTagger(tmp_path, profile=KINDS["joytag"])
    assert (told.profile.bgr, told.profile.logits, told.profile.channels_first) == (
        False,
        True,
        True,
    )
    assert told.scores([plain(448)]).shape == (1, 3)


def test_rows_of_a_mapping_may_be_missing(tmp_path):
    taggers.make("cl_tagger", tmp_path)
    table = OnnxTagger(tmp_path).table
    assert table.rows == (0, 1, 5)
    assert table.categories == ("general", "character", "quality")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "selected_tags.csv").unlink(), "There are no tags beside"),
        (
            lambda f: taggers.selected_tags(f / "selected_tags.csv", [("a", 0)]),
            r"does not match its tags: there are 1, and its output is output .*3\]",
        ),
        (lambda f: (f / "selected_tags.csv").write_text("x,y\n1,2\n"), "columns name and category"),
        (lambda f: (f / "model.onnx").write_bytes(b"no"), "cannot be opened by ONNX Runtime"),
        (lambda f: (f / "model.onnx").unlink(), r"has no \.onnx file"),
        (
            lambda f: taggers.means_model(f / "model.onnx", side=448, channels_first=False, rows=9),
            "does not match its tags",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, change, words):
    taggers.make("wd14", tmp_path)
    change(tmp_path)
    with pytest.raises(ModelError, match=words):
        OnnxTagger(tmp_path)


def test_no_picture_as_input_is_no_tagger(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "text",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 77])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 77])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(tmp_path / "model.onnx"))
    taggers.selected_tags(tmp_path / "selected_tags.csv")
    with pytest.raises(ModelError, match="not a square colour image"):
        OnnxTagger(tmp_path)


def test_a_provider_that_is_not_there(tmp_path):
    taggers.make("joytag", tmp_path)
    with pytest.raises(Exception, match="no provider directml here; it has cpu"):
        OnnxTagger(tmp_path, provider="directml")


def test_where_memory_runs_out_batches_are_halved(tmp_path):
    taggers.make("joytag", tmp_path)

    told = []

    class Told(SilentProgress):
        def note(self, message):
            told.append(message)

    tagger = OnnxTagger(tmp_path, progress=Told())
    real, sizes = tagger._run, []

    def small(pixels):
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer")
        return real(pixels)

    tagger._run = small
    assert tagger.scores([plain(448)] * 7).shape == (7, 3)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert "from now on 1 image at a time" in told[-1]
    tagger._run = lambda _: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
    with pytest.raises(OutOfMemoryError, match="smaller model"):
        tagger.scores([plain(448)])


def test_unknown_names_get_the_nearest():
    with pytest.raises(ConfigError, match="Nearest: wd-swinv2-v3"):
        locate_tagger("wd-swin-v3", SilentProgress())
    with pytest.raises(ConfigError, match="Nearest: blip-large"):
        locate_captioner("blip-larg")
    assert locate_captioner("blip-base") == CAPTIONERS["blip-base"]
    assert all(entry.hub_id.count("/") in (1, 2) for entry in TAGGERS.values())
    assert locate_tagger("demo", SilentProgress()) == DEMO_TAGGER
    assert (Path(locate_captioner("demo")) / "model.safetensors").is_file()


def without_network(*_, **__):
    raise LocalEntryNotFoundError("Got: ConnectError: [Errno -2] Name not known\nA long tail.")


def unknown_there(*_, **__):
    request = httpx2.Request("GET", "http://hub/x")
    raise RepositoryNotFoundError("No.", response=httpx2.Response(404, request=request))


def test_a_full_disk_is_not_taken_for_a_network_that_is_away(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(models, "download_snapshot", full)
    with pytest.raises(ModelError, match=r"cannot be stored in .*No space left on device"):
        locate_tagger("cl-tagger", SilentProgress())


def test_without_a_network_one_short_paragraph_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(models, "download_snapshot", without_network)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", without_network)
    told = []
    for ask in (
        lambda: locate_tagger("cl-tagger", SilentProgress()),
        lambda: require_reachable(CAPTIONERS["blip-base"]),
    ):
        with pytest.raises(ModelError) as caught:
            ask()
        told.append(str(caught.value))
        assert len(told[-1]) < 600
        assert "\n" not in told[-1]
        assert "could not be reached (ConnectError: [Errno -2] Name not known)." in told[-1]
        assert "give its folder" in told[-1]
        assert "is named `demo`" in told[-1]
    assert "huggingface.co/cella110n/cl_tagger " in told[0]
    assert "the .onnx and its tags of cl_tagger_1_02" in told[0]
    assert str(Path("hub") / "models--cella110n--cl_tagger") in told[0]
    assert "its .json and .safetensors" in told[1]


def test_the_hub_is_not_asked_offline_nor_for_what_is_here(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown_there)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        require_reachable(CAPTIONERS["blip-base"])
    require_reachable(str(tmp_path))


def test_a_name_that_the_hub_does_not_show_is_not_called_a_fault_of_the_network(monkeypatch):
    monkeypatch.setattr(models, "download_snapshot", unknown_there)
    with pytest.raises(ModelError, match=r"shows no me/my-tagger: .*hf auth login"):
        locate_tagger("me/my-tagger", SilentProgress())


@pytest.mark.parametrize("fit", ["white", "black", "edge", "squash"])
def test_pictures_are_fitted(fit):
    image = Image.new("RGB", (40, 20), (10, 20, 30))
    found = fit_square(image, 64, fit)
    assert found.shape == (64, 64, 3)
    assert found[32, 32].tolist() == [10, 20, 30]
    corner = {"white": [255] * 3, "black": [0] * 3}.get(fit, [10, 20, 30])
    assert found[0, 0].tolist() == corner


def test_what_cannot_be_read_is_a_failure(tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    (found,) = PrepareImages(Profile("x", 32))([tmp_path / "x.png"])
    assert found == Failure("the file is empty")


TABLE = TagTable(
    ("general", "explicit", "1girl", "long_hair", "^_^", "miku_(vocaloid)", "best", "worst"),
    ("rating", "rating", "general", "general", "general", "character", "quality", "quality"),
    tuple(range(8)),
)
SCORES = np.array([0.9, 0.1, 0.99, 0.5, 0.36, 0.7, 0.2, 0.3])


@pytest.mark.parametrize(
    ("selection", "names"),
    [
        (Selection(), ["1girl", "long_hair", "^_^", "miku_(vocaloid)", "worst", "general"]),
        (Selection(0.6), ["1girl", "miku_(vocaloid)", "worst", "general"]),
        (Selection(0.6, {"character": 0.8}), ["1girl", "worst", "general"]),
        (Selection(mcut=True), ["1girl", "worst", "general"]),
        (Selection(categories=frozenset({"character"})), ["miku_(vocaloid)"]),
        (
            Selection(by_score=True),
            ["1girl", "general", "miku_(vocaloid)", "long_hair", "^_^", "worst"],
        ),
    ],
)
def test_selection(selection, names):
    assert [tag.name for tag in selection.of(SCORES, TABLE)] == names


def test_a_models_own_thresholds_come_first():
    table = TagTable(TABLE.names, TABLE.categories, TABLE.rows, {"long_hair": 0.6, "^_^": 0.1})
    names = [t.name for t in Selection(0.5, own_thresholds=True).of(SCORES, table)]
    assert "long_hair" not in names
    assert "^_^" in names


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_mcut_lies_in_the_widest_gap(scores):
    threshold = mcut_threshold(scores)
    falling = sorted(scores, reverse=True)
    gaps = [a - b for a, b in itertools.pairwise(falling)]
    above = [s for s in scores if s > threshold]
    below = [s for s in scores if s <= threshold]
    if max(gaps) > 0 and above and below:
        assert min(above) - max(below) == pytest.approx(max(gaps))


def spelt(tags, **options):
    return Spelling(**options).write(tags)


def general(*names):
    return [Tag(name, "general", 1.0) for name in names]


def test_spelling():
    tags = [*Selection().of(SCORES, TABLE)]
    assert spelt(tags) == ["1girl", "long hair", "^_^", "miku (vocaloid)"]
    assert spelt(tags, underscores="keep")[1] == "long_hair"
    assert spelt(general("a_b", "o_o", "a_bc"), underscores="long") == ["a_b", "o_o", "a bc"]
    assert spelt(general(*KAOMOJI)) == list(KAOMOJI)
    assert spelt(tags, rating="first")[0] == "general"
    assert spelt(tags, rating="last", quality="first") == [
        "worst", "1girl", "long hair", "^_^", "miku (vocaloid)", "general",
    ]  # fmt: skip
    assert spelt(tags, characters_first=True)[0] == "miku (vocaloid)"
    assert spelt(tags, expand_characters=True)[-2:] == ["miku", "vocaloid"]
    assert spelt(tags, escape_brackets=True)[-1] == r"miku \(vocaloid\)"
    assert spelt(tags, undesired=frozenset({"^_^", "1girl"})) == ["long hair", "miku (vocaloid)"]
    assert spelt(tags, always_first=("^_^", "long hair", "nowhere"))[:2] == ["^_^", "long hair"]
    rules = {"long hair": "very long hair", "^_^": ""}
    assert spelt(tags, replacements=rules) == ["1girl", "very long hair", "miku (vocaloid)"]


def test_names_that_no_tag_has_are_told():
    spelling = Spelling(
        undesired=frozenset({"long hair", "lnog hair"}),
        always_first=("miku", "very long hair"),
        replacements={"long hair": "very long hair", "no such": "x"},
    )
    assert spelling.unknown(TABLE) == ["lnog hair", "long hair", "miku", "no such"]


def test_appending_makes_no_doubles():
    spelling = Spelling()
    assert spelling.joined_to("my style,1girl", "1girl, solo") == "my style, 1girl, solo"
    assert spelling.joined_to("", "1girl, solo") == "1girl, solo"


def test_replacements_are_as_documented():
    assert parse_replacements(r"a,b;c,d") == {"a": "b", "c": "d"}
    assert parse_replacements(r"a\,b,c\;d;") == {"a,b": "c;d"}
    for wrong in ("a", "a,b,c", ",b"):
        with pytest.raises(ValueError, match="two sides"):
            parse_replacements(wrong)


NARROW = (2, *(4 * n for n in (1, 1, 2, 2, 2, 3)))


def deepdanbooru_file(tmp_path, **others):
    torch.manual_seed(0)
    network = ResNetCustomV3(5, NARROW)
    tensors = dict(network.state_dict())
    torch.save(
        {"tags": ["a", "b_c", "d", "e", "rating:safe"], **tensors, **others}, tmp_path / "m.pt"
    )
    return tmp_path / "m.pt"


def by_the_facts(sd, x):
    """Return the network as numbers only: ranges of convolutions, their order, SAME padding."""
    number = iter(range(179))

    def conv(x, stride=1):
        n = next(number)
        weight = sd[f"n_Conv_{n}.weight"]
        kernel = weight.shape[-1]
        left = {(7, 2): 2, (3, 1): 1, (3, 2): 0}.get((kernel, stride), 0)
        right = {(7, 2): 3, (3, 1): 1, (3, 2): 1}.get((kernel, stride), 0)
        x = functional.pad(x, (left, right, left, right))
        return functional.conv2d(x, weight, sd.get(f"n_Conv_{n}.bias"), stride)

    x = conv(x, 2).relu()
    x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-torch.inf), 3, 2)
    for stage, more in enumerate((2, 7, 19, 19, 2, 2)):
        stride = 1 if stage == 0 else 2
        if stage == 3:
            y = conv(conv(conv(x).relu(), stride).relu())
            x = (conv(x, stride) + y).relu()
        else:
            short = conv(x, stride)
            x = (short + conv(conv(conv(x).relu(), stride).relu())).relu()
        for _ in range(more):
            x = (x + conv(conv(conv(x).relu()).relu())).relu()
    return conv(x).mean((2, 3)).sigmoid()


def test_deepdanbooru_is_rebuilt(tmp_path):
    """Sizes and order of the 179 convolutions, at an eighth of the side and narrow."""
    file = deepdanbooru_file(tmp_path)
    content = torch.load(file, weights_only=True)
    assert sum(k.endswith(".weight") for k in content if k != "tags") == 179
    assert "n_Conv_178.bias" not in content
    full = list(_convolutions((64, *(width for width, _ in STAGES))))
    assert len(full) == 178
    assert full[97 + 3] == (1024, 1024, 1, 2)  # the shortcut of stage 4 comes last
    assert full[0] == (3, 64, 7, 2)
    tagger = DeepDanbooruTagger(file, torch.device("cpu"))
    pixels = np.random.default_rng(0).integers(0, 255, (2, 128, 128, 3), dtype=np.uint8)
    x = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    expected = by_the_facts(content, x)
    assert tagger.scores(list(pixels)) == pytest.approx(expected.numpy(), abs=1e-5)
    assert tagger.table.categories[-1] == "rating"
    assert tagger.profile is DEEPDANBOORU


def test_other_files_for_deepdanbooru_are_refused(tmp_path):
    with pytest.raises(ModelError, match=r"needs TensorFlow\. Use the same model as"):
        DeepDanbooruTagger(tmp_path / "model-resnet_custom_v3.h5", torch.device("cpu"))
    torch.save({"n_Conv_0.weight": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(ModelError, match="no list of tags"):
        DeepDanbooruTagger(tmp_path / "x.pt", torch.device("cpu"))
    file = deepdanbooru_file(tmp_path, extra=torch.zeros(1))
    with pytest.raises(ModelError, match="is not DeepDanbooru's resnet_custom_v3"):
        DeepDanbooruTagger(file, torch.device("cpu"))
