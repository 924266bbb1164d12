"""Models from strangers run no code and read no other files of the user who loads them.

Each is tested with a file that would appear if the stranger's code ran.
"""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

from impasto.annotate.captioners import Captioner
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.checkpoints.links import require_links_inside
from impasto.errors import ModelError
from impasto.models.families import SD1
from impasto.models.reading.diffusers_folder import open_component, open_folder

DEMO = Path(__file__).parents[2] / "src" / "impasto" / "demo"
CPU = torch.device("cpu")
POSIX = pytest.mark.skipif(
    sys.platform == "win32", reason="creating links needs a privilege on Windows"
)
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def captioner(tmp_path):
    return Path(shutil.copytree(DEMO / "captioner", tmp_path / "captioner"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-2.bin"])
def test_pickled_weights_are_refused_by_a_sentence(captioner, tmp_path, name):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for file in captioner.glob("*.safetensors"):
        file.unlink()
    (captioner / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ModelError, match="can contain program code that runs when it is opened"):
        Captioner.load(str(captioner), CPU)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_beside_safetensors_is_not_opened(captioner):
    (captioner / "pytorch_model.bin").write_bytes(b"no pickle at all")
    assert Captioner.load(str(captioner), CPU).model is not None


@pytest.mark.parametrize("answer", ["", "y\ny\ny\n"])
@pytest.mark.parametrize("known", [False, True])
def test_code_of_a_model_is_not_run_and_nobody_is_asked(
    captioner, tmp_path, monkeypatch, answer, known
):
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    for name in ("evil.py", "custom_generate/generate.py"):
        (captioner / name).parent.mkdir(exist_ok=True)
        (captioner / name).write_text(code, encoding="utf-8")
    config = json.loads((captioner / "config.json").read_text(encoding="utf-8"))
    classes = ("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor", "AutoTokenizer")
    config["auto_map"] = {name: f"evil.{name}" for name in classes}
    if not known:
        config["model_type"] = "evil"
    (captioner / "config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        Captioner.load(str(captioner), CPU)
    except ModelError as error:
        assert "its own program code" in str(error)  # noqa: PT017 - a known kind may load
    else:
        assert known
    assert not (tmp_path / "ran").exists()


@POSIX
def test_links_that_lead_out_of_a_models_folder(captioner, tmp_path):
    secret = tmp_path / "id_rsa"
    secret.write_text("PRIVATE KEY", encoding="utf-8")
    base = Path(shutil.copytree(DEMO / "base", tmp_path / "base"))
    tagger = Path(shutil.copytree(DEMO / "tagger", tmp_path / "tagger"))
    (base / "tokenizer").mkdir(exist_ok=True)
    open_folder(base)
    loads = {
        base / "tokenizer" / "extra.json": lambda: open_folder(base),
        base / "unet" / "extra.json": lambda: open_component(base / "unet", SD1.unet),
        captioner / "extra.json": lambda: Captioner.load(str(captioner), CPU),
        tagger / "preprocess.json": lambda: OnnxTagger(tagger),
    }
    for link, load in loads.items():
        link.symlink_to(secret)
        with pytest.raises(ModelError, match=f"{link.name} is a link that leads out of the model"):
            load()
        link.unlink()
        link.symlink_to("../id_rsa" if link.parent.parent == tmp_path else "../../id_rsa")
        with pytest.raises(ModelError, match="such links are not followed"):
            load()
        link.unlink()


@POSIX
def test_links_inside_and_the_hubs_cache_are_fine(tmp_path):
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "unet" / "config.json").symlink_to("../config.json")
    require_links_inside(model)
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot / "unet").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "1").write_text("{}", encoding="utf-8")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "unet" / "config.json").symlink_to("../../../blobs/1")
    require_links_inside(snapshot)
    require_links_inside(snapshot / "unet")
    (snapshot / "out.json").symlink_to(tmp_path / "model" / "config.json")
    with pytest.raises(ModelError):
        require_links_inside(snapshot)
    require_links_inside(tmp_path / "nowhere")
