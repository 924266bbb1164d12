"""The pages "New run": every route with good and bad input, and no typed value lost."""

import html
import io
import json
import os
import re
import shutil
import sys
import time
import tomllib
from pathlib import Path

import pytest
import tomli_w
from studios import FROM_HERE
from test_run_status import make_run

from impasto.config.fields import fields_of
from impasto.config.labels import label_of
from impasto.config.tree import all_settings
from impasto.demo.recipe import BASE_MODEL, PICTURES
from impasto.owners import current_process
from impasto.presence import free_path
from impasto.runs.events import EventLog
from impasto.runs.queue import Queue
from impasto.runs.tasks import TaskDirectory
from impasto.studio import plans as plans_module
from impasto.studio.choices import image_folders, model_paths
from impasto.studio.drafts import KEPT, Drafts
from impasto.studio.new_form import USUAL
from impasto.studio.pages import new_run, new_start
from impasto.studio.plans import Plans
from impasto.studio.starting import write_settings
from impasto.studio.tasks import Tasks

PLAN = {
    "error": None,
    "data": {"images": 9, "held_out": 1, "skipped": [{"path": "<b>.png", "reason": "empty"}],
             "without_words": 2, "several_lines": 0, "buckets": {"64x64": 9},
             "cropped_fraction": 0.0, "enlarged": 0, "too_long": 3, "max_tokens": 75},
    "model": {"family": "SD 1.x", "predicts": "epsilon", "evidence": "", "parts": {"unet": 5}},
    "steps": {"total": 1234, "per_epoch": 9, "epochs": 2.0, "batches_per_epoch": 9,
              "batch_sizes": [1],
              "exposure": {"images": 9, "per_step": 1.0, "looks": 136.7, "usual_looks": [30, 250]},
              "seconds_each": 0.5, "seconds": 617.0, "device": "cuda"},
    "memory": {"phase": "training", "parts": {"weights": 3 << 30}, "total": 3 << 30,
               "budget": 2 << 30},
    "disk": {"states": [], "state_bytes": 1, "kept_states": 2, "models": [], "model_bytes": 1,
             "models_at_once": 1, "total_bytes": 1 << 30, "free_bytes": 9 << 30},
    "warnings": ["<i>odd</i>"], "changed": {}, "notes": [], "doubt": "It is close.",
}  # fmt: skip


class Line(io.BytesIO):
    """The input of a process, passed on when a line is complete."""

    def __init__(self, ask):
        super().__init__()
        self.ask = ask

    def close(self):
        if not self.closed:
            self.ask(self.getvalue())
        super().close()


class Process:
    """A process that runs until it is ended."""

    pid, takes_up = -1, True

    def __init__(self):
        self.ended, self.stdin, self.request = False, Line(self.ask), None

    def ask(self, line):
        self.request = json.loads(line)
        if self.takes_up:
            self.log.write_text("Loading PyTorch ...\n", encoding="utf-8")

    @property
    def log(self):
        return Path(self.request["log"])

    @property
    def settings(self):
        return tomllib.loads(Path(self.request["settings"]).read_text(encoding="utf-8"))

    def poll(self):
        return 0 if self.ended else None

    def kill(self):
        self.ended = True

    def wait(self):
        self.ended = True


@pytest.fixture
def planned(monkeypatch):
    """Plans that are recorded but not made; each process runs until its end is set."""
    started = []

    def start(words, log, folder=None, environment=None, *, listens=False):
        assert (words, listens) == (["plan-worker"], True)
        process = Process()
        started.append(process)
        return process

    monkeypatch.setattr(plans_module, "start_apart", start)
    monkeypatch.setattr(plans_module, "_end", lambda process: process.kill())
    return started


@pytest.fixture
def tasks(monkeypatch, studio):
    """Tasks that are recorded but not started; `end` sets the outcome of one."""
    started = []

    def start(self, words, title, back="/", folder=None, made=None):
        name = f"20260101-000000-{len(started):06x}"
        task = TaskDirectory(studio.home / "tasks" / name)
        task.path.mkdir(parents=True)
        task.description_file.write_text(json.dumps({"title": title, "back": back, "words": []}))
        started.append(([str(word) for word in words], task))
        return name

    monkeypatch.setattr(Tasks, "start", start)
    return started


def end(task, code=0, error=""):
    lines = [{"kind": "begin"}, *([{"kind": "error", "text": error}] if error else [])]
    lines.append({"kind": "ended", "code": code})
    text = "".join(json.dumps({"time": 1.0, **line}) + "\n" for line in lines)
    task.events_file.write_text(text, encoding="utf-8")


@pytest.fixture
def pictures(folder):
    place = folder.parent / "data" / "cats"
    place.mkdir()
    (place / "a.png").write_bytes(b"")
    return place


@pytest.fixture
def good(folder, pictures):
    """Return the fields of a form without errors."""
    return {
        "output_dir": str(folder / "it"),
        "model.path": "owner/name",
        "dataset.image_dir": str(pictures),
        "training.max_steps": "5",
    }


@pytest.fixture
def draft(client):
    answer = client.post("/new/blank", headers=FROM_HERE, follow_redirects=False)
    assert answer.status_code == 303
    return answer.headers["location"]


def post(client, address, fields):
    return client.post(address, data=fields, headers=FROM_HERE, follow_redirects=False)


def shown_fields(text):
    """Return the values of a form's controls, as a browser would send them."""
    found = {}
    for name, value in re.findall(r'<input id="f-[^"]*" name="([^"]*)" value="([^"]*)"', text):
        found[name] = html.unescape(value)
    for name, value in re.findall(r'<textarea id="f-[^"]*" name="([^"]*)"[^>]*>\n(.*?)</textarea>',
                                  text, re.S):  # fmt: skip
        found[name] = html.unescape(value)
    for name, options in re.findall(r'<select id="f-[^"]*" name="([^"]*)".*?>(.*?)</select>',
                                    text, re.S):  # fmt: skip
        chosen = re.search(r'value="([^"]*)" selected', options)
        found[name] = html.unescape(chosen[1]) if chosen else ""
    return found


def faults(answer):
    found = re.findall(r'<li data-path="([^"]*)">.*?<span>(.*?)</span></li>', answer.text, re.S)
    return {path: html.unescape(words) for path, words in found}


# ways to start a run


def test_the_first_page_offers_goals_images_models_and_runs(client, folder, pictures):
    model = folder.parent / "models" / "it.safetensors"
    model.write_bytes(b"")
    make_run(folder / "dog", phase="finished", step=9, total_steps=9)
    text = client.get("/new").text
    assert text.count('name="goal"') == 4
    for path in (pictures, model):
        assert f'<option value="{path}">' in text
    assert ">dog</option>" in text
    assert 'href="/new">New run' in text


def test_a_goal_is_made_into_settings_by_the_verb(client, tasks, folder, pictures):
    typed = {"goal": "style", "data": str(pictures), "model": "owner/name", "vram": "8",
             "resolution": "", "clip_skip": "2"}  # fmt: skip
    answer = post(client, "/new/goal", typed)
    assert answer.status_code == 303
    [(words, task)] = tasks
    place = answer.headers["location"]
    file = Path(words[words.index("--out") + 1])
    assert words[:7] == ["new", "--goal", "style", "--data", str(pictures), "--model", "owner/name"]
    assert words[words.index("--output-dir") + 1] == str(folder / "cats-style")
    assert words[-4:] == ["--vram", "8", "--clip-skip", "2"]
    assert "killed" in client.get(place).text  # no process handles it here
    file.write_text('output_dir = "x"\n[training]\nmax_steps = 7\n', encoding="utf-8")
    end(task)
    assert client.get(f"{place}/waiting").headers["hx-redirect"] == place
    assert shown_fields(client.get(place).text)["training.max_steps"] == "7"


def test_datasets_and_models_go_by_the_names_that_pages_show(client, tasks, folder, pictures):
    models = folder.parent / "models"
    for name in ("it.safetensors", "one/same.ckpt", "two/same.ckpt"):
        (models / name).parent.mkdir(exist_ok=True)
        (models / name).write_bytes(b"")
    run = make_run(folder / "dog", phase="finished", step=9, total_steps=9)
    (folder / "dog" / "export").mkdir(exist_ok=True)
    (folder / "dog" / "export" / "learnt.safetensors").write_bytes(b"")
    assert run is None or run.is_there()

    def chosen(**typed):
        answer = post(client, "/new/goal", {"goal": "style", **typed})
        if answer.status_code != 303:
            return re.findall(r'id="fault-[a-z_]*">(.*?)</span>', answer.text)
        words = tasks[-1][0]
        return words[words.index("--data") + 1], words[words.index("--model") + 1]

    it, learnt = models / "it.safetensors", folder / "dog" / "export" / "learnt.safetensors"
    assert chosen(data="cats", model="it.safetensors") == (str(pictures), str(it))
    assert chosen(data="cats", model="it") == (str(pictures), str(it))
    assert chosen(data="cats", model="learnt") == (str(pictures), str(learnt))
    listed = {"data-of": str(pictures), "model-of": str(it)}
    assert chosen(**listed, data="", model=" ") == (str(pictures), str(it))
    assert chosen(**listed, data="", model="owner/name@main") == (str(pictures), "owner/name@main")
    [several] = chosen(data="cats", model="same.ckpt")
    assert "This name is ambiguous" in several
    page = client.get("/new").text
    assert f'<option value="{it}">it.safetensors</option>' in page
    assert f"same.ckpt, in {models / 'two'}</option>" in page


def test_what_is_not_listed_is_found_by_its_name(
    client, draft, folder, tasks, pictures, monkeypatch
):
    """There are more datasets and models than a form lists."""
    monkeypatch.setattr(new_start, "MOST", 2)
    monkeypatch.setattr(new_run, "MOST", 2)
    models = folder.parent / "models"
    for number in range(5):
        shutil.copytree(pictures, pictures.with_name(f"artist{number}"))
        (models / f"{number}.safetensors").write_bytes(b"")
    typed = {"goal": "style", "data": "artist4", "model": "4.safetensors"}
    assert post(client, "/new/goal", typed).status_code == 303
    words = tasks[0][0]
    assert words[words.index("--data") + 1] == str(pictures.with_name("artist4"))
    assert words[words.index("--model") + 1] == str(models / "4.safetensors")
    page = client.get("/new").text
    assert "The first 2 of 6 datasets are listed" in page
    assert "The first 2 of 5 models are listed" in page
    assert "artist4" not in page
    form = client.get(draft).text
    assert "The list offers the first 2 of 6" in form
    assert "The list offers the first 2 of 5" in form


def test_a_goal_that_fails_says_why_and_keeps_what_was_given(client, tasks, pictures):
    typed = {"goal": "subject", "data": str(pictures), "model": "owner/name"}
    place = post(client, "/new/goal", typed).headers["location"]
    end(tasks[0][1], 4, "It is <no> model.")
    text = client.get(f"{place}/waiting").text
    assert "It is &lt;no&gt; model." in text
    again = client.get(re.search(r'href="(/new\?draft=[^"]*)"', text)[1]).text
    assert 'value="owner/name"' in again
    assert f'value="{pictures}"' in again
    assert 'value="subject" checked' in again


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"goal": "other"}, "goal"),
        ({"data": ""}, "data"),
        ({"data": "/"}, "data"),
        ({"data": "{data}/../.."}, "data"),
        ({"data": "{data}/none"}, "data"),
        ({"data": "a\0b"}, "data"),
        ({"data": "dogs"}, "data"),
        ({"model": "gone"}, "model"),
        ({"model": "gone.safetensors"}, "model"),
        ({"model": "models/gone.ckpt"}, "model"),
        ({"model": "{data}/../../models/gone.ckpt"}, "model"),
        ({"model": ""}, "model"),
        ({"model": "--out=x"}, "model"),
        ({"model": "/etc/passwd"}, "model"),
        ({"vram": "-1"}, "vram"),
        ({"vram": "²"}, "vram"),
        ({"resolution": "9" * 500}, "resolution"),
        ({"clip_skip": "13"}, "clip_skip"),
    ],
)
def test_faults_of_a_goal_stand_at_their_field(client, tasks, pictures, change, field):
    given = {k: v.replace("{data}", str(pictures)) for k, v in change.items()}
    typed = {"goal": "style", "data": str(pictures), "model": "owner/name", **given}
    answer = post(client, "/new/goal", typed)
    assert answer.status_code == 422
    assert re.findall(r'id="fault-([a-z_]*)"', answer.text) == [field]
    assert tasks == []
    if "\0" not in typed["data"]:
        assert f'value="{html.escape(typed["data"])}"' in answer.text


def test_a_command_is_given_to_the_verb_as_one_word(client, tasks):
    text = "accelerate launch fine_tune.py --output_dir 'a b'; rm -rf / --"
    place = post(client, "/new/command", {"command": text}).headers["location"]
    words, task = tasks[0]
    assert words[0] == "import-command"
    assert words[-2:] == ["--", text]
    end(task, 2, "It is not known.")
    assert "It is not known." in client.get(f"{place}/waiting").text
    name = place.rpartition("/")[2]
    assert html.escape(text, quote=False) in client.get(f"/new?draft={name}").text.replace(
        "&#39;", "'"
    )


@pytest.mark.parametrize("text", ["", "  \n", "a\0b"])
def test_no_command_is_said_to_be_none(client, tasks, text):
    answer = post(client, "/new/command", {"command": text})
    assert answer.status_code == 422
    assert "Paste a command." in answer.text
    assert tasks == []


def test_a_run_is_duplicated_into_a_directory_of_its_own(client, studio, folder):
    run = make_run(folder / "dog", phase="finished", step=9, total_steps=9)
    tree = {"output_dir": "dog", "model": {"path": "m"}, "dataset": {"image_dir": "p"},
            "training": {"max_steps": 9, "weights": "fp32"}, "loss": {"kind": "huber"}}  # fmt: skip
    run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    answer = client.get(f"/new?from={studio.folders.name_of(run)}")
    fields = shown_fields(answer.text)
    assert {k: v for k, v in fields.items() if v} == {
        **fields_of(tree), "output_dir": str(folder / "dog-2")
    }  # fmt: skip
    run.config_file.write_text("x = [", encoding="utf-8")
    assert client.get(f"/new?from={studio.folders.name_of(run)}").status_code == 409
    for name in ("0.missing", "", "../x"):
        assert client.get("/new", params={"from": name}).status_code == 404


def painted(images, *stems):
    """A folder of images with captions, with masks beside it for some of them."""
    masks = images.with_name(f"{images.name}-masks")
    for place, names in ((images, ("a", "b", "c")), (masks, stems)):
        place.mkdir(parents=True, exist_ok=True)
        for stem in names:
            (place / f"{stem}.png").write_bytes(b"")
    return masks


def duplicate(client, studio, run, **dataset):
    tree = {"output_dir": str(run.path), "model": {"path": "m"}, "dataset": dataset,
            "training": {"max_steps": 9}}  # fmt: skip
    run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    answer = client.get(f"/new?from={studio.folders.name_of(run)}")
    return answer, shown_fields(answer.text).get("dataset.mask_dir", "")


def test_a_duplicate_uses_masks_that_were_painted_since_and_says_so(
    client, studio, folder, planned
):
    cats = folder.parent / "data" / "cats"
    run = make_run(folder / "dog", phase="finished")
    answer, masks = duplicate(client, studio, run, image_dir=str(cats))
    assert (masks, "have a mask" in answer.text) == ("", False)
    place = painted(cats, "a", "c", "of-no-image")
    answer, masks = duplicate(client, studio, run, image_dir=str(cats))
    assert masks == str(place)
    words = "2 of the 3 images have a mask now, which the run did not use."
    assert words in answer.text
    draft = str(answer.url.path)
    typed = {**shown_fields(answer.text), "dataset.mask_dir": ""}
    post(client, f"{draft}/check", typed)
    again = client.get(draft).text
    assert shown_fields(again)["dataset.mask_dir"] == ""
    assert "have a mask" not in again


@pytest.mark.parametrize("own", [{"mask_dir": "mine"}, {"alpha_mask": True}])
def test_a_duplicate_keeps_the_masks_that_the_run_had(client, studio, folder, own):
    cats = folder.parent / "data" / "cats"
    painted(cats, "a")
    run = make_run(folder / "dog", phase="finished")
    answer, masks = duplicate(client, studio, run, image_dir=str(cats), **own)
    assert masks == own.get("mask_dir", "")
    assert "a mask now" not in answer.text


def test_masks_of_folders_that_the_studio_does_not_show_are_not_looked_for(
    client, studio, folder, tmp_path
):
    painted(tmp_path / "secret" / "cats", "a")
    run = make_run(folder / "dog", phase="finished")
    _, masks = duplicate(client, studio, run, image_dir=str(tmp_path / "secret" / "cats"))
    assert masks == ""


# the form


def test_relative_paths_of_a_run_are_seen_from_where_it_was_started(client, studio, folder):
    elsewhere = folder.parent / "elsewhere"
    (elsewhere / "cats").mkdir(parents=True)
    run = make_run(folder / "dog", phase="finished")
    status = {**json.loads(run.status_file.read_text()), "folder": str(elsewhere)}
    run.status_file.write_text(json.dumps(status), encoding="utf-8")
    tree = {
        "output_dir": "dog",
        "model": {"path": "owner/name"},
        "dataset": {"datasets": [{"subsets": [{"image_dir": "cats"}, {"image_dir": "gone"}]}]},
        "training": {"max_steps": 9},
        "previews": {"hypernetworks": ["style.pt:0.8", "style.pt", "gone.pt:0.5"]},
    }
    (elsewhere / "style.pt").write_bytes(b"")
    run.config_file.write_text(tomli_w.dumps(tree), encoding="utf-8")
    fields = shown_fields(client.get(f"/new?from={studio.folders.name_of(run)}").text)
    subsets = tomllib.loads(fields["dataset.datasets"])["datasets"][0]["subsets"]
    assert [subset["image_dir"] for subset in subsets] == [str(elsewhere / "cats"), "gone"]
    assert fields["model.path"] == "owner/name"
    style = elsewhere / "style.pt"
    drawn_with = fields["previews.hypernetworks"].split("\n")
    assert drawn_with == [f"{style}:0.8", str(style), "gone.pt:0.5"]


def test_the_form_has_every_setting_once_with_its_help(client, draft):
    text = client.get(draft).text
    assert set(shown_fields(text)) == set(all_settings())
    for path in all_settings():
        assert text.count(f' name="{path}"') == 1
        label = re.search(rf'<label for="f-{path.replace(".", "-")}">(.*?)</label>', text, re.S)[1]
        words = html.unescape(re.sub("<.*?>", "", label))
        assert words.split()[-1] == path  # the setting's name in settings files
        assert words.startswith(label_of(path).title)
    assert set(USUAL) <= set(all_settings())
    assert "Number of optimizer steps to train for. Set this or <code>max_epochs</code>." in text


def test_what_is_typed_is_kept_whatever_it_is(client, draft, planned):
    odd = {
        "output_dir": '"><script>alert(1)</script>',
        "training.max_steps": "many",
        "training.compile": "sometimes",
        "previews.prompts": "\nfirst line empty\n<b>\n",
        "optimizer.arguments": "not = = toml",
        "dataset.datasets": "[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'p'",
        "loss.huber_c": "0.5",
        "to.name": "é",
    }
    answer = post(client, f"{draft}/check", odd)
    found = faults(answer)
    assert {"training.max_steps", "training.compile", "optimizer.arguments"} <= set(found)
    text = client.get(draft).text
    fields = shown_fields(text)
    for path, words in odd.items():
        if path != "to.name":
            assert fields[path] == words
    assert "<script>alert" not in text + answer.text
    assert 'value="é"' in text
    assert planned == []


def test_errors_stand_at_their_fields(client, draft, good, planned):
    cases = [
        ({"optimizer.lr": "-1"}, "optimizer.lr"),
        ({"training.max_steps": ""}, "training.max_steps"),
        ({"training.max_epochs": "2"}, "training.max_steps"),
        ({"model.path": ""}, "model.path"),
        ({"dataset.image_dir": ""}, "dataset.image_dir"),
        ({"dataset.max_bucket_reso": "333"}, "dataset.max_bucket_reso"),
        ({"dataset.resolution": "[512, 8]"}, "dataset.min_bucket_reso"),
        ({"training.ema_power": "0.75"}, "training.ema_power"),
        ({"training.cuda_graphs": "network"}, "training.cuda_graphs"),
        ({"schedule.rules": "1:5"}, "schedule.rules"),
        ({"method.text_encoder_lr": "1e-6"}, "method.text_encoder_lr"),
        ({"saving.name": "a/b"}, "saving.name"),
        ({"dataset.config": "gone.toml"}, ""),
        ({"output_dir": "/elsewhere"}, "output_dir"),
        ({"dataset.datasets": "[[datasets]]"}, "dataset.datasets"),
        ({"dataset.datasets": "x = 1"}, "dataset.datasets"),
        ({"saving.metadata": "colour = 'red'"}, "saving.metadata"),
    ]
    words = {"training.max_steps": "abc", "saving.keep_models": "3"}
    assert faults(post(client, f"{draft}/check", {**good, **words})) == {
        "training.max_steps": "Expected a whole number (found 'abc')",
        "saving.keep_models": "keep_models has no effect without model_every_steps or _epochs",
    }
    for change, field in cases:
        answer = post(client, f"{draft}/check", {**good, **change})
        assert [*faults(answer)] == [field], change
        assert answer.status_code == 200


def test_settings_of_another_kind_are_kept_and_not_used(client, draft, good, planned):
    """Fields of another kind are hidden, so an error there would be invisible."""
    typed = {**good, "loss.kind": "l2", "loss.huber_c": "0.5"}
    answer = post(client, f"{draft}/check", typed)
    assert faults(answer) == {}
    assert "huber_c" not in re.search(r'id="toml-text".*?</pre>', answer.text, re.S)[0]
    text = client.get(draft).text
    assert shown_fields(text)["loss.huber_c"] == "0.5"
    assert re.search(r'data-path="loss.huber_c"[^>]* hidden', text)
    text = client.get(draft).text if post(
        client, f"{draft}/check", {**typed, "loss.kind": "huber"}
    ).status_code == 200 else ""  # fmt: skip
    assert not re.search(r'data-path="loss.huber_c"[^>]* hidden', text)


def test_a_plan_is_made_once_and_only_the_newest_counts(client, draft, good, planned):
    for _ in range(2):
        assert "Planning" in post(client, f"{draft}/check", good).text
    assert len(planned) == 1
    post(client, f"{draft}/check", {**good, "training.max_steps": "6"})
    assert [process.ended for process in planned] == [True, False]
    assert planned[1].settings["training"]["max_steps"] == 6
    assert "every 1s" in client.get(f"{draft}/plan").text
    planned[1].log.write_text(f"Loading\n{json.dumps(PLAN, indent=1)}\nbye", encoding="utf-8")
    planned[1].ended = True
    text = client.get(f"{draft}/plan").text
    assert "every 1s" not in text
    for words in ("1,234", "on this GPU", "does not fit", "It is close.", "3 over 75 tokens",
                  "&lt;i&gt;odd&lt;/i&gt;", "&lt;b&gt;.png: empty"):  # fmt: skip
        assert words in text
    assert post(client, f"{draft}/check", {**good, "training.max_steps": "6"}).text.count("1,234")
    assert len(planned) == 2
    post(client, f"{draft}/check", {**good, "training.max_steps": "no"})
    assert "1,234" not in client.get(f"{draft}/plan").text


def test_a_plan_that_fails_says_so(client, draft, good, planned):
    post(client, f"{draft}/check", good)
    planned[0].ended = True
    planned[0].log.write_text("Traceback: <odd>\n", encoding="utf-8")
    assert "Traceback: &lt;odd&gt;" in client.get(f"{draft}/plan").text
    refused = {"error": {"kind": "ModelError", "message": "No <such> model.", "settings": {}}}
    planned[0].log.write_text(json.dumps(refused, indent=1), encoding="utf-8")
    assert "No &lt;such&gt; model." in client.get(f"{draft}/plan").text


SETTINGS = "output_dir = 'a'\n"


def test_a_process_that_still_loads_libraries_takes_the_newest_settings(tmp_path, planned):
    draft, plans = Drafts(tmp_path).create({}), Plans(tmp_path, keeps_ready=False)
    Process.takes_up = False
    try:
        plans.ask_for(draft, SETTINGS)
        plans.ask_for(draft, "output_dir = 'b'\n")
        assert len(planned) == 1
        assert planned[0].settings == {"output_dir": "b"}
        planned[0].log.write_text("", encoding="utf-8")  # it has taken them up
        plans.ask_for(draft, "output_dir = 'c'\n")
        assert [process.ended for process in planned] == [True, False]
        assert planned[1].settings == {"output_dir": "c"}
        planned[1].ended = True
        assert plans.state_of(draft).failure == "The process that makes the plan was stopped."
    finally:
        Process.takes_up = True


def test_the_plan_says_what_it_is_doing(client, draft, good, planned):
    post(client, f"{draft}/check", good)
    log = EventLog()
    log.open(planned[0].log.with_name("events.jsonl"))
    with log.stage("Scanning <images>", 1200, "files"):
        text = client.get(f"{draft}/plan").text
        assert "Planning: Scanning &lt;images&gt;: 0 of 1,200 files …" in text
        with log.stage("Loading diffusers", None, "modules"):
            assert "Planning: Loading diffusers …" in client.get(f"{draft}/plan").text
        assert "Planning: Scanning &lt;images&gt;" in client.get(f"{draft}/plan").text
    assert "Planning …" in client.get(f"{draft}/plan").text


def test_an_idle_process_is_replaced_when_a_plan_is_asked_for(tmp_path, planned, monkeypatch):
    """An idle process ends by itself after some minutes, which is noticed only now."""
    draft, plans = Drafts(tmp_path).create({}), Plans(tmp_path)
    plans.prepare()

    def broken(_):
        raise BrokenPipeError

    planned[0].ask = planned[0].stdin.ask = broken
    plans.ask_for(draft, SETTINGS)
    assert planned[1].settings == {"output_dir": "a"}


# saving and starting


def test_settings_are_saved_and_never_over_a_file(client, draft, good, folder):
    answer = post(client, f"{draft}/save", {**good, "to.name": "mine"})
    file = folder / "mine.toml"
    assert f"Wrote {file}" in answer.text
    assert tomllib.loads(file.read_text())["training"] == {"max_steps": 5}
    before = file.read_text()
    again = post(client, f"{draft}/save", {**good, "training.max_steps": "6", "to.name": "mine"})
    assert "was not changed" in again.text
    assert file.read_text() == before
    assert "Not yet: training.max_steps" in post(
        client, f"{draft}/save", {**good, "training.max_steps": "x"}
    ).text  # fmt: skip


@pytest.mark.parametrize("change", [
    {"to.name": "../x"}, {"to.name": "a/b"}, {"to.name": "con"}, {"to.name": "x" * 300},
    {"to.folder": "1"}, {"to.folder": "-1"}, {"to.folder": "x"},
])  # fmt: skip
def test_files_go_into_the_folders_of_runs_alone(client, draft, good, folder, change):
    before = sorted(folder.parent.rglob("*.toml"))
    answer = post(client, f"{draft}/save", {**good, **change})
    assert answer.status_code == 200
    assert "Wrote" not in answer.text
    assert sorted(folder.parent.rglob("*.toml")) == before


@pytest.mark.skipif(sys.platform == "win32", reason="creating links needs a privilege on Windows")
def test_a_link_is_not_written_through(tmp_path):
    (tmp_path / "it.toml").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="already exists"):
        write_settings(tmp_path / "it.toml", "x = 1\n", same_is_fine=True)
    assert not (tmp_path / "elsewhere").exists()


def test_starting_writes_the_settings_and_leads_to_the_run(client, draft, good, folder, tasks):
    answer = post(client, f"{draft}/start", good)
    assert answer.headers["hx-redirect"] == f"{draft}/started"
    [(words, task)] = tasks
    assert words == ["train", str(folder / "it.toml")]
    assert not (folder / "it").exists()  # `train` creates it
    end_begin(task)
    make_run(folder / "it", phase="preparing")
    part = client.get(f"{draft}/started/part")
    page = client.get(f"{draft}/started", follow_redirects=False)
    assert part.headers["hx-redirect"] == page.headers["location"]
    assert client.get(page.headers["location"]).status_code == 200


def test_a_second_click_on_start_leads_to_the_same_run(client, draft, good, folder, tasks):
    post(client, f"{draft}/start", good)
    end_begin(tasks[0][1])
    for _ in range(2):
        assert post(client, f"{draft}/start", good).headers["hx-redirect"] == f"{draft}/started"
        assert len(tasks) == 1
        if not (folder / "it").exists():
            make_run(folder / "it", phase="preparing")  # as it does in the meantime
    post(client, f"{draft}/start", {**good, "output_dir": str(folder / "that"), "to.name": "that"})
    assert len(tasks) == 2


def end_begin(task):
    """A process that has started and continues."""
    line = {"time": 1.0, "kind": "begin", "process": current_process().token}
    task.events_file.write_text(json.dumps(line) + "\n", encoding="utf-8")


def test_a_run_that_does_not_begin_says_why(client, draft, good, folder, tasks):
    post(client, f"{draft}/start", good)
    end(tasks[0][1], 4, "No <such> model.")
    for address in (f"{draft}/started", f"{draft}/started/part"):
        text = client.get(address).text
        assert "The run did not start." in text
        assert "No &lt;such&gt; model." in text
    post(client, f"{draft}/start", good)  # an identical settings file counts as written
    assert len(tasks) == 2
    answer = post(client, f"{draft}/start", {**good, "training.max_steps": "7"})
    assert "was not changed" in answer.text
    assert len(tasks) == 2


@pytest.mark.parametrize("typed", ["my run", '"my run"', "./my run"])
def test_a_name_alone_is_a_run_below_the_first_folder_of_runs(
    client, draft, good, folder, planned, tasks, typed
):
    fields = {**good, "output_dir": typed, "to.name": "it"}
    page = post(client, f"{draft}/check", fields).text
    assert f"<code>{folder / 'my run'}</code>" in page
    post(client, f"{draft}/start", fields)
    saved = tomllib.loads((folder / "it.toml").read_text(encoding="utf-8"))
    assert saved["output_dir"] == str(folder / "my run")
    assert tasks[0][0] == ["train", str(folder / "it.toml")]


@pytest.mark.parametrize("typed", ["/x", "../x", ".", ""])
@pytest.mark.parametrize("verb", ["save", "start", "queue"])
def test_what_cannot_be_started_is_not_saved_either(
    client, studio, draft, good, folder, tasks, typed, verb
):
    answer = post(client, f"{draft}/{verb}", {**good, "output_dir": typed, "to.name": "it"})
    assert '<p class="fault">Not yet: output_dir must be corrected first.' in answer.text
    assert not (folder / "it.toml").exists()
    assert tasks == Queue(studio.queue).jobs() == []


def test_a_run_is_put_into_the_queue(client, studio, draft, good):
    answer = post(client, f"{draft}/queue", good)
    assert "to the queue as job 1. No process works on the queue yet" in answer.text
    assert 'href="/queue"' in answer.text
    (job,) = Queue(studio.queue).jobs()
    assert job.run.path == Path(good["output_dir"])
    again = post(client, f"{draft}/queue", good)
    assert "also that of job 1" in again.text  # two runs in one directory
    assert "Not yet" in post(client, f"{draft}/queue", {**good, "optimizer.lr": "x"}).text
    assert len(Queue(studio.queue).jobs()) == 1


def test_a_run_is_not_started_with_faults_or_over_another(
    client, draft, good, folder, tasks, planned
):
    make_run(folder / "it", phase="finished")
    assert "Not yet: output_dir must" in post(client, f"{draft}/start", good).text
    taken = post(client, f"{draft}/check", good)
    assert faults(taken) == {"output_dir": "A run with this name exists; choose another name"}
    elsewhere = {**good, "output_dir": "/x"}
    assert "outside" in faults(post(client, f"{draft}/check", elsewhere))["output_dir"]
    assert "Not yet: output_dir must" in post(client, f"{draft}/start", elsewhere).text
    two = {**good, "optimizer.lr": "x", "training.max_steps": "-1"}
    assert "and 1 other setting must be corrected first" in post(client, f"{draft}/start", two).text
    assert "Not yet" in post(client, f"{draft}/start", {**good, "optimizer.lr": "x"}).text
    assert tasks == []
    assert client.get(f"{draft}/started").status_code == 404


# invalid requests


@pytest.mark.parametrize(
    "name", ["x", "..%2f..", "20260101-000000-00000g", "20260101-000000-000000"]
)
def test_a_form_that_is_not_there_is_said_to_be_none(client, name):
    for end_of_address in ("", "/plan", "/waiting", "/started", "/started/part"):
        assert client.get(f"/new/{name}{end_of_address}").status_code == 404
    for verb in ("check", "save", "start"):
        assert post(client, f"/new/{name}/{verb}", {}).status_code == 404


def test_a_form_that_is_too_large_is_refused(client, draft):
    assert post(client, f"{draft}/check", {"previews.prompts": "x" * (3 << 20)}).status_code == 413


def test_fields_that_are_none_are_passed_over(client, draft, good, planned):
    assert faults(post(client, f"{draft}/check", {**good, "x": "1", "training": "2"})) == {}


def test_drafts_that_were_not_touched_for_longest_are_removed(tmp_path):
    drafts = Drafts(tmp_path)
    names = []
    for number in range(KEPT + 3):
        draft = drafts.create({"seed": str(number)})
        names.append(draft.name)
        os.utime(draft.path, (number, number))
    drafts.create({})
    assert drafts.find(names[0]) is None
    assert drafts.find(names[-1]).fields() == {"seed": str(KEPT + 2)}


def test_damaged_drafts_are_empty_ones(tmp_path):
    draft = Drafts(tmp_path).create({"seed": "1"})
    for content in ("", "[", "[1]", '{"seed": 3}', "\xff"):
        (draft.path / "fields.json").write_text(content, encoding="latin-1")
        assert draft.fields() == {}


def test_choices_are_those_of_the_folders(tmp_path):
    (tmp_path / "a" / "b" / "c" / "d").mkdir(parents=True)
    for place in (".hidden", "a/b", "a/b/c/d"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "x.PNG").write_bytes(b"")
    assert image_folders([tmp_path]) == [str(tmp_path / "a" / "b")]
    diffusers = tmp_path / "m"
    (diffusers / "unet").mkdir(parents=True)
    (diffusers / "model_index.json").write_text("{}")
    (diffusers / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    (tmp_path / "one.ckpt").write_bytes(b"")
    assert sorted(model_paths([tmp_path])) == [str(diffusers), str(tmp_path / "one.ckpt")]
    assert image_folders([tmp_path / "gone"]) == []


def test_a_free_place_is_found(tmp_path):
    assert free_path(tmp_path / "dog") == tmp_path / "dog"
    (tmp_path / "dog").mkdir()
    assert free_path(tmp_path / "dog") == tmp_path / "dog-2"
    (tmp_path / "dog-2").mkdir()
    assert free_path(tmp_path / "dog-2") == tmp_path / "dog-3"


def test_a_date_in_a_name_is_no_count(tmp_path):
    for name in ("cats-20261128", "cats-100", "-2"):
        (tmp_path / name).mkdir()
        assert free_path(tmp_path / name) == tmp_path / f"{name}-2"


def test_the_demo_goes_all_the_way_to_a_form(client, studio, folder):
    """The real verb puts the demo's model and images where the studio finds them."""
    shutil.copytree(BASE_MODEL, folder.parent / "models" / "base")
    shutil.copytree(PICTURES, folder.parent / "data" / "icons")
    typed = {"goal": "style", "data": str(folder.parent / "data" / "icons"),
             "model": str(folder.parent / "models" / "base")}  # fmt: skip
    place = post(client, "/new/goal", typed).headers["location"]
    answer, until = client.get(f"{place}/waiting"), time.monotonic() + 240
    while "hx-redirect" not in answer.headers:
        assert "failed" not in answer.text, answer.text
        assert time.monotonic() < until
        time.sleep(0.2)
        answer = client.get(f"{place}/waiting")
    for process in studio.tasks._started.values():
        process.wait(60)
    fields = shown_fields(client.get(place).text)
    assert fields["dataset.resolution"] == "128"
    assert fields["previews.prompts"].startswith("a sun")
