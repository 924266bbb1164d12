"""The run directory: the only interface between a run and the programs that read or control it.

config.toml          the settings as resolved
environment.json     versions and hardware
changed-settings.json  the settings that are not at their defaults, by path
status.json          what the run is doing, rewritten every few seconds, or how it ended
events.jsonl         stages, notes and answers to commands, with times
metrics.jsonl        one JSON object per line, in order of `step`
image_losses.csv     the loss of each image each time it was shown, if requested
dataset.json         the content of the dataset, and the bucket of each image
samples/step-.../    previews
states/step-.../     training states
commands/            commands to the run, which it executes between two steps
export/              the trained model: one file or a Diffusers folder
models/              intermediate models
models.json          the model files that this run wrote, wherever they are
report.html          a report of the run on one page
.lock                the process that trains the run, while there is one

`directory.py` has the paths and the small files, `status.py` the status of a run and its true
state, `events.py` and `commands.py` the messages from and to it while it trains. `lines.py` reads
files that grow, `schema.py` checks what readers rely on, `listing.py` finds runs. `tasks.py` is the
directory of a command that is not a run. `queue.py` stores runs that wait to be trained. `remote/`
sends runs to object stores, and fetches them from there.
"""

from impasto.runs.directory import RunDirectory
from impasto.runs.status import Phase, RunState
from impasto.runs.steps import step_name

__all__ = ["Phase", "RunDirectory", "RunState", "step_name"]
