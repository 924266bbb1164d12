"""`impasto dataset prior`: regularisation images that the base model draws."""

import pytest
from click.testing import CliRunner
from PIL import Image

from impasto.cli.main import impasto as commands
from impasto.config.load import build_dataset_config
from impasto.datasets.build import scan_all
from impasto.errors import ConfigError
from impasto.progress import SilentProgress

SIZE = ["--width", "32", "--height", "48", "--steps", "2"]


@pytest.fixture
def draw(nano_model, tmp_path):
    """Draw into a folder; return its files by name."""

    def run(name, *words, **options):
        folder = tmp_path / name
        call = ["dataset", "prior", str(nano_model), str(folder), *SIZE, *words]
        done = CliRunner().invoke(commands, call, catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return run


def test_what_was_stopped_is_finished_to_the_same_bits(draw, tmp_path):
    words = ["--words", "a frog", "--words", "two (frogs)", "--seed", "5"]
    whole = draw("reg", *words, "--count", "3")
    assert whole["00000.txt"] == b"a frog\n"
    assert whole["00001.txt"] == b"two (frogs)\n"
    assert whole["00000.png"] != whole["00002.png"]
    with Image.open(tmp_path / "reg" / "00001.png") as image:
        assert image.size == (32, 48)
        assert "Seed: 6," in image.text["parameters"]
        assert image.text["parameters"].endswith(", Emphasis: None")  # they are text
    (tmp_path / "reg" / "00001.png").unlink()  # as if the command had been stopped there
    more = draw("reg", *words, "--count", "4")
    assert {name: more[name] for name in whole} == whole
    assert len([name for name in more if name.endswith(".png")]) == 4
    (tmp_path / "reg" / "00001.txt").unlink()
    (tmp_path / "reg" / "00002.txt").write_text("my own\n", encoding="utf-8")
    again = draw("reg", *words, "--count", "4")
    assert again == {**more, "00002.txt": b"my own\n"}


def test_a_folder_of_other_settings_is_left_alone(draw, tmp_path):
    draw("reg", "--words", "a frog", "--count", "1")
    for other in (["--words", "a toad"], ["--words", "a frog", "--guidance", "3"]):
        with pytest.raises(ConfigError, match="started with other settings"):
            draw("reg", *other, "--count", "1")
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "holiday.jpg")
    with pytest.raises(ConfigError, match=r"holds holiday\.jpg"):
        draw("mine", "--words", "a frog", "--count", "1")
    with pytest.raises(ConfigError, match="either --words"):
        draw("new", "--count", "1")
    (tmp_path / "reg" / ".prior.json").write_text("[", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        draw("reg", "--words", "a frog", "--count", "1")


def test_captions_are_drawn_once_each_and_a_run_takes_them(draw, pictures, tmp_path):
    """Thirteen images have three captions; the drawn images balance a dataset without warnings."""
    found = draw("reg", "--captions-of", str(pictures), "--count", "4")
    texts = [found[f"0000{n}.txt"].decode() for n in range(4)]
    assert texts == ["a red ball\n", "a green ball\n", "a blue ball\n", "a red ball\n"]
    subsets = [{"image_dir": str(pictures)}, {"image_dir": str(tmp_path / "reg"), "is_reg": True}]
    values = {"datasets": [{"subsets": subsets}], "resolution": 256}
    scan = scan_all(build_dataset_config(values, source="test"), SilentProgress())
    drawn = [record for record in scan.records if record.subset.is_reg]
    assert [record.fixed_caption for record in drawn] == [text.strip() for text in texts]
    assert not list(scan.describe_unused())
