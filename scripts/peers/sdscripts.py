"""Test Impasto's files with sd-scripts' loaders: models, hypernetworks, datasets, latents, TOML."""

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from stubs import stub_always, stub_missing

TOML = """[general]
enable_bucket = true
[[datasets]]
resolution = 128
batch_size = 2
min_bucket_reso = 64
max_bucket_reso = 256
  [[datasets.subsets]]
  image_dir = '{pictures}'
  metadata_file = '{metadata}'
"""


def main() -> None:
    folder, checkout = map(Path, sys.argv[1:])
    sys.path.insert(0, str(checkout))
    require_real_transformers()
    # pipelines for drawing, written for another transformers version
    stub_always("library.lpw_stable_diffusion", "library.sdxl_lpw_stable_diffusion")
    stub_missing("torchvision", "cv2", "xformers", "pillow_avif", "jxlpy", "pillow_jxl")
    hypernetwork(folder, checkout)
    for name in ("meta.json", "meta.jsonl"):
        dataset(folder, name)
    texts(folder)
    example(checkout)
    if (folder / "full.safetensors").is_file():
        model(folder / "full.safetensors")


def require_real_transformers() -> None:
    """Let transformers detect the installed packages before any of them is replaced by a stub."""
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()
    import_utils.is_cv2_available()
    import diffusers  # noqa: F401
    from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401


def hypernetwork(folder: Path, checkout: Path) -> None:
    """Load with finetune/hypernetwork_nai.py, sd-scripts' only reader of hypernetworks."""
    place = checkout / "finetune" / "hypernetwork_nai.py"
    spec = importlib.util.spec_from_file_location("hypernetwork_nai", place)
    assert spec is not None and spec.loader is not None  # noqa: PT018, S101
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    expected = load_file(folder / "expected.safetensors")
    network = theirs.Hypernetwork()
    network.load_from_state_dict(torch.load(folder / "a1111.pt", weights_only=True))
    with torch.no_grad():
        for width in (320, 640, 768, 1280):
            keys, values = network.forward(None, expected[f"a1111.{width}.given"])
            torch.testing.assert_close(keys, expected[f"a1111.{width}.0"])
            torch.testing.assert_close(values, expected[f"a1111.{width}.1"])
    print("ok: a1111.pt, outputs equal")


def texts(folder: Path) -> None:
    """Read SDXL's text files with its caching strategy, and a file that it writes with Impasto."""
    from library.strategy_sdxl import (  # type: ignore[import-not-found]
        SdxlTextEncoderOutputsCachingStrategy,
    )

    from impasto.data.caching.text_npz import TextOutputs, TextShape, read_text_npz

    strategy = SdxlTextEncoderOutputsCachingStrategy(True, 1, False)  # noqa: FBT003 - theirs
    file = strategy.get_outputs_npz_path(str(folder / "cat.png"))
    assert strategy.is_disk_cached_outputs_expected(file), file  # noqa: S101
    expected = load_file(folder / "texts.safetensors")
    found = [torch.from_numpy(array) for array in strategy.load_outputs_npz(file)]
    for name, array in zip(("hidden_state1", "hidden_state2", "pool2"), found, strict=True):
        assert torch.equal(array, expected[name]), name  # noqa: S101

    class Encoding:
        def encode_tokens(self, *_: object) -> list[torch.Tensor]:
            return [tensor[None].half() for tensor in found]

    class Tokens:
        def tokenize(self, captions: list[str]) -> tuple[list[str], list[str]]:
            return captions, captions

    class Info:
        caption, text_encoder_outputs_npz = "a cat", folder / "theirs_te_outputs.npz"

    strategy.cache_batch_outputs(Tokens(), [], Encoding(), [Info()])
    theirs = read_text_npz(Info.text_encoder_outputs_npz, TextShape(77, (768, 1280), 1280))
    assert isinstance(theirs, TextOutputs), theirs  # noqa: S101
    assert theirs.ids is None  # noqa: S101
    assert torch.equal(torch.from_numpy(theirs.pooled), found[2].half().float())  # noqa: S101
    print("ok: cat_te_outputs.npz, and one that sd-scripts wrote")


def dataset(folder: Path, name: str) -> None:
    """Read sidecars and metadata by their dataset classes, latents by their caching strategy."""
    from library import config_util  # type: ignore[import-not-found]
    from library.strategy_base import LatentsCachingStrategy  # type: ignore[import-not-found]
    from library.strategy_sd import SdSdxlLatentsCachingStrategy  # type: ignore[import-not-found]

    strategy = SdSdxlLatentsCachingStrategy(True, True, 1, False)  # noqa: FBT003 - theirs
    if LatentsCachingStrategy.get_strategy() is None:
        LatentsCachingStrategy.set_strategy(strategy)
    file = folder / f"{name}.toml"
    text = TOML.format(pictures=folder / "pictures", metadata=folder / name)
    file.write_text(text, encoding="utf-8")
    blueprint = blueprint_of(file)
    group, _ = config_util.generate_dataset_group_by_blueprint(blueprint.dataset_group)
    images = {Path(key).stem: info for d in group.datasets for key, info in d.image_data.items()}
    sidecars = {file.stem: file for file in (folder / "pictures").glob("*.txt")}
    assert images.keys() == sidecars.keys(), (images.keys(), sidecars.keys())  # noqa: S101
    for stem, info in images.items():
        words = sidecars[stem].read_text(encoding="utf-8").strip()
        assert info.caption == words, (info.caption, words)  # noqa: S101
    print(f"ok: {name} and a dataset TOML, {len(images)} images with their captions")
    latents(group, strategy)


def latents(group: object, strategy: object) -> None:
    """Require that they accept the .npz beside each image instead of encoding it again."""
    count = 0
    for data in group.datasets:  # type: ignore[attr-defined]
        data.make_buckets()
        for info in data.image_data.values():
            size = info.image_size
            npz = strategy.get_latents_npz_path(info.absolute_path, size)  # type: ignore[attr-defined]
            found = [*Path(npz).parent.glob(f"{Path(info.absolute_path).stem}*.npz")]
            assert found, f"no .npz for {info.absolute_path}"  # noqa: S101
            args = (info.bucket_reso, str(found[0]), False, False)
            assert strategy.is_disk_cached_latents_expected(*args), found[0]  # type: ignore[attr-defined]  # noqa: S101
            loaded = strategy.load_latents_from_disk(str(found[0]), info.bucket_reso)  # type: ignore[attr-defined]
            assert loaded[0].shape[1:] == (info.bucket_reso[1] // 8, info.bucket_reso[0] // 8)  # noqa: S101
            count += 1
    print(f"ok: {count} .npz files, of the size of their buckets")


def blueprint_of(file: Path) -> object:
    from library import config_util

    sanitizer = config_util.ConfigSanitizer(True, True, False, True)  # noqa: FBT003 - theirs
    config = config_util.load_user_config(str(file))
    return config_util.BlueprintGenerator(sanitizer).generate(config, argparse.Namespace())


def example(_: Path) -> None:
    """Parse the dataset configuration that ships with Impasto with their code."""
    blueprint_of(Path(__file__).parents[2] / "configs" / "dataset.toml")
    print("ok: configs/dataset.toml")


def model(file: Path) -> None:
    """Load whole networks with the function that fine_tune.py uses."""
    from library import model_util  # type: ignore[import-not-found]

    text_encoder, vae, unet = model_util.load_models_from_stable_diffusion_checkpoint(
        False,  # noqa: FBT003 - theirs
        str(file),
    )
    counts = [sum(p.numel() for p in m.parameters()) for m in (text_encoder, vae, unet)]
    print(f"ok: {file.name}, text encoder, VAE and U-Net of {counts} numbers")


if __name__ == "__main__":
    main()
