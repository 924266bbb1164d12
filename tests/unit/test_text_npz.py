"""sd-scripts' files of encoded captions: written beside images, and used only if they fit."""

import json
import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import draw_images
from two_encoders import write_model

from impasto.cli.dataset import dataset
from impasto.cli.outlook import look_ahead
from impasto.data.caching.text_npz import TOKEN_IDS, is_before, read_text_npz, write_text_npz
from impasto.data.captions import CaptionRules
from impasto.data.engines.stages import Failure
from impasto.data.folders.listing import Sidecars
from impasto.data.scanning.scan import scan_folder
from impasto.data.subsets import Subset
from impasto.errors import ConfigError, DatasetError, ImpastoError
from impasto.models.families import SDXL
from impasto.models.networks.loading import load_base_model
from impasto.models.networks.tokenizers import build_tokens
from impasto.models.text.text_conditioner import ClipTextConditioner
from impasto.models.text.text_exchange import AS_SD_SCRIPTS, export_texts, shape_in_files
from impasto.models.text.text_memory import TextCache
from impasto.models.text.text_states import TextStates
from impasto.models.tokenization.tokens import TextLayout
from impasto.progress import SilentProgress
from impasto.training.builders.given_text import find_given_texts
from impasto.training.builders.methods import build_trainable
from impasto.training.fingerprints.fingerprint import TEXT_FILES, differences, recorded_texts
from impasto.training.trainer import resume, train

CPU = torch.device("cpu")
SILENT = SilentProgress()
ENDING = SDXL.text_npz_ending


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, nano_architecture):
    return write_model(nano_architecture, tmp_path_factory.mktemp("models") / "sdxl", SDXL)


@pytest.fixture(scope="module")
def model(model_folder):
    return load_base_model(model_folder)


@pytest.fixture
def folder(tmp_path):
    made = draw_images(tmp_path / "set", 3)
    (made / "001.txt").write_text("a (big) ball, " + "very " * 90, encoding="utf-8")
    return made


@pytest.fixture
def config(train_config, model_folder, folder):
    return train_config(
        model={"path": str(model_folder)},
        dataset={"image_dir": str(folder)},
        training={"text_from_npz": True},
    )


class Told(SilentProgress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


def records_of(folder, **subset):
    return scan_folder(folder, subset=Subset(root=folder, **subset)).records


def found_in(folder, config, model, told=SILENT, **subset):
    records = records_of(folder, **subset)
    return find_given_texts(config, model, TextStates.of(model), lambda: records, CPU, told)


def refusals(folder, config, model, **subset):
    """Invalid file -> the reason why it is not used."""
    told = Told()
    found_in(folder, config, model, told, **subset)
    lines = (line.removeprefix("  not used: ").partition(": ") for line in told.lines[1:])
    return {name: reason for name, _, reason in lines}


def as_sd_scripts_writes(file, **changes):
    """Rewrite a file without what it records of its tokens, like sd-scripts' own files."""
    with np.load(file) as arrays:
        kept = {name: array for name, array in arrays.items() if name != TOKEN_IDS}
    np.savez(file, **(kept | changes))


def make_older(path, seconds):
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))


def test_captions_are_written_as_sd_scripts_keeps_them(model, folder):
    exported = export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    assert (exported.written, exported.refused) == (3, ())
    assert exported.cut == (folder / "001.png",)
    assert exported.warning.startswith("1 caption has over 75 tokens (001.png), and")
    assert "--max_token_length 150 or 225" in exported.warning
    states = TextStates.of(model)
    conditioner = ClipTextConditioner(build_tokens(model, AS_SD_SCRIPTS), states, states.shape)
    for stem in ("000", "001", "002"):
        text = (folder / f"{stem}.txt").read_text(encoding="utf-8")
        arguments = conditioner([text]).arguments  # without sizes, states only
        with np.load(folder / f"{stem}_te_outputs.npz") as arrays:
            assert set(arrays) == {"hidden_state1", "hidden_state2", "pool2", TOKEN_IDS}
            first, second, pooled = (arrays[n] for n in ("hidden_state1", "hidden_state2", "pool2"))
        assert {array.dtype for array in (first, second, pooled)} == {np.dtype(np.float32)}
        assert (first.shape, second.shape, pooled.shape) == ((77, 16), (77, 24), (20,))
        together = torch.from_numpy(np.concatenate([first, second], axis=1))
        expected = arguments["encoder_hidden_states"][0]
        torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
        row = states(torch.tensor([conditioner.chunks_of(text)[0]]))
        torch.testing.assert_close(torch.from_numpy(pooled), row[0, -20:], atol=1e-5, rtol=1e-5)


def test_what_fits_is_used_and_nothing_is_encoded(model, folder, config):
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    for file in folder.glob("*_te_outputs.npz"):
        as_sd_scripts_writes(file)
    (folder / "001.txt").write_text("short", encoding="utf-8")
    (folder / "001_te_outputs.npz").unlink()
    told = Told()
    given = found_in(folder, config, model, told)
    assert told.lines == ["Text encoder outputs in files are used for 2 of 3 captions."]
    encoded = []

    def encode(ids):
        encoded.append(ids)
        return states(ids)

    states = TextStates.of(model)
    conditioner = ClipTextConditioner(build_tokens(model, TextLayout()), states, states.shape)
    memory = TextCache(1 << 20, CPU, given=given)
    ids = [conditioner.chunks_of(r.fixed_caption)[0] for r in records_of(folder)]
    with torch.no_grad():
        expected = states(torch.tensor(ids))
    found = memory.states_of(torch.tensor(ids), encode)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert [one.tolist() for one in encoded] == [[list(ids[1])]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_state1": np.zeros((77, 40), np.float16)}, "other text encoders than this"),
        ({"hidden_state2": np.zeros((2, 77, 24))}, "other text encoders than this"),
        ({"pool2": np.zeros(7)}, "other text encoders than this"),
        (
            {"hidden_state1": np.zeros((227, 16)), "hidden_state2": np.zeros((227, 24))},
            'need model.max_tokens = 225 with model.token_join = "kohya"',
        ),
        (
            {"hidden_state1": np.zeros((91, 16)), "hidden_state2": np.zeros((91, 24))},
            "holds 91 positions, which no setting of sd-scripts makes; expected 77",
        ),
        ({"pool2": np.full(20, np.nan)}, "holds NaN, infinite or integer values"),
        ({"pool2": np.zeros(20, np.int64)}, "holds NaN, infinite or integer values"),
        ({TOKEN_IDS: np.zeros(154, np.int32)}, "made from another caption"),
    ],
)
def test_files_of_something_else_are_named(model, folder, config, changes, words):
    """Files of SD 1 or SD 3 have arrays of other shapes or names."""
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    as_sd_scripts_writes(folder / "000_te_outputs.npz", **changes)
    (refused,) = refusals(folder, config, model).items()
    assert refused[0] == "000_te_outputs.npz"
    assert words in refused[1]


def joined_files(folder, model, length):
    """Write files as sd-scripts does with `--max_token_length`, of the current captions."""
    layout = TextLayout(length, "kohya", "plain", "off")
    states = TextStates.of(model)
    widths = states.shape.widths
    conditioner = ClipTextConditioner(build_tokens(model, layout), states, states.shape)
    for record in records_of(folder):
        text = record.fixed_caption
        joined = conditioner([text]).arguments["encoder_hidden_states"][0].numpy()
        row = states(torch.tensor([conditioner.chunks_of(text)[0]]))
        np.savez(
            record.path.with_name(f"{record.path.stem}{ENDING}"),
            hidden_state1=joined[:, : widths[0]],
            hidden_state2=joined[:, widths[0] :],
            pool2=row[0, -states.shape.pooled :].detach().numpy(),
        )


@pytest.fixture
def longer(train_config, model_folder, folder):
    """Return settings with sd-scripts' layout for longer captions."""

    def settings(**changes):
        layout = {"max_tokens": 150, "token_join": "kohya", "token_split": "plain"}
        return train_config(
            model={"path": str(model_folder), **layout, **changes},
            dataset={"image_dir": str(folder)},
            training={"text_from_npz": True},
        )

    return settings


def require_as_encoded(model, given, captions):
    """Require that values from files equal the encoder's; return the chunks that were encoded.

    One memory serves all captions, as in a run.
    """
    states = TextStates.of(model)
    tokens = build_tokens(model, TextLayout(150, "kohya", "plain", "off"))
    plain = ClipTextConditioner(tokens, states, states.shape)
    asked = []

    class Watched(TextStates):
        def forward(self, ids):
            asked.extend(map(tuple, ids.tolist()))
            return super().forward(ids)

    memory, watched = TextCache(1 << 20, CPU, given=given), Watched(states.by_name())
    taking = ClipTextConditioner(tokens, watched, states.shape, memory=memory)
    for caption in captions:
        found, expected = taking([caption]).arguments, plain([caption]).arguments
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)
    return asked


def chunks_of(model, caption):
    tokens = build_tokens(model, TextLayout(150, "kohya", "plain", "off"))
    return ClipTextConditioner(tokens, TextStates.of(model)).chunks_of(caption)


def test_longer_captions_are_taken_from_joined_files(model, folder, longer):
    """Other chunks that the run needs are encoded: here the empty chunk."""
    joined_files(folder, model, 150)
    told = Told()
    given = found_in(folder, longer(), model, told)
    assert told.lines == ["Text encoder outputs in files are used for 3 of 3 captions."]
    second = chunks_of(model, (folder / "001.txt").read_text(encoding="utf-8"))[1]
    empty = chunks_of(model, "")[0]
    assert given.indices == {second: 1, empty: 1}
    captions = [record.fixed_caption for record in records_of(folder)]
    assert require_as_encoded(model, given, captions) == []
    assert require_as_encoded(model, given, [*captions, "", *captions]) == [empty]


def test_a_chunk_that_another_caption_ends_on_is_encoded(model, folder, longer):
    """The file lacks the last position, which another caption uses."""
    words = " ".join(["ball"] * 75)
    (folder / "001.txt").write_text(words, encoding="utf-8")  # and then an empty chunk
    (folder / "002.txt").write_text(f"{words} {words}", encoding="utf-8")  # ends on it
    joined_files(folder, model, 150)
    (folder / f"002{ENDING}").unlink()
    given = found_in(folder, longer(), model)
    captions = [words, f"{words} {words}", words]
    assert require_as_encoded(model, given, captions) == [chunks_of(model, words)[0]]


def test_captions_that_vary_take_of_joined_files_only_what_these_have(model, folder, longer):
    """A variant may start on the second chunk of a file, or end on the first one."""
    words = " ".join(["ball"] * 75)
    (folder / "001.txt").write_text(f"{words} red, blue", encoding="utf-8")
    joined_files(folder, model, 150)
    given = found_in(folder, longer(), model)
    first, second = chunks_of(model, f"{words} red, blue")
    asked = require_as_encoded(model, given, [f"{words} red, blue", "red, blue", f"red {words}"])
    assert second in asked
    assert first not in asked
    assert require_as_encoded(model, given, [f"{words} {words}"]) == [first]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"token_join": "a1111"}, 'need model.max_tokens = 150 with model.token_join = "kohya"'),
        ({"token_split": "comma"}, 'and model.token_split = "plain". The present settings use 77'),
        ({"max_tokens": 225}, "need model.max_tokens = 150 with model.token_join"),
    ],
)
def test_joined_files_fit_no_other_layout(model, folder, longer, changes, words):
    joined_files(folder, model, 150)
    found = refusals(folder, longer(**changes), model)
    assert len(found) == 3
    assert all(words in reason for reason in found.values())


def test_files_of_one_chunk_serve_short_captions_of_longer_layouts(model, folder, longer):
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    told = Told()
    found_in(folder, longer(), model, told)
    assert told.lines[0] == "Text encoder outputs in files are used for 2 of 3 captions."
    assert "001_te_outputs.npz: the caption has over 75 tokens, and the file holds" in told.lines[1]


def test_a_file_of_another_family_or_a_damaged_one_is_named(model, folder):
    shape = shape_in_files(TextStates.of(model).shape)
    file = folder / "000_te_outputs.npz"
    np.savez(file, lg_out=np.zeros((77, 8)), t5_out=np.zeros((77, 8)), lg_pooled=np.zeros(8))
    found = read_text_npz(file, shape)
    assert isinstance(found, Failure)
    assert "holds no hidden_state1, no hidden_state2, no pool2" in found.reason
    file.write_bytes(b"PK\x03\x04 and no more")
    assert "damaged" in read_text_npz(file, shape).reason
    with file.open("wb") as big:
        big.truncate(17 << 20)
    assert "larger than 16 MiB" in read_text_npz(file, shape).reason


def test_words_that_were_changed_after_it_make_it_stale(model, folder, config):
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    (folder / "002.txt").write_text("another ball", encoding="utf-8")  # known by its tokens
    as_sd_scripts_writes(folder / "000_te_outputs.npz")
    make_older(folder / "000_te_outputs.npz", 5)
    found = refusals(folder, config, model)
    assert "older than 000.txt" in found["000_te_outputs.npz"]
    assert "made from another caption" in found["002_te_outputs.npz"]
    assert set(found) == {"000_te_outputs.npz", "002_te_outputs.npz"}  # and not the long one's
    assert is_before(folder / "001_te_outputs.npz", [folder / "none.txt"]) is None


def test_files_that_impasto_did_not_write_are_never_replaced(model, folder):
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    theirs = folder / "000_te_outputs.npz"
    as_sd_scripts_writes(theirs)
    (folder / "001_te_outputs.npz").write_bytes(b"damaged, and somebody's")
    before = [theirs.read_bytes(), (folder / "001_te_outputs.npz").read_bytes()]
    exported = export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    assert exported.written == 1
    assert [item.path.name for item in exported.refused] == ["000.png", "001.png"]
    assert "000_te_outputs.npz already exists, was not written by" in exported.refused[0].reason
    assert [theirs.read_bytes(), (folder / "001_te_outputs.npz").read_bytes()] == before


def test_the_words_of_a_subset_with_its_own_ending_are_looked_at(model, folder, config):
    """A subset's `.caption` and `.txt` files are not captions if it has its own suffix."""
    for file in folder.glob("*.txt"):
        file.with_suffix(".tags").write_text("a red ball", encoding="utf-8")
        file.unlink()
    own = config.model_copy(
        update={"dataset": config.dataset.model_copy(update={"caption_extension": ".tags"})}
    )
    records = scan_folder(
        folder, subset=Subset(root=folder), sidecars=Sidecars(".tags", "")
    ).records
    export_texts(records, model, ENDING, CPU, SILENT)
    for stem in ("000", "001"):
        as_sd_scripts_writes(folder / f"{stem}_te_outputs.npz")
    make_older(folder / "000_te_outputs.npz", 5)
    (folder / "001.txt").write_text("no caption of this run", encoding="utf-8")
    make_older(folder / "001.txt", -60)
    told = Told()
    find_given_texts(own, model, TextStates.of(model), lambda: records, CPU, told)
    assert told.lines == [
        "Text encoder outputs in files are used for 2 of 3 captions.",
        "  not used: 000_te_outputs.npz: older than 000.tags, which was changed after it was made",
    ]


@pytest.mark.parametrize(
    "rules",
    [{"prefix": "masterpiece,"}, {"suffix": "sks"}, {"secondary_separator": ";"}],
)
def test_where_settings_change_captions_only_our_own_files_are_used(model, folder, config, rules):
    captions = {"captions": CaptionRules(**rules)}
    export_texts(records_of(folder, **captions), model, ENDING, CPU, SILENT)
    as_sd_scripts_writes(folder / "000_te_outputs.npz")
    found = refusals(folder, config, model, **captions)
    assert set(found) == {"000_te_outputs.npz"}
    assert "made by another program, and" in found["000_te_outputs.npz"]
    (name,) = rules
    assert name in found["000_te_outputs.npz"]


def test_class_tokens_and_lost_captions_leave_other_files_unused(model, folder, config):
    """No caption file exists whose time could be compared."""
    (folder / "000.txt").unlink()
    for words, reason in (("", "has no caption file now"), ("sks dog", "class_tokens")):
        export_texts(records_of(folder, class_tokens=words), model, ENDING, CPU, SILENT)
        as_sd_scripts_writes(folder / "000_te_outputs.npz")
        found = refusals(folder, config, model, class_tokens=words)
        assert reason in found["000_te_outputs.npz"]
        (folder / "000_te_outputs.npz").unlink()


def test_an_image_in_two_subsets_needs_one_caption_for_its_file(model, folder, config):
    one, same = records_of(folder), records_of(folder, repeats=2)
    assert export_texts([*one, *same], model, ENDING, CPU, SILENT).written == 3
    other = records_of(folder, captions=CaptionRules(prefix="sks"))
    exported = export_texts([*one, *other], model, ENDING, CPU, SILENT)
    assert exported.written == 0
    assert "several subsets, which give it different captions" in exported.refused[0].reason
    told = Told()
    states = TextStates.of(model)
    find_given_texts(config, model, states, lambda: [*one, *other], CPU, told)
    assert told.lines[0] == "Text encoder outputs in files are used for 0 of 6 captions."
    assert "several subsets" in told.lines[1]


def test_some_files_of_each_subset_are_compared(model, tmp_path, train_config, model_folder):
    """A small subset whose files are of another model is not hidden by a large one."""
    large, small = draw_images(tmp_path / "large", 20), draw_images(tmp_path / "small", 2)
    subsets = [{"image_dir": str(folder)} for folder in (large, small)]
    config = train_config(
        model={"path": str(model_folder)},
        dataset={"image_dir": None, "datasets": [{"subsets": subsets}]},
        training={"text_from_npz": True},
    )
    records = []
    for number, folder in enumerate((large, small)):
        for file in folder.glob("*.txt"):
            file.write_text(f"{folder.name} {file.stem}", encoding="utf-8")
        records += scan_folder(folder, subset=Subset(root=folder, number=number)).records
    export_texts(records, model, ENDING, CPU, SILENT)
    find_given_texts(config, model, TextStates.of(model), lambda: records, CPU, SILENT)
    file = small / "001_te_outputs.npz"
    with np.load(file) as arrays:
        as_sd_scripts_writes(file, pool2=-arrays["pool2"])
    with pytest.raises(DatasetError, match=r"001_te_outputs\.npz does not hold the outputs"):
        find_given_texts(config, model, TextStates.of(model), lambda: records, CPU, SILENT)


def test_a_name_too_long_for_the_file_is_no_error(model, tmp_path, config):
    folder = draw_images(tmp_path / "long", 1)
    stem = "n" * 245  # with its suffix, longer than a file name may be
    (folder / "000.png").rename(folder / f"{stem}.png")
    (folder / "000.txt").rename(folder / f"{stem}.txt")
    assert found_in(folder, config, model).files == {}
    exported = export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    assert exported.written == 0
    assert len(exported.refused) == 1


def test_images_that_share_a_file_and_captions_that_vary_have_none(model, folder, config):
    (folder / "000.jpg").write_bytes((folder / "000.png").read_bytes())
    exported = export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    assert exported.written == 2
    assert "one .npz belongs to" in exported.refused[0].reason
    write_text_npz(folder / "000_te_outputs.npz", [], np.zeros(0), ())
    assert "one .npz belongs to" in refusals(folder, config, model)["000_te_outputs.npz"]
    varied = {"captions": CaptionRules(shuffle=True)}
    assert not export_texts(records_of(folder, **varied), model, ENDING, CPU, SILENT).written
    found = refusals(folder, config, model, **varied)
    assert found["002_te_outputs.npz"] == "the caption changes each time that it is shown"


def test_two_files_of_one_caption_must_agree(model, folder, config):
    (folder / "002.txt").write_text("a red ball", encoding="utf-8")
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    for stem, factor in (("000", 1.0), ("002", 1.05)):  # by bfloat16's rounding, and by more
        with np.load(folder / f"{stem}_te_outputs.npz") as arrays:
            pooled = arrays["pool2"] * factor
        as_sd_scripts_writes(folder / f"{stem}_te_outputs.npz", pool2=pooled)
    assert refusals(folder, config, model) == {}
    as_sd_scripts_writes(folder / "002_te_outputs.npz", pool2=-pooled)
    found = refusals(folder, config, model)
    assert "differs from 000_te_outputs.npz" in found["002_te_outputs.npz"]


def test_texts_of_another_model_end_the_run_before_it_begins(
    model, folder, config, nano_architecture, tmp_path
):
    """All files are then wrong, and only their values show it."""
    other = load_base_model(model.contents.source)
    for network in other.text_encoders.values():
        for parameter in network.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    told = Told()
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    look_ahead(config, told)
    assert "Text encoder outputs in files are used for 3 of 3 captions." in told.lines
    export_texts(records_of(folder), other, ENDING, CPU, SILENT)
    with pytest.raises(
        DatasetError, match=r"does not hold the outputs of this model's text encoders"
    ):
        found_in(folder, config, model)
    with pytest.raises(DatasetError, match=r"not hold the outputs of this model's text encoders"):
        look_ahead(config, SILENT)


def test_files_that_a_state_recorded_are_used_whatever_their_time(model, folder, config):
    """A dataset copied without its times resumes; a file with other content does not."""
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    for stem in ("000", "002"):
        as_sd_scripts_writes(folder / f"{stem}_te_outputs.npz")
    before = found_in(folder, config, model).recorded
    for stem in ("000", "002"):
        make_older(folder / f"{stem}_te_outputs.npz", 5)
    states, records = TextStates.of(model), records_of(folder)
    again = find_given_texts(config, model, states, lambda: records, CPU, SILENT, before)
    assert again.recorded == before
    without = found_in(folder, config, model).recorded
    with np.load(folder / "000_te_outputs.npz") as arrays:
        as_sd_scripts_writes(folder / "000_te_outputs.npz", pool2=arrays["pool2"] * 1.01)
    make_older(folder / "000_te_outputs.npz", 5)
    other = find_given_texts(config, model, states, lambda: records, CPU, SILENT, before)
    names = [entry.partition(" ")[2] for entry in other.recorded.values()]
    assert sorted(names) == ["001_te_outputs.npz", "002_te_outputs.npz"]
    saved, current = ({TEXT_FILES: json.dumps(each)} for each in (before, without))
    assert differences(saved, saved) == []
    (difference,) = differences(saved, current)
    assert "(2 no longer used: 000_te_outputs.npz, 002_te_outputs.npz)" in difference
    (difference,) = differences(current, saved)
    assert "(2 used now but not before: 000_te" in difference
    (difference,) = differences(saved, {})
    assert "3 no longer used" in difference
    assert recorded_texts({TEXT_FILES: "{damaged"}) == recorded_texts({TEXT_FILES: "[]"}) == {}


def test_a_file_that_changes_while_it_is_used_ends_the_run(model, folder, config):
    export_texts(records_of(folder), model, ENDING, CPU, SILENT)
    given = found_in(folder, config, model)
    ids, (file, _) = next(iter(given.files.items()))
    with np.load(file) as arrays:
        as_sd_scripts_writes(file, pool2=arrays["pool2"] * 1.01)
    with pytest.raises(DatasetError, match="was changed or removed while the run was using it"):
        given.read(ids)
    assert given.recorded != found_in(folder, config, model).recorded


def test_it_is_refused_where_it_would_do_nothing(train_config, nano_model, config):
    sd1 = train_config(model={"path": str(nano_model)}, training={"text_from_npz": True})
    with pytest.raises(ConfigError, match=r"text_from_npz has no effect.*SD 1\.x"):
        build_trainable(sd1, load_base_model(nano_model))
    for method, words in (
        ({"train_text_encoder": True}, "contradict each other"),
        ({"kind": "hypernetwork", "templates": ["a photo of [name]"]}, "caption templates"),
    ):
        saving = {"format": "a1111"} if "kind" in method else {}
        with pytest.raises(ConfigError, match=f"text_from_npz.*{words}"):
            train_config(training={"text_from_npz": True}, method=method, saving=saving)


@pytest.mark.usefixtures("fresh_accelerate")
def test_a_run_takes_its_texts_from_files_and_its_states_know_them(
    config, model_folder, folder, tmp_path
):
    written = CliRunner().invoke(
        dataset,
        ["cache", str(folder), str(model_folder), "--resolution", "80", "--min-side", "32",
         "--max-side", "96", "--step", "32", "--export-te-npz"],
    )  # fmt: skip
    assert written.exit_code == 0, written.output
    assert "Warning: 1 caption has over 75 tokens" in written.output
    assert not list(folder.glob("*_sdxl.npz"))
    assert "Written as _te_outputs.npz" in written.output
    losses = {}
    for name in ("encoded", "given", "bent"):
        training = {"max_steps": 1, "text_from_npz": name != "encoded"}
        if name == "bent":
            for file in folder.glob("*_te_outputs.npz"):
                with np.load(file) as arrays:
                    as_sd_scripts_writes(file, hidden_state1=arrays["hidden_state1"] * 1.05)
        run = train(
            config.model_copy(
                update={
                    "output_dir": tmp_path / name,
                    "training": config.training.model_copy(update=training),
                }
            )
        )
        losses[name] = [record["loss"] for record in run.read_metrics()]
    assert losses["given"] == pytest.approx(losses["encoded"], rel=1e-5)
    assert losses["bent"] != pytest.approx(losses["encoded"], rel=1e-5)
    longer = config.model_copy(
        update={
            "output_dir": tmp_path / "given",
            "training": config.training.model_copy(update={"max_steps": 2}),
        }
    )
    with pytest.raises(
        ImpastoError,
        match=r"outputs in files \(3 with changed content: 000_te_outputs\.npz, "
        r"001_te_outputs\.npz, ",
    ):
        resume(longer.output_dir, changed=longer)
