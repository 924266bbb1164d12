"""The run directory: the only contract between a run and whoever looks at it.

config.toml          the settings as resolved
environment.json     versions and hardware
changed-settings.json  the settings that are not as usual, by their paths
status.json          what the run is doing, rewritten every few seconds, or how it ended
events.jsonl         stages, notes and answers to commands, with times
metrics.jsonl        one JSON object per line, in order of `step`
image_losses.csv     the loss of each image each time it was shown, if asked for
dataset.json         what the dataset held and where its images went
samples/step-.../    previews
states/step-.../     training states
commands/            what the run is asked to do between two steps
export/              the trained model: one file or a Diffusers folder
models/              models that were exported on the way
models.json          the model files that this run wrote, wherever they are
report.html          one page for a person
.lock                the process that trains it, while one does

`directory.py` has the paths and the small files, `status.py` what a run says of itself and what is
true, `events.py` and `commands.py` what is told and asked in the course of it. `lines.py` reads
files that grow, `schema.py` knows what readers rely on, `listing.py` finds runs. `tasks.py` is the
directory of a command that is no run. `queue.py` keeps runs that are to be trained. `remote/` sends
runs to object stores, and fetches them from there.
"""

from impasto.runs.directory import RunDirectory
from impasto.runs.status import Phase, RunState
from impasto.runs.steps import step_name

__all__ = ["Phase", "RunDirectory", "RunState", "step_name"]
