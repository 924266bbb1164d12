"""Engines: their selection, counts and refusals, without Ray running."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import draw_images
from process_groups import in_threads
from ray_stages import Recipe, encoder_of
from support.warm import running

from impasto import files
from impasto.cli.dataset_options import with_executor
from impasto.cli.main import impasto
from impasto.config.load import build_dataset_config
from impasto.config.run import RunConfig
from impasto.data.caching.order_encoding import stage_of
from impasto.data.engines import ray_cluster, ray_folder, ray_inside
from impasto.data.engines.engine import LOCAL
from impasto.data.engines.ray_work import (
    ALONE,
    ITEMS,
    MADE,
    OPENINGS,
    TOGETHER,
    Attempts,
    Ground,
    Notebook,
    rows_of,
    run_stage,
)
from impasto.data.engines.stages import Failure, LocalExecutor
from impasto.data.scanning.scan import scan_folder
from impasto.datasets import build, engines
from impasto.demo.recipe import TAGGER
from impasto.errors import ConfigError, MissingDependencyError
from impasto.progress import SilentProgress


def settings(tmp_path, **values):
    return build_dataset_config({"image_dir": str(tmp_path), **values}, source="test")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ray_address": "auto"}, "set executor to ray"),
        ({"executor": "ray", "ray_address": ""}, "ray_address is empty"),
        ({"executor": "ray", "decode_workers": 0}, "decodes in processes only"),
        ({"executor": "dask"}, "executor"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path, values, words):
    with pytest.raises(ConfigError, match=words):
        settings(tmp_path, **values)


def test_options_hold_whatever_the_settings_say(tmp_path):
    of_ray = settings(tmp_path, executor="ray", ray_address="10.0.0.7:6379")
    assert with_executor(of_ray, None, None) is of_ray
    assert with_executor(of_ray, "local", None).ray_address is None
    assert with_executor(of_ray, None, "auto").ray_address == "auto"
    asked = with_executor(settings(tmp_path), None, "10.0.0.7:6379")
    assert (asked.executor, asked.ray_address) == ("ray", "10.0.0.7:6379")
    with pytest.raises(ConfigError, match="ray_address has no effect"):
        with_executor(of_ray, "local", "auto")
    with pytest.raises(ConfigError, match="decodes in processes only"):
        with_executor(settings(tmp_path, decode_workers=0), "ray", None)


def test_train_takes_the_address(tmp_path):
    file = tmp_path / "run.toml"
    written = "[model]\npath = 'base'\n[dataset]\nimage_dir = 'none'\n[training]\nmax_steps = 1\n"
    file.write_text(f"output_dir = 'run'\n{written}", encoding="utf-8")
    words = ["train", str(file), "--plan", "--json", "--ray-address", ""]
    found = CliRunner().invoke(impasto, words)
    assert "ray_address is empty" in found.output


def test_the_usual_engine_is_this_machine(tmp_path):
    with engines.open_engine(settings(tmp_path)) as engine:
        assert engine is LOCAL
        assert engine.actors is None


def test_nothing_of_ray_is_imported_unless_it_is_asked_for(tmp_path):
    program = (
        "import sys\n"
        "from impasto.cli.main import main\n"
        "try:\n    main(['dataset', 'scan', sys.argv[1]])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "import impasto.data.caching.filling\n"
        "import impasto.data.engines.ray_engine, impasto.data.engines.ray_cluster\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'ray'])\n"
    )
    found = running.run("-c", program, draw_images(tmp_path / "set", 1))
    assert found.stdout.splitlines()[-1] == "[]", found.stderr


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    config = settings(tmp_path, executor="ray")
    with (
        pytest.raises(MissingDependencyError, match="Ray Data is not installed") as error,
        engines.open_engine(config),
    ):
        pass
    assert error.value.extra == "ray"


@pytest.mark.parametrize("address", ["here", "host:port", "http://host:1", ":80", "ray://a:1"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ConfigError, match="is not the address of a Ray cluster"):
        ray_cluster._require_answer(address)


def test_a_cluster_that_does_not_answer_is_named():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(MissingDependencyError, match=f"127.0.0.1:{port} does not answer"):
        ray_cluster._require_answer(f"127.0.0.1:{port}")


def test_a_vae_that_is_in_memory_only_is_refused():
    assert stage_of(encoder_of(Recipe())).source == "vae-1"
    with pytest.raises(ConfigError, match="exists in memory only"):
        stage_of(encoder_of(None))


def test_an_encoder_that_makes_other_latents_is_refused():
    stage = stage_of(encoder_of(Recipe(fingerprint="other")))
    with pytest.raises(ConfigError, match="makes other latents"):
        stage.open()


class TestGround:
    def test_the_same_folder_is_known_by_its_probe(self, tmp_path):
        with ray_cluster.shared_ground([tmp_path], tmp_path / "derived") as ground:
            assert ground.fault() == ""
            assert Path(ground.probe).is_file()
            Path(ground.probe).write_text("of another machine", encoding="utf-8")
            assert "is another folder there" in ground.fault()
        assert list((tmp_path / "derived").iterdir()) == []

    @pytest.mark.parametrize(
        ("ground", "words"),
        [
            (Ground(("/nowhere-at-all",)), "the folder /nowhere-at-all does not exist there"),
            (Ground(probe="/nowhere-at-all/probe"), "is another folder there"),
            (Ground(version="0"), "the machine that asks has 0"),
            (Ground(python="2.7"), "the machine that asks has 2.7"),
        ],
    )
    def test_what_differs_is_said_with_the_machine(self, ground, words):
        assert words in ground.fault()
        with pytest.raises(ConfigError, match="cannot take part"):
            ground.require()

    def test_a_dry_run_writes_no_probe(self, tmp_path):
        with files.dry_run(), ray_cluster.shared_ground([tmp_path], tmp_path / "no") as ground:
            assert ground.fault() == ""
        assert not (tmp_path / "no").exists()


class Ended(BaseException):
    """Stands for the end of a process."""


class Workers:
    """Workers that end at some items, and are restarted, with a real notebook."""

    def __init__(self, deadly):
        self.deadly, self.ended, self.worked = deadly, 0, []
        notebook = Notebook()
        self.notebook = notebook
        self.attempts = Attempts(notebook, 0)

    def run(self, batch, number=0):
        def work(part):
            self.worked.append(batch[part])
            if any(self.deadly(item) for item in batch[part]):
                self.ended += 1
                raise Ended
            return [item * 10 for item in batch[part]]

        while True:
            try:
                return self.attempts.outcomes(number, len(batch), work)
            except Ended:
                assert self.ended < 20


def test_an_item_that_ends_every_worker_costs_only_itself():
    workers = Workers(lambda item: item == 3)
    one, two, three, four = workers.run([1, 2, 3, 4])
    assert [one, two, four] == [10, 20, 40]
    assert isinstance(three, Failure)
    assert three.is_transient
    assert workers.ended == TOGETHER + ALONE
    assert workers.notebook.repeated() > 0


def test_a_worker_that_ends_once_costs_nothing():
    left = [True]
    workers = Workers(lambda item: item == 2 and left.pop() if left else False)
    assert workers.run([1, 2, 3]) == [10, 20, 30]
    assert workers.worked == [[1, 2, 3], [1, 2, 3]]  # the same batch: the same bytes


def test_a_batch_that_is_repeated_for_another_is_no_suspect():
    """A task of several batches restarts from its first batch, which had been completed."""
    workers = Workers(lambda item: False)
    for _ in range(10):
        assert workers.run([1, 2]) == [10, 20]
    assert workers.notebook.repeated() == 0
    assert OPENINGS >= 1


@pytest.mark.parametrize("batches", [[[3, 4]], [[1, 2], [3, 4], [5, 6]]])
def test_an_item_of_several_batches_ends_no_more_workers_than_of_one(batches):
    """A first attempt counts for all batches of a task at once, later ones for each."""
    notebook, ended, worked = Notebook(), [], []

    class Stage:
        def __call__(self, batch):
            worked.append(list(batch))
            if 3 in batch:
                ended.append(batch)
                raise Ended
            return [item * 10 for item in batch]

    rows = rows_of(range(len(batches)), **{ITEMS: batches})
    for _ in range(20):
        try:
            made = list(run_stage(rows, Stage(), Ground(), Attempts(notebook, 0), keep=False))
            break
        except Ended:
            continue
    found = {
        item: outcome
        for block, batch in zip(made, batches, strict=True)
        for item, outcome in zip(batch, block[MADE][0].value, strict=True)
    }
    assert isinstance(found.pop(3), Failure)
    assert found == {item: item * 10 for batch in batches for item in batch if item != 3}
    assert len(ended) == TOGETHER + ALONE
    assert all(batch in ([3, 4], [3], [4]) or batch in batches for batch in worked)
    assert not notebook._open


def test_what_is_set_inside_of_a_library_is_set_back():
    module = LocalExecutor.__module__
    before = LocalExecutor.workers
    with contextlib.suppress(ValueError), ray_inside._having(module, "LocalExecutor.workers", 7):
        assert LocalExecutor.workers == 7
        raise ValueError
    assert LocalExecutor.workers == before
    for path in ("LocalExecutor.nothing", "Nothing.workers", "nothing"):
        with ray_inside._having(module, path, 7):
            assert not hasattr(LocalExecutor, "nothing")
    with ray_inside._having("impasto.nothing", "workers", 7):
        pass


def test_a_result_of_ray_that_is_missing_is_an_error():
    from impasto.data.engines.ray_engine import _require_next

    _require_next(3, 3)
    with pytest.raises(MissingDependencyError, match="batch 3 instead of batch 2"):
        _require_next(3, 2)


class AskedError(Exception):
    """Raised to end a test once the tested question was asked."""


def test_processes_after_the_first_start_no_ray(tmp_path, monkeypatch):
    from impasto.datasets import prepare

    asked = []

    @contextlib.contextmanager
    def open_engine(config, *_):
        asked.append((config.executor, config.ray_address))
        yield LOCAL

    def survey(config, _):
        asked.append(config.dataset.executor)
        raise AskedError

    monkeypatch.setattr(prepare, "open_engine", open_engine)
    monkeypatch.setattr(prepare, "survey", survey)
    config = run_settings(tmp_path)
    monkeypatch.setattr(prepare, "process_group", lambda group: group)

    def prepared(group):
        with pytest.raises(AskedError):
            prepare.prepare_data(config, encoder_of(None), group, SilentProgress())
        if group.rank == 0:
            group.gather("")  # the second process waits for it

    in_threads(2, prepared)
    assert asked == [("ray", "host:1"), "ray", ("local", None), "local"]


def run_settings(tmp_path):
    values = {
        "model": {"path": str(tmp_path)},
        "output_dir": str(tmp_path / "out"),
        "training": {"max_steps": 1},
        "dataset": {"image_dir": str(tmp_path), "executor": "ray", "ray_address": "host:1"},
    }
    return RunConfig.model_validate(values)


def test_the_split_of_a_plan_is_made_by_the_engine(tmp_path, monkeypatch):
    given, engine = [], object()
    monkeypatch.setattr(build, "open_engine", lambda *_: contextlib.nullcontext(engine))
    monkeypatch.setattr(build, "split_records", lambda *arguments: given.append(arguments[-1]))
    scan = scan_folder(draw_images(tmp_path / "pictures", 2))
    config = run_settings(tmp_path)
    build.split_of_source(scan, config, config.dataset)
    assert given == [engine]


@pytest.mark.parametrize("dry", [True, False])
def test_a_dry_run_of_tagging_is_one_also_where_the_engine_starts(tmp_path, monkeypatch, dry):
    from impasto.annotate import annotation

    kept = []

    def annotate(*_, **__):
        kept.append(files.writes_caches())
        raise ConfigError("far enough")

    monkeypatch.setattr(annotation, "annotate", annotate)
    words = ["dataset", "tag", str(draw_images(tmp_path / "pictures", 1)), "--model", str(TAGGER)]
    CliRunner().invoke(impasto, [*words, *(["--dry-run"] if dry else [])])
    assert kept == [not dry]


def test_the_folder_that_a_killed_command_left_goes_with_the_next_ray(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_folder, "_parent", lambda: tmp_path)
    gone = subprocess.run(
        [
            sys.executable,
            "-c",
            "from impasto.owners import current_process\nprint(current_process().token)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    for name, owner in (("left", gone), ("strange", "no token")):
        (tmp_path / f"impasto-ray-{name}").mkdir()
        (tmp_path / f"impasto-ray-{name}" / "owner").write_text(owner, encoding="utf-8")
    with ray_folder.ray_folder() as one, ray_folder.ray_folder() as two:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"impasto-ray-strange", one.name, two.name}
    assert [path.name for path in tmp_path.iterdir()] == ["impasto-ray-strange"]


def test_sockets_of_ray_have_a_short_path(monkeypatch):
    monkeypatch.setattr(ray_folder.tempfile, "gettempdir", lambda: "/t")
    assert ray_folder._parent() == Path("/t")
    monkeypatch.setattr(ray_folder.tempfile, "gettempdir", lambda: "/t" * 40)
    assert len(str(ray_folder._parent())) < 20 or sys.platform == "win32"
