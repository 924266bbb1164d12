"""`impasto send`: upload the rest of a run to its object store."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", metavar="URL", type=click.Path(path_type=Path))
def send(run: Path) -> None:
    """Upload the files of a run that are missing in the object store at URL.

    Use this for a run that ended while its store could not be reached. Nothing is trained. Once all
    files of a finished run are in the store, its working folder on this machine is removed.
    """
    from impasto.cli.console import Console
    from impasto.errors import ConfigError
    from impasto.remote_paths import shown
    from impasto.runs import RunDirectory
    from impasto.runs.remote.local_folders import location_of, working_folder
    from impasto.runs.remote.run_in_store import remove_working_folder, require_location, send_again

    location = location_of(run)
    if location is None:
        raise ConfigError(
            f"{run} is not a run in an object store; expected its URL, as in s3://bucket/run."
        )
    require_location(location)
    console = Console()
    send_again(location, console)
    remove_working_folder(RunDirectory(working_folder(location), location=location))
    console.note(f"All of the run is in {shown(location)}.")
