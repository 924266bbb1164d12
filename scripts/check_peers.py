"""Open the files that Impasto writes with the code of the programs that they are written for.

python scripts/check_peers.py [--a1111 FOLDER]... [--comfyui FOLDER] [--sd-scripts FOLDER]
                              [--supermerger FOLDER] [--forge FOLDER] [--packages FOLDER]
                              [--full] [--keep FOLDER]

Each FOLDER is a checkout of that program; none is downloaded. diffusers needs none: the installed
version is used. Each program's loaders run in a separate process, so that the modules of two
programs cannot collide. Further packages that a checkout needs (toml, voluptuous, imagesize, einops
and opencv for sd-scripts, PEFT for diffusers' LoRA loader) are imported from --packages, a folder
filled by `pip install --target`. --full also writes a model of Stable Diffusion's real size (2 GB),
which sd-scripts and ComfyUI load into their networks.

Exit code 0: all given programs opened everything. 1: one did not. Programs that are not given are
reported as not tried.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"


def main() -> int:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write = [sys.executable, str(PEERS / "write_files.py"), str(folder)]
        if not (folder / "done").is_file():
            subprocess.run([*write, *(["--full"] if options.full else [])], check=True)
        merges = folder / "merges"
        if not (merges / "done").is_file():
            merges.mkdir(exist_ok=True)
            subprocess.run([sys.executable, str(PEERS / "write_merges.py"), merges], check=True)
        results = [
            run("diffusers_loads.py", None, folder, options.packages),
            run("merges_diffusers.py", None, merges, options.packages),
        ]
        for place in options.a1111:
            results.append(run("a1111.py", place, folder, options.packages))
            results.append(run("merges_a1111.py", place, merges, options.packages))
        for script, place in (
            ("comfyui.py", options.comfyui),
            ("merges_comfyui.py", options.comfyui),
            ("sdscripts.py", options.sd_scripts),
            ("merges_sdscripts.py", options.sd_scripts),
            ("merges_supermerger.py", options.supermerger),
            ("merges_forge.py", options.forge),
        ):
            if place is None:
                print(f"{script}: not tried, because no checkout was given")
            else:
                files = merges if script.startswith("merges_") else folder
                results.append(run(script, place, files, options.packages))
        if not options.a1111:
            print("a1111.py: not tried, because no checkout was given")
    return 0 if all(results) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--a1111", type=Path, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--comfyui", type=Path, metavar="FOLDER")
    parser.add_argument("--sd-scripts", type=Path, metavar="FOLDER")
    parser.add_argument("--supermerger", type=Path, metavar="FOLDER")
    parser.add_argument("--forge", type=Path, metavar="FOLDER")
    parser.add_argument("--packages", type=Path, metavar="FOLDER")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the files here")
    return parser.parse_args()


def run(script: str, checkout: Path | None, folder: Path, packages: Path | None) -> bool:
    """Run one program's loaders, whose output is shown; return whether they succeeded."""
    print(f"== {script} {checkout or ''}", flush=True)
    extra = [str(packages.resolve())] if packages else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(extra), "HF_HUB_OFFLINE": "1"}
    where = [str(checkout.resolve())] if checkout else []
    command = [sys.executable, str(PEERS / script), str(folder.resolve()), *where]
    return subprocess.run(command, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
