"""Models by their id on the Hub: the downloaded files, and what counts as a complete copy."""

import json
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

import huggingface_hub
import pytest
import torch
from component_files import UNET_FILE
from fake_hub import fake_hub, take_for_the_hub
from safetensors.torch import load_file, save, save_file

from impasto.checkpoints import hub
from impasto.checkpoints.fetching import fetch_copy
from impasto.checkpoints.hub_answers import HubAnswers
from impasto.checkpoints.reading import open_tensor_file
from impasto.checkpoints.weight_files import WeightChoice
from impasto.errors import ModelError, RunError
from impasto.models.families import folder_layouts
from impasto.models.reading.opening import OpenOptions, open_model
from impasto.models.writing.conversion import convert_model
from impasto.progress import SilentProgress

UNET = "unet/diffusion_pytorch_model"


@pytest.fixture
def the_hub(tmp_path, monkeypatch):
    """A Hub for this test; downloads go into a cache of this test."""
    with fake_hub() as there:
        take_for_the_hub(there, tmp_path / "hub", monkeypatch)
        yield there


@pytest.fixture
def repos(the_hub):
    """The Hub's contents, by owner/name and file name."""
    return the_hub.repos


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def of_folder(folder):
    """Return a repository with a folder's files."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    return {None: False, **found}


def download(name, **choice):
    return hub.download(name, folder_layouts(), choice=WeightChoice(**choice))


def names_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def two_sets(nano_model, tmp_path):
    """A folder like SD 1.5's: the main file is the average, and `non_ema` is beside it."""
    folder = shutil.copytree(nano_model, tmp_path / "two")
    plain = {name: tensor + 1 for name, tensor in load_file(folder / UNET_FILE).items()}
    save_file(plain, (folder / UNET_FILE).with_suffix(".non_ema.safetensors"))
    return folder


@pytest.fixture
def sharded(nano_model, tmp_path):
    """A folder whose U-Net is in two shards, with whole files of other sets beside them."""
    folder = shutil.copytree(nano_model, tmp_path / "sharded")
    tensors = load_file(folder / UNET_FILE)
    (folder / UNET_FILE).unlink()
    shard_of = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        shard = f"{Path(UNET_FILE).stem}-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / "unet" / shard)
        shard_of |= dict.fromkeys(names, shard)
    index = (folder / UNET_FILE).with_suffix(".safetensors.index.json")
    index.write_text(json.dumps({"weight_map": shard_of}), encoding="utf-8")
    for variant in ("fp16", "non_ema"):
        save_file(tensors, (folder / UNET_FILE).with_suffix(f".{variant}.safetensors"))
    return folder


@pytest.mark.parametrize(("weights", "shift"), [("auto", 0), ("plain", 1), ("ema", 0)])
def test_the_weights_that_are_asked_for_are_downloaded(repos, offline, two_sets, weights, shift):
    repos["ada/two"] = of_folder(two_sets)
    main = load_file(two_sets / UNET_FILE)["conv_in.bias"]
    copy = download("ada/two")
    assert "unet/diffusion_pytorch_model.non_ema.safetensors" not in names_in(copy)
    for is_offline in (False, True):  # which that copy does not satisfy, though it can be opened
        if is_offline:
            offline()
        opened = open_model("ada/two", OpenOptions(weights=weights))
        found = opened.components["unet"]["conv_in.bias"].read()
        assert torch.equal(found, main + shift)


def test_a_copy_without_plain_weights_serves_without_a_network_and_says_so(
    repos, offline, nano_model, two_sets
):
    """Offline it is unknown whether the Hub has plain weights; most repositories have none."""
    repos["ada/one"], repos["ada/two"] = of_folder(nano_model), of_folder(two_sets)
    for name in ("ada/one", "ada/two"):
        download(name)
    offline()
    for name in ("ada/one", "ada/two"):
        opened = open_model(name, OpenOptions(weights="plain"))
        said = "no non_ema files of the unet: taken from diffusion_pytorch_model.safetensors"
        assert said in opened.notes
        with pytest.raises(ModelError, match="could not be downloaded"):
            open_model(name, OpenOptions(weights="ema"))


def test_averaged_weights_that_the_hub_does_not_have_are_refused(repos, nano_model):
    repos["ada/one"] = of_folder(nano_model)
    with pytest.raises(ModelError, match="has no averaged"):
        open_model("ada/one", OpenOptions(weights="ema"))


def test_of_a_sharded_model_only_its_shards_come_and_each_of_them(repos, offline, sharded):
    repos["ada/big"] = of_folder(sharded)
    copy = download("ada/big")
    everything = names_in(sharded)
    others = {name for name in everything if ".fp16." in name or ".non_ema." in name}
    assert names_in(copy) == everything - others - {"README.md"}
    second = next((copy / "unet").glob("*-00002-of-00002.safetensors"))
    second.unlink()  # as after an interrupted download
    assert names_in(download("ada/big")) == names_in(copy)
    assert second.is_file()
    second.unlink()
    offline()
    with pytest.raises(ModelError, match="could not be downloaded"):
        download("ada/big")


@pytest.mark.parametrize("file", ["vae/config.json", UNET_FILE])
def test_a_copy_that_lacks_a_file_is_completed(repos, nano_model, file):
    repos["ada/one"] = of_folder(nano_model)
    lost = download("ada/one") / file
    lost.unlink()
    assert download("ada/one") / file == lost
    assert lost.is_file()


def test_a_variant_that_came_in_part_is_completed(repos, offline, nano_model, tmp_path):
    """Main files of an earlier download replace the variant only without a network."""
    folder = shutil.copytree(nano_model, tmp_path / "both")
    for name in ("unet", "vae"):
        main = next((folder / name).glob("*.safetensors"))
        shutil.copy(main, main.with_suffix(".fp16.safetensors"))
    repos["ada/both"] = of_folder(folder)
    copy = download("ada/both")
    assert not list(copy.rglob("*.fp16.*"))
    assert download("ada/both", variant="fp16") == copy
    lost = copy / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    lost.unlink()
    download("ada/both", variant="fp16")
    assert lost.is_file()
    lost.unlink()
    offline()
    assert download("ada/both", variant="fp16") == copy


def test_a_copy_in_half_precision_is_no_answer_to_who_asks_for_all_of_it(
    repos, offline, nano_model, tmp_path
):
    """An earlier run left the variant; offline it is used, with a message."""
    folder = shutil.copytree(nano_model, tmp_path / "both")
    for main in [*folder.rglob("*.safetensors")]:
        half = {name: tensor.half() for name, tensor in load_file(main).items()}
        save_file(half, main.with_suffix(".fp16.safetensors"))
    for name in ("ada/both", "ada/again"):
        repos[name] = of_folder(folder)
        open_model(name, OpenOptions(variant="fp16"))
    opened = open_model("ada/both")
    assert set(opened.dtypes().values()) == {"float32"}
    assert opened.notes == ()
    offline()
    opened = open_model("ada/again")
    assert set(opened.dtypes().values()) == {"float16"}
    said = "no main files of the unet: taken from diffusion_pytorch_model.fp16.safetensors"
    assert said in opened.notes


def test_a_vae_by_itself_is_downloaded_and_used(repos, offline, nano_model, tmp_path):
    vae = shutil.copytree(nano_model / "vae", tmp_path / "vae")
    main = vae / "diffusion_pytorch_model.safetensors"
    tensors = load_file(main)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, main)
    for name in ("sdxl_vae.safetensors", "diffusion_pytorch_model.bin"):
        (vae / name).write_bytes(b"another form of it")
    repos["ada/vae"] = of_folder(vae)
    for is_offline in (False, True):
        if is_offline:
            offline()
        opened = open_model(nano_model, OpenOptions(vae="ada/vae"))
        assert torch.equal(
            opened.components["vae"]["decoder.conv_in.bias"].read(),
            tensors["decoder.conv_in.bias"] + 1,
        )
        assert names_in(download("ada/vae")) == {"config.json", main.name}


def test_a_vae_by_itself_is_copied_with_its_configuration(repos, nano_model, tmp_path):
    """The configuration has the scaling factor: without it the file would cause a warning."""
    repos["ada/vae"] = of_folder(nano_model / "vae")
    found = fetch_copy("ada/vae", tmp_path / "models", folder_layouts(), SilentProgress())
    assert found == tmp_path / "models" / "vae"
    assert names_in(found) == names_in(nano_model / "vae")


def test_one_checkpoint_is_downloaded_and_opened(repos, offline, nano_model, tmp_path):
    file = tmp_path / "style [1].safetensors"
    convert_model(str(nano_model), file, "safetensors", {}, OpenOptions())
    repos["ada/file"] = {None: False, f"sub/{file.name}": file.read_bytes(), "README.md": b"hi"}
    assert open_model("ada/file").form == open_model(file).form
    offline()
    found = download("ada/file")
    assert (found.name, found.read_bytes()) == (file.name, file.read_bytes())
    assert open_model("ada/file").source == "ada/file"


def test_a_file_comes_with_the_yaml_beside_it(repos, nano_model, tmp_path, monkeypatch):
    """Only the YAML says what many SD 2 files predict; a copy without it is completed."""
    file = tmp_path / "style.safetensors"
    convert_model(str(nano_model), file, "safetensors", {}, OpenOptions())
    metadata = dict(open_tensor_file(file).metadata)
    del metadata["modelspec.prediction_type"]
    bare = save(load_file(file), metadata)
    said = b"model: {params: {parameterization: v}}"
    repos["ada/file"] = {
        None: False, "sub/style.safetensors": bare, "sub/style.yaml": said, "style.yaml": b"other",
    }  # fmt: skip
    copy = download("ada/file")
    assert names_in(copy.parent.parent) == {"sub/style.safetensors", "sub/style.yaml"}
    copy.with_suffix(".yaml").unlink()
    monkeypatch.setattr(hub, "ANSWERS", HubAnswers())  # of another process
    assert open_model("ada/file").identity.prediction.name == "v_prediction"
    for folder, file in (("whole", None), ("named", "sub/style.safetensors")):
        found = fetch_copy(
            "ada/file", tmp_path / folder, folder_layouts(), SilentProgress(), file=file
        )
        assert found == tmp_path / folder / "style.safetensors"
        assert names_in(found.parent) == {"style.safetensors", "style.yaml"}
    (tmp_path / "mine").mkdir()  # whose file would describe another model
    (tmp_path / "mine" / "style.yaml").write_text("mine", encoding="utf-8")
    with pytest.raises(
        RunError, match=r"style\.yaml already exists and differs from the model's own"
    ):
        fetch_copy("ada/file", tmp_path / "mine", folder_layouts(), SilentProgress())
    assert names_in(tmp_path / "mine") == {"style.yaml"}
    (tmp_path / "mine" / "style.yaml").write_bytes(said)  # the one of the earlier .ckpt
    fetch_copy("ada/file", tmp_path / "mine", folder_layouts(), SilentProgress())
    assert names_in(tmp_path / "mine") == {"style.safetensors", "style.yaml"}


def test_a_command_asks_for_a_file_once(the_hub, nano_model, tmp_path):
    """A command reads the file that it compared with its target, even if the Hub changes
    meanwhile."""
    file = tmp_path / "style.safetensors"
    convert_model(str(nano_model), file, "safetensors", {}, OpenOptions())
    the_hub.repos["ada/file"] = {None: False, file.name: file.read_bytes()}
    convert_model("ada/file", tmp_path / "out.safetensors", "safetensors", {}, OpenOptions())
    assert [path for _, path in the_hub.asked].count("/api/models/ada/file") == 1


def test_a_command_asks_once_for_half_precision_that_is_all_there_is(the_hub, nano_model, tmp_path):
    """With half precision only, a copy can never become complete."""
    folder = shutil.copytree(nano_model, tmp_path / "half")
    for main in [*folder.rglob("*.safetensors")]:
        main.rename(main.with_suffix(".fp16.safetensors"))
    the_hub.repos["ada/half"] = of_folder(folder)
    copies = {download("ada/half") for _ in range(3)}
    assert [path for _, path in the_hub.asked].count("/api/models/ada/half") == 1
    (copy,) = copies
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert open_model("ada/half")


@dataclass
class Told(SilentProgress):
    """Records stages and notes."""

    stages: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def stage(self, description, total, unit):
        self.stages.append(description)
        return super().stage(description, total, unit)

    def note(self, message):
        self.notes.append(message)


def test_a_hub_that_does_not_answer_is_waited_for_once(the_hub, nano_model, tmp_path, monkeypatch):
    """A command may name two models on the Hub and open them several times."""
    vae = shutil.copytree(nano_model, tmp_path / "model")
    for name, source in (("base", nano_model), ("other", vae)):
        file = tmp_path / f"{name}.safetensors"
        convert_model(str(source), file, "safetensors", {}, OpenOptions())
        the_hub.repos[f"ada/{name}"] = {None: False, file.name: file.read_bytes()}
        download(f"ada/{name}", weights="plain")  # no other request asks about it
    with socket.create_server(("127.0.0.1", 0)) as dead:  # accepts connections, and sends nothing
        address = f"http://127.0.0.1:{dead.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(hub, "TIMEOUT_S", 0.1)
        told = Told()
        options = OpenOptions(vae="ada/other")
        target = tmp_path / "out.safetensors"
        convert_model("ada/base", target, "safetensors", {}, options, progress=told)
        assert target.is_file()
        assert [stage for stage in told.stages if "Hub" in stage] == [
            "Asking the Hugging Face Hub for ada/base"
        ]
        assert told.notes == [
            "The Hugging Face Hub cannot be reached: the local copy of ada/base is used."
        ]
        with pytest.raises(ModelError, match="could not be downloaded"):
            download("ada/nothing")


@pytest.mark.parametrize(
    ("files", "variant", "words"),
    [
        (["a.ckpt", "b.ckpt"], None, r"has 2 files with models.*--file; it has a\.ckpt, b\.ckpt"),
        (["README.md"], None, r"not a Diffusers model and has no files.*it has README\.md"),
        (["a.ckpt"], "fp16", r"is one file, a\.ckpt, and has no variants.*--variant"),
        (["model_index.json"], "fp16", r"no files of the variant 'fp16', nor any other\. Take"),
        (
            ["model_index.json", f"{UNET}.bf16.safetensors"],
            "fp16",
            r"variant 'fp16'; it has bf16\. Name one of these, or take",
        ),
        (
            ["model_index.json", f"{UNET}.bf16.safetensors"],
            None,
            r"no main files of the unet; it has bf16\. Name one of these with --variant",
        ),
    ],
)
def test_what_cannot_be_opened_is_not_downloaded(repos, tmp_path, files, variant, words):
    repos["ada/odd"] = {None: False, **dict.fromkeys(files, b"{}")}
    with pytest.raises(ModelError, match=words):
        download("ada/odd", variant=variant)
    assert not list((tmp_path / "hub").rglob("*.ckpt"))
