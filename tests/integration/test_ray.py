"""Ray Data prepares what this machine alone does: the same keys and bytes, whatever dies."""

import hashlib
from pathlib import Path

import pytest
import torch
from conftest import draw_images
from object_store import put_folder
from packing import PACKED
from ray_stages import Break, Halve, NotingThreads, Recipe, Square, encoder_of

from impasto.annotate.annotation import ImageReading, TagAnnotator, annotate
from impasto.annotate.caption_targets import Sidecars
from impasto.annotate.dataset_folders import DatasetFolders
from impasto.annotate.onnx_tagger import OnnxTagger
from impasto.annotate.remote import RemoteAnnotator, TaggerRecipe
from impasto.annotate.tags import Selection, Spelling
from impasto.data.caching.filling import cache_latents
from impasto.data.caching.latent_cache import LatentCache
from impasto.data.engines.engine import LOCAL
from impasto.data.engines.ray_cluster import import_ray
from impasto.data.engines.ray_engine import RayEngine
from impasto.data.engines.ray_inside import LIMITS_EVERY_S, LOOKS_EVERY_S
from impasto.data.engines.stages import Failure, chunks
from impasto.data.inspecting.likeness import PerceptualHashes
from impasto.data.pixels import content_hashes
from impasto.data.pixels.content_hashes import ContentHashes
from impasto.data.planning.plan import BucketRules, plan_images
from impasto.data.records import Size
from impasto.data.scanning.scan import decode_all, scan_folder
from impasto.data.subsets import MaskRules, Subset
from impasto.demo.recipe import PICTURES
from impasto.errors import ConfigError
from impasto.progress import SilentProgress


class Notes(SilentProgress):
    def __init__(self):
        self.lines = []

    def note(self, message):
        self.lines.append(message)


@pytest.fixture(scope="module")
def ray_here(tmp_path_factory):
    """One Ray cluster for all tests of this file, shut down after them."""
    folder = tmp_path_factory.mktemp("shared")
    notes = Notes()
    engine = RayEngine(None, [folder], folder, notes.note)
    engine.running()
    yield engine
    engine.close()
    assert any("had to be repeated" in line for line in notes.lines)
    assert list(folder.iterdir()) == []


def squares(numbers):
    return [(n, Failure("seven") if n == 7 else n * n) for n in numbers]


def test_results_come_in_the_order_of_the_items(ray_here):
    found = ray_here.executor(Square()).run(chunks(range(12), 5))
    assert [pair for batch in found for pair in batch] == squares(range(12))
    assert list(ray_here.executor(Square()).run([])) == []


def test_workers_get_their_next_tasks_soon(ray_here):
    """The internal values that are set exist in this version of Ray."""
    from ray.data._internal.execution import resource_manager, streaming_executor_state

    assert streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S == LOOKS_EVERY_S
    assert resource_manager.ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S == LIMITS_EVERY_S


@pytest.mark.slow
def test_what_ends_a_worker_costs_itself_or_nothing(ray_here, tmp_path):
    """13 ends every worker that gets it, 21 the first actor."""
    halves = ray_here.actors.run(Halve(tmp_path / "opened"), chunks(range(10, 24), 3))
    outcomes = dict(pair for batch in halves for pair in batch)
    assert "ended the process" in outcomes.pop(13).reason
    assert outcomes == {n: n * n / 2 for n in range(10, 24) if n != 13}
    assert (tmp_path / "opened.ended").exists()
    assert len((tmp_path / "opened").read_text(encoding="utf-8").splitlines()) == 2


def contents(folder: Path) -> dict[str, str]:
    """Return the files of a cache, with hashes of their bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("shard-*")
    }


def prepared(subset: Subset, derived: Path, encoder, engine=LOCAL):
    """Run all preparation stages; return their results and the cache."""
    more, folder = {"engine": engine}, subset.root
    scan = scan_folder(folder, index=derived / "scan.json", subset=subset, **more)
    scan = decode_all(scan, memory=derived / "decoded.json", **more)
    stamps = {record.path: record.stamp for record in scan.records}
    digests = ContentHashes(derived / "hashes.json").of(stamps, **more)
    looks, _ = PerceptualHashes(derived / "looks.json").of(
        scan.records, digests, SilentProgress(), **more
    )
    rules = BucketRules(min_side=32, max_side=96, step=32)
    planned = plan_images(scan.records, Size(80, 80), rules=rules).images
    cached = cache_latents(planned, LatentCache(derived / "latents"), encoder, **more)
    found = (
        list(scan.records),
        scan.skipped,
        digests,
        looks,
        list(cached.keys),
        cached.skipped,
    )
    return found, contents(derived / "latents")


def test_keys_and_bytes_are_those_of_this_machine_alone_also_after_a_kill(ray_here, tmp_path):
    folder = draw_images(tmp_path / "pictures", 9)
    (folder / "004.png").write_bytes((folder / "004.png").read_bytes()[:-40])  # cut short
    subset = Subset(root=folder, flips=True, masks=MaskRules(alpha=True))
    expected = prepared(subset, tmp_path / "local", encoder_of(Recipe()))
    encoder = encoder_of(Recipe(tmp_path / "ended"))
    found = prepared(subset, tmp_path / "ray", encoder, ray_here)
    assert (tmp_path / "ended").exists()  # the process that encoded was killed
    assert found == expected
    assert len(expected[1]) >= 8  # shards and indices, of latents and masks


def test_images_inside_tars_and_tables_are_prepared_alike(ray_here, tmp_path, monkeypatch):
    monkeypatch.setattr(content_hashes, "FIRST_FILES", 2)  # hashed in several portions
    folder = draw_images(tmp_path / "pictures", 5)
    for kind, pack in PACKED.items():
        place, found = pack(folder, tmp_path / kind), []
        for engine in (LOCAL, ray_here):
            scan = decode_all(scan_folder(place, engine=engine), engine=engine)
            stamps = {record.path: record.stamp for record in scan.records}
            hashes = ContentHashes(tmp_path / f"{kind}-{len(found)}.json").of(stamps, engine=engine)
            found.append((list(scan.records), scan.skipped, hashes))
        assert found[0] == found[1]
        assert len(found[0][2]) == 5


def test_lost_results_are_an_error(ray_here):
    """Lost results are an error, even if Ray is configured to drop failures."""
    context = import_ray().data.DataContext.get_current()
    before, context.max_errored_blocks = context.max_errored_blocks, -1
    try:
        with pytest.raises(Exception, match="broken at 40"):
            list(ray_here.executor(Break()).run([[n] for n in range(38, 46)]))
        assert context.max_errored_blocks == -1
    finally:
        context.max_errored_blocks = before


@pytest.mark.slow
def test_images_and_latents_in_a_store_are_prepared_alike(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put_folder(draw_images(tmp_path / "pictures", 5), bucket / "pictures")
    engine = RayEngine(None, [bucket / "pictures"], bucket / "derived")
    encoder = encoder_of(Recipe())
    found = []
    try:
        for name, chosen in (("local", LOCAL), ("ray", engine)):
            scan = scan_folder(bucket / "pictures", index=tmp_path / f"{name}.json", engine=chosen)
            planned = plan_images(scan.records, Size(64, 64)).images
            cache = LatentCache(bucket / name)
            cached = cache_latents(planned, cache, encoder, engine=chosen)
            assert cached.encoded == 5
            found.append((list(cached.keys), cache.read([key.plain for key in cached.keys])[0]))
    finally:
        engine.close()
    assert found[1][0] == found[0][0]
    assert torch.equal(found[1][1], found[0][1])
    assert not Path("s3:").exists()


@pytest.mark.slow
def test_another_vae_in_the_workers_is_refused(ray_here, tmp_path):
    scan = scan_folder(draw_images(tmp_path / "pictures", 2))
    planned = plan_images(scan.records, Size(64, 64)).images
    encoder = encoder_of(Recipe(fingerprint="another"))
    with pytest.raises(ConfigError, match="makes other latents"):
        cache_latents(planned, LatentCache(tmp_path / "latents"), encoder, engine=ray_here)


@pytest.mark.slow
def test_a_run_that_is_left_early_ends(ray_here):
    running = ray_here.executor(Square(0.01)).run(chunks(range(20, 2020), 2))
    assert next(running) == squares([20, 21])
    running.close()
    found = ray_here.executor(Square()).run([[2]])
    assert list(found) == [[(2, 4)]]


def words_for(folder: Path, annotator, engine=LOCAL) -> list[tuple[str, str]]:
    """Return an annotator's captions for a folder, in order; nothing is written."""
    said: list[tuple[str, str]] = []
    target = Sidecars(
        ".txt", "overwrite", lambda _, new: new, DatasetFolders((folder,), folder / "notes")
    )
    done = annotate(
        scan_folder(folder).records,
        annotator,
        target,
        None,
        SilentProgress(),
        ImageReading(batch_size=2),
        show=lambda record, text: said.append((record.name, text)),
        engine=engine,
    )
    return [*said, *((item.path.name, item.reason) for item in done.skipped)]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_taggers_say_the_same_with_the_threads_of_this_process(ray_here, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in sorted(PICTURES.glob("*.webp"))[:4]:
        (folder / path.name).write_bytes(path.read_bytes())
    draw_images(folder, 1, captions=False)
    cut = folder / "000.png"
    cut.write_bytes(cut.read_bytes()[:-40])  # only its header can be read
    tagger = PICTURES.with_name("tagger")
    selection, spelling = Selection(0.5), Spelling()
    local = TagAnnotator(OnnxTagger(tagger), selection, spelling)
    recipe = TaggerRecipe(str(tagger), None, None, False, "cpu", selection, spelling)
    noting = NotingThreads(recipe, tmp_path / "threads")
    remote = RemoteAnnotator(local.prepare, noting, uses_gpu=False)
    expected = words_for(folder, local)
    assert words_for(folder, remote, ray_here) == expected
    assert remote.counts == local.counts
    assert noting.file.read_text(encoding="utf-8") == "3"
    assert len(expected) == 5
    assert remote.counts
    with pytest.raises(ConfigError, match="in this process"):
        words_for(folder, local, ray_here)
