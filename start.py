"""Sets Impasto up and runs it: `python start.py demo`, `python start.py test`, or any impasto verb.

Makes `.venv` beside this file, installs the pinned packages into it once, and hands the words on.
Needs Python 3.11 or later and a package registry; nothing else. Standard library only.

    python start.py demo                    the whole job on the embedded model and pictures
    python start.py test [pytest words]     the checks and the test suite
    python start.py <verb> ...              `impasto <verb> ...`

Options, before the verb:
    --torch-index ADDRESS   take PyTorch from another index, for example one with CUDA builds;
                            the variable IMPASTO_TORCH_INDEX does the same
    --reinstall             make .venv anew
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
STAMP = VENV / "impasto-installed.txt"
CONSTRAINTS = HERE / "constraints.txt"
MINIMUM_PYTHON = (3, 11)
NEEDED_GIB = 4.0
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)
NETWORK_WORDS = (
    "NewConnectionError", "ConnectionError", "Temporary failure in name resolution", "timed out",
    "getaddrinfo failed", "Network is unreachable", "dns error", "ProxyError", "ConnectTimeout",
    "error sending request", "(from versions: none)",
)  # fmt: skip
DISK_WORDS = ("No space left on device", "Errno 28", "not enough space on the disk")


def main():
    """Set up, then become the program that was asked for."""
    if sys.version_info < MINIMUM_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        stop(
            f"Impasto needs Python 3.11 or later, and this is Python {found}. "
            "Install a newer one from python.org and run start.py with it."
        )
    words, index, reinstall = read_words(sys.argv[1:])
    if not words or words[0] in {"-h", "--help"}:
        print(__doc__)
        return 0
    extras = {"test": ["dev"], "demo": ["tagging"]}.get(words[0], [])
    set_up(extras, index, reinstall)
    environment = {**os.environ, "PYTHONUTF8": "1", "IMPASTO_PROGRAM": "python start.py"}
    if words[0] == "test":
        return run_tests(words[1:], environment)
    return subprocess.call([str(program("impasto")), *words], env=environment)


def read_words(words):
    """Split this program's own options from the words to hand on."""
    index, reinstall = os.environ.get("IMPASTO_TORCH_INDEX"), False
    while words and words[0].startswith("--") and words[0] != "--help":
        option, words = words[0], words[1:]
        if option == "--reinstall":
            reinstall = True
        elif option == "--torch-index" and words:
            index, words = words[0], words[1:]
        elif option.startswith("--torch-index="):
            index = option.partition("=")[2]
        else:
            stop(f"start.py does not know the option {option}. Run: python start.py --help")
    return words, index, reinstall


def set_up(extras, index, reinstall):
    """Make the environment and install what is missing; return at once when nothing is."""
    if reinstall and VENV.exists():
        say(f"Removing {VENV.name} ...")
        shutil.rmtree(VENV)
    wanted = fingerprint(index)
    installed = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    have = set(installed[1:]) if installed[:1] == [wanted] else set()
    if STAMP.is_file() and installed[:1] == [wanted] and set(extras) <= have:
        return
    began = time.perf_counter()
    free = shutil.disk_usage(HERE).free / 2**30
    if not VENV.exists() and free < NEEDED_GIB:
        stop(
            f"The packages need about {NEEDED_GIB:.0f} GiB, and only {free:.1f} GiB are free on "
            f"the disk of {HERE}. Free some space and start again."
        )
    uv = shutil.which("uv")
    if not python().exists():
        say(f"Making {VENV.name} with Python {sys.version.split()[0]} ...")
        command = [uv, "venv", "-q", "--python", sys.executable, str(VENV)] if uv else None
        run(command or [sys.executable, "-m", "venv", str(VENV)], "make the environment")
    installer = (
        [uv, "pip", "install", "--python", str(python())]
        if uv
        else [str(python()), "-m", "pip", "install", "--disable-pip-version-check"]
    )
    say(f"Installing the pinned packages with {'uv' if uv else 'pip'}; once, a minute or two ...")
    if index:
        say("  PyTorch from the index that was given ...")
        run(
            [*installer, "-q", "--index-url", index, pinned("torch")],
            "install PyTorch from the index that was given",
        )
    all_extras = sorted(have | set(extras))
    target = f"{HERE}[{','.join(all_extras)}]" if all_extras else str(HERE)
    run([*installer, "-q", "-c", str(CONSTRAINTS), "-e", target], "install the packages")
    STAMP.write_text(" ".join([wanted, *all_extras]), encoding="utf-8")
    say(f"Installed in {time.perf_counter() - began:.0f} s.")


def run_tests(words, environment):
    """Run the checks, unless only some tests are asked for, then pytest.

    All tests run in several processes of one thread each: processes whose threads outnumber the
    cores take twice as long.
    """
    if not words:
        words = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "worksteal"]
        environment = {"OMP_NUM_THREADS": "1", **environment}
        for check in CHECKS:
            say("$ " + " ".join(check))
            code = subprocess.call([str(program(check[0])), *check[1:]], cwd=HERE, env=environment)
            if code:
                return code
    say("$ pytest " + " ".join(words))
    return subprocess.call([str(program("pytest")), *words], cwd=HERE, env=environment)


def fingerprint(index):
    """A hash of all that an installation depends on."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {HERE} {index}".encode())
    for file in (CONSTRAINTS, HERE / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def pinned(package):
    """The line of the constraints file for a package."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def python():
    """The environment's interpreter."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def program(name):
    """A program of the environment."""
    return python().with_name(f"{name}.exe" if os.name == "nt" else name)


def run(command, what):
    """Run a command quietly; when it fails, say in one sentence why."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=HERE, check=False
    )
    if result.returncode == 0:
        return
    output = result.stdout.decode("utf-8", errors="replace")
    if any(words in output for words in DISK_WORDS):
        stop(f"Could not {what}: the disk of {HERE} is full. Free some space and start again.")
    if any(words in output for words in NETWORK_WORDS):
        stop(
            f"Could not {what}: the package registry cannot be reached, or has nothing for this "
            "Python and system. Check the network connection (and the proxy settings, if there is "
            "a proxy) and start again."
        )
    print("\n".join(output.splitlines()[-15:]), file=sys.stderr)
    stop(f"Could not {what}; the lines above say why. `--reinstall` starts from nothing.")


def say(message):
    """Tell the user what is going on."""
    print(message, flush=True)


def stop(message):
    """End with one clear sentence."""
    print(f"start.py: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
