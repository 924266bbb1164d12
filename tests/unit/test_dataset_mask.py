"""Masks by segmentation models of every kind, against transformers' own pipeline.

If one of these failed, the loss would include areas to leave out, or masks would be lost.
"""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw
from segmenters import THINGS, detr, segformer

from impasto.annotate.segmenting import LONGEST, MaskShape, Segmenter, locate_segmenter
from impasto.cli.main import impasto as commands
from impasto.data.folders.masks import mask_file
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import MaskRules, Subset
from impasto.errors import ConfigError, ModelError

CPU = torch.device("cpu")


def scene(size=(96, 64)):
    image = Image.new("RGB", size, (30, 90, 200))
    ImageDraw.Draw(image).ellipse((8, 8, 60, 50), fill=(250, 120, 20))
    return image


def run(*words):
    result = CliRunner().invoke(commands, ["dataset", "mask", *map(str, words)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "sub/a.png"):
        scene().save(tmp_path / "set" / name)
    return tmp_path / "set"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (segformer, None),
        (segformer, "semantic"),
        (detr, "instance"),
        (detr, "panoptic"),
        (detr, "semantic"),
        (detr, None),
    ],
)
def test_a_mask_is_the_union_of_what_the_pipeline_finds(tmp_path, make, kind):
    segmenter = Segmenter.load(str(make(tmp_path / "model")), CPU, kind=kind, threshold=0.0)
    assert segmenter.labels == tuple(THINGS)
    from transformers import pipeline

    theirs = pipeline("image-segmentation", model=str(tmp_path / "model"), device=CPU)
    has_threshold = kind != "semantic" and make is not segformer
    options = {"threshold": 0.0} if has_threshold else {}
    segments = theirs(scene(), subtask=kind, **options)
    assert segments
    everything = set()
    for wanted in (["cat"], ["dog", "sofa"], THINGS):
        expected = np.zeros((64, 96), dtype=np.uint8)
        for segment in segments:
            everything.add(segment["label"])
            if segment["label"] in wanted:
                expected |= np.asarray(segment["mask"])
        found = segmenter.find(scene(), segmenter.chosen(wanted))
        assert (found is None) == (not expected.any())
        if found is not None:
            np.testing.assert_array_equal(np.asarray(found), expected)
    assert everything <= set(THINGS)


def test_a_model_of_one_label_gives_a_soft_mask(tmp_path):
    """Argmax over one channel would assign the label everywhere."""
    segmenter = Segmenter.load(str(segformer(tmp_path / "model", ["subject"])), CPU)
    found = segmenter.find(scene(), segmenter.chosen([]))
    inputs = segmenter.pipeline.image_processor(scene(), return_tensors="pt")
    with torch.no_grad():
        logits = segmenter.pipeline.model(**inputs).logits
    wide = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear")
    np.testing.assert_allclose(np.asarray(found), wide[0, 0].sigmoid() * 255, atol=0.51)
    assert len(set(found.tobytes())) > 2


def test_a_large_image_is_looked_at_small(tmp_path):
    segmenter = Segmenter.load(str(segformer(tmp_path / "model", winner="dog")), CPU)
    found = segmenter.find(Image.new("RGB", (3000, 1500)), ["dog"])
    assert found.size == (LONGEST, LONGEST // 2)
    assert segmenter.find(Image.new("RGB", (64, 64)), ["cat"]) is None


def test_growing_blurring_inverting_and_the_weight_of_the_rest():
    found = Image.new("L", (100, 50))
    found.paste(255, (40, 20, 60, 30))

    def columns(**options):
        row = np.asarray(MaskShape(**options).applied(found, (200, 100)))[50]
        return row, int((row > 127).sum())

    assert columns()[1] == 40
    assert columns(grow=6)[1] == 52
    assert columns(grow=-6)[1] == 28
    assert columns(invert=True)[1] == 160
    assert columns(rest=0.2)[0].min() == 51
    assert 0 < columns(blur=6)[0][75] < 255


def test_masks_go_where_training_reads_them_and_are_not_lost(folder, tmp_path):
    model = segformer(tmp_path / "model", winner="dog")
    told = run(folder, "--model", model, "--label", "DOG", "--invert", "--rest", 0.5)
    masks = tmp_path / "set-masks"
    assert sorted(p.relative_to(masks).as_posix() for p in masks.rglob("*.*")) == [
        "a.png", "b.png", "sub/a.png",
    ]  # fmt: skip
    assert "Masks written   3" in told
    subset = Subset(root=folder, masks=MaskRules(folder=masks))
    for record in scan_folder(folder, subset=subset).records:
        with Image.open(mask_file(record)) as mask:
            assert (mask.mode, mask.size) == ("L", record.size.wh)
            assert mask.getextrema() == (128, 128)
    (masks / "b.png").unlink()
    told = run(folder, "--model", model, "--label", "dog")
    assert "Masks written   1" in told
    assert "Left unchanged  2" in told
    assert Image.open(masks / "b.png").getextrema() == (255, 255)
    assert Image.open(masks / "a.png").getextrema() == (128, 128)
    run(folder, "--model", model, "--label", "dog", "--overwrite", "--only", "sub/a.png")
    assert Image.open(masks / "sub" / "a.png").getextrema() == (255, 255)
    assert Image.open(masks / "a.png").getextrema() == (128, 128)


def test_nothing_found_writes_no_mask_and_is_told(folder, tmp_path):
    told = run(folder, "--model", segformer(tmp_path / "model", winner="dog"), "--label", "cat")
    assert "Nothing found   3" in told
    assert "the whole image counts: a.png, b.jpg, sub/a.png" in told
    assert not (tmp_path / "set-masks").exists()


def test_masks_within_the_folder_of_images_get_no_masks_themselves(folder, tmp_path):
    model = segformer(tmp_path / "model", winner="dog")
    for _ in range(2):
        run(folder, "--model", model, "--label", "dog", "--out", folder / "masks", "--overwrite")
    assert len(list((folder / "masks").rglob("*.png"))) == 3


def test_labels_are_listed_and_have_to_be_chosen(folder, tmp_path):
    model = segformer(tmp_path / "model")
    assert run(folder, "--model", model, "--labels").split()[-3:] == THINGS
    with pytest.raises(ConfigError, match=r"Choose with --label.*cat, dog, sofa"):
        run(folder, "--model", model)
    with pytest.raises(ConfigError, match=r"has no label 'bird'"):
        run(folder, "--model", model, "--label", "bird")


def test_a_drawn_mask_is_taken_for_one_image(folder, tmp_path):
    drawn = tmp_path / "drawn.png"
    Image.new("RGBA", (48, 32), (255, 255, 255, 255)).save(drawn)
    run(folder, "--only", "sub/a.png", "--from", drawn, "--out", tmp_path / "m")
    with Image.open(tmp_path / "m" / "sub" / "a.png") as mask:
        assert (mask.size, mask.mode, mask.getextrema()) == ((96, 64), "L", (255, 255))
    Image.new("L", (48, 48)).save(drawn)
    from impasto.errors import DatasetError

    with pytest.raises(DatasetError, match="expected the same aspect ratio"):
        run(folder, "--only", "a.png", "--from", drawn, "--out", tmp_path / "m")
    with pytest.raises(ConfigError, match=r"no usable image 'c\.png'"):
        run(folder, "--only", "c.png", "--from", drawn)
    assert "--from needs --only" in run(folder, "--from", drawn)


@pytest.mark.parametrize("captioned", [False, True])
def test_an_image_in_the_place_of_a_mask_is_not_replaced(folder, tmp_path, captioned):
    """The folder of another dataset was given as that of the masks."""
    from impasto.errors import DatasetError

    other, drawn = tmp_path / "other", tmp_path / "drawn.png"
    (other / "sub").mkdir(parents=True)
    Image.new("L" if captioned else "RGB", (8, 8)).save(other / "sub" / "a.png")
    if captioned:
        (other / "sub" / "a.txt").write_text("a cat", encoding="utf-8")
    before = (other / "sub" / "a.png").read_bytes()
    Image.new("RGBA", (48, 32), (255, 255, 255, 255)).save(drawn)
    with pytest.raises(DatasetError, match=r"was not written: sub/a\.png: .* not a mask"):
        run(folder, "--only", "sub/a.png", "--from", drawn, "--out", other, "--overwrite")
    assert (other / "sub" / "a.png").read_bytes() == before


def test_a_drawn_mask_that_is_not_written_is_told_as_an_error(folder, tmp_path):
    from impasto.errors import DatasetError

    drawn = tmp_path / "drawn.png"
    Image.new("L", (48, 32)).save(drawn)
    with pytest.raises(DatasetError, match="the image is in the folder of masks"):
        run(folder, "--only", "sub/a.png", "--from", drawn, "--out", folder, "--overwrite")


def test_a_link_out_of_the_masks_is_not_written_through(folder, tmp_path):
    (tmp_path / "set-masks").mkdir()
    (tmp_path / "victim").mkdir()
    (tmp_path / "set-masks" / "sub").symlink_to(tmp_path / "victim")
    told = run(folder, "--model", segformer(tmp_path / "model", winner="dog"), "--label", "dog")
    assert "Skipped: sub/a.png" in told
    assert list((tmp_path / "victim").iterdir()) == []


def test_what_is_no_segmentation_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="short names clothes"):
        locate_segmenter("cocoo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="cannot be loaded"):
        Segmenter.load(str(tmp_path / "empty"), CPU)
