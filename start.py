"""Set Impasto up and run it: `python3 start.py demo`, `start.py test`, or any impasto verb.

Creates `.venv` beside this file, installs the pinned packages into it once, and passes the
remaining arguments on. Needs Python 3.11 or later and a package registry, and uses the standard
library only. On Windows, type `py start.py` instead.

    python3 start.py demo                   the whole workflow on the embedded model and images
    python3 start.py studio                 the browser interface, with the demo's images and model
    python3 start.py test [pytest options]  the checks and the test suite
    python3 start.py test --fast            unit, parity and property tests only: no whole runs
    python3 start.py <verb> ...             `impasto <verb> ...`

Options, before the verb:
    --build cpu|cuda        PyTorch's build: cuda for an NVIDIA card, or cpu, which is smaller.
                            Default: by what `nvidia-smi` finds. To change the build in an
                            existing .venv, add --reinstall
    --torch-index ADDRESS   take PyTorch from another index, for example one with CUDA builds;
                            the variable IMPASTO_TORCH_INDEX does the same
    --with EXTRA            also install an extra of pyproject.toml, such as trackers; the extras
                            that a verb needs are installed automatically
    --reinstall             delete .venv and create it again
"""

import contextlib
import hashlib
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import quote, unquote

HERE = Path(__file__).resolve().parent
VENV = HERE / ".venv"
STAMP = VENV / "impasto-installed.txt"
LOCK = HERE / ".venv.lock"
CONSTRAINTS = HERE / "constraints.txt"
MINIMUM_PYTHON = (3, 11)
NEEDED_GIB = {
    # build of PyTorch: (.venv, downloads while installing)
    "CPU": (2.0, 0.75),
    "CUDA": (5.5, 2.75),
    "ROCm": (16.0, 5.0),
}
EXTRAS = {
    # the first arguments of a command: the extras that it needs
    ("test",): ("dev",),
    ("demo",): ("tagging",),
    ("studio",): ("studio", "tagging"),  # its pages run the demo and taggers
    ("dataset", "tag"): ("tagging",),
}
HEIF_ENDINGS = (".heic", ".heif", ".hif", ".heics", ".heifs")
BACKENDS = {"cpu": "cpu", "cuda": "auto"}  # uv's names of the builds; auto: by the driver
BUILD = "build="
INDEX = "index="  # a prefix in the stamp file
OTHERWISE = "--torch-index ADDRESS, an index that PyTorch's own page names"
MISSING_DEPENDENCY = 7  # impasto's exit code for a missing package
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
)
FAST_TESTS = ("tests/unit", "tests/parity", "tests/property")
LONG_TESTS = (
    # files among them that compile, run several programs at once or on object stores, or simulate
    # steps of full-size models or of every rung of the memory ladder
    "tests/unit/test_compiling.py", "tests/unit/test_cuda_shapes.py", "tests/unit/test_float8.py",
    "tests/unit/test_encoding_claims.py", "tests/unit/test_footprint.py",
    "tests/unit/test_hashed_together.py", "tests/unit/test_memory_moments.py",
    "tests/unit/test_native_precision.py", "tests/unit/test_stored_cache.py",
    "tests/unit/test_weight_copies.py",
)  # fmt: skip
NETWORK_WORDS = (
    "NewConnectionError", "ConnectionError", "Temporary failure in name resolution", "timed out",
    "getaddrinfo failed", "Network is unreachable", "dns error", "ProxyError", "ConnectTimeout",
    "error sending request", "(from versions: none)",
)  # fmt: skip
DISK_WORDS = ("No space left on device", "Errno 28", "not enough space on the disk")


def main():
    """Set up the environment, then run the requested program; return its exit code."""
    if sys.version_info < MINIMUM_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        stop(
            f"Impasto needs Python 3.11 or later, and this is Python {found}. "
            "Install a newer one from python.org and run start.py with it."
        )
    words, options = read_words(sys.argv[1:])
    asked = options["extras"]
    if (not words and not asked) or words[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    set_up([*asked, *extras_of(words)], options["index"], reinstall=options["reinstall"])
    if not words:
        return 0
    environment = {**os.environ, "PYTHONUTF8": "1", "IMPASTO_PROGRAM": called_as()}
    if words[0] == "test":
        return run_tests(words[1:], {**os.environ, "PYTHONUTF8": "1"})
    return run_program(completed(words), options["index"], environment)


def completed(words):
    """Return the arguments for impasto, where a studio without folders opens with the demo."""
    folders = ("--runs", "--data", "--models", "--demo", "--help")
    if words[:1] != ["studio"] or any(word.split("=")[0] in folders for word in words):
        return words
    elsewhere = any(word.split("=")[0] in ("--listen", "--open") for word in words)
    return [*words, "--demo", *([] if elsewhere else ["--open"])]


def read_words(words):
    """Split this program's options from the arguments to pass on; return (arguments, options)."""
    options = {"index": os.environ.get("IMPASTO_TORCH_INDEX"), "extras": [], "reinstall": False}
    while words and words[0].startswith("--") and words[0] != "--help":
        option, equals, value = words[0].partition("=")
        words = words[1:]
        if option == "--reinstall" and not equals:
            options["reinstall"] = True
            continue
        if option not in ("--torch-index", "--with", "--build"):
            stop(f"start.py does not know the option {option}. Run: {called_as()} --help")
        if not equals:
            if not words:
                stop(f"{option} needs a value. Run: {called_as()} --help")
            value, words = words[0], words[1:]
        take_option(option, value, options)
    return words, options


def take_option(option, value, options):
    """Store an option and its value in `options`."""
    if option == "--torch-index":
        options["index"] = value
    elif option == "--build":
        if value not in BACKENDS:
            stop(f"--build is cpu or cuda, not {value}.")
        options["index"] = f"{BUILD}{value}"
    elif value in known_extras():
        options["extras"].append(value)
    else:
        stop(f"There is no extra {value}; choose from {', '.join(known_extras())}.")


def called_as():
    """Return how this program was called, to be typed again: `python3 start.py`, for example."""
    launcher = os.environ.get("IMPASTO_LAUNCHER")
    if launcher:
        return quoted(launcher)
    return f"{quoted(short_name(sys.orig_argv[0]))} {quoted(sys.argv[0])}"


def short_name(interpreter):
    """Return a Python's name as the user typed it, which `py` and pyenv replace by a full path."""
    name = Path(interpreter).name
    if name == interpreter:
        return name
    if os.name == "nt":
        return "py" if shutil.which("py") else interpreter
    found = shutil.which(name)
    is_same = found is not None and Path(found).samefile(interpreter)
    return name if is_same or (found and "shims" in Path(found).parts) else interpreter


def quoted(word):
    """Return an argument quoted for this system's shell."""
    if os.name != "nt":
        return shlex.quote(word)
    return f'"{word}"' if " " in word else word


def known_extras():
    """Return the names of the extras in pyproject.toml, sorted."""
    import tomllib

    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(project["optional-dependencies"])


def extras_of(words):
    """Return the extras that a command needs."""
    begun = (extras for start, extras in EXTRAS.items() if tuple(words[: len(start)]) == start)
    needed = [extra for extras in begun for extra in extras]
    if "heif" in known_extras() and any(holds_heif(Path(word)) for word in words[1:]):
        needed.append("heif")
    return needed


def holds_heif(folder):
    """Return whether a folder has HEIF images, as phones make, in it or one level below."""
    try:
        if not folder.is_dir():
            return False
        inside = [*folder.iterdir()]
        for below in [path for path in inside if path.is_dir()][:1000]:
            inside += below.iterdir()
    except (OSError, ValueError):
        return False
    return any(path.suffix.lower() in HEIF_ENDINGS for path in inside)


def run_program(words, index, environment):
    """Run impasto; if it reports a missing extra, install that and run it again.

    It reports one before it has written anything. Return the exit code.
    """
    command = [str(program("impasto")), *words]
    with tempfile.TemporaryDirectory() as folder:
        wish = Path(folder) / "extra.txt"
        have = " ".join(installed(index) or [])
        more = {"IMPASTO_EXTRA_FILE": str(wish), "IMPASTO_EXTRAS": have}
        code = call(command, {**environment, **more})
        extra = wish.read_text(encoding="utf-8") if wish.is_file() else ""
    if code != MISSING_DEPENDENCY or extra not in known_extras() or extra in have.split():
        return code
    set_up([extra], index)
    return call(command, environment)


def call(command, environment, folder=None):
    """Run a program, which handles Ctrl-C and Windows' Ctrl-Break itself; return its exit code."""
    if hasattr(signal, "SIGBREAK"):
        signal.signal(signal.SIGBREAK, lambda *_: None)
    process = None
    early = []  # signals received while the program was being started

    def hand_on(number, _):
        """Pass a signal on: a run saves its state on SIGTERM, as when a container stops."""
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    for name in ("SIGTERM", "SIGHUP") if os.name == "posix" else ():
        number = getattr(signal, name)
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup: leave it so
            signal.signal(number, hand_on)
    process = subprocess.Popen(command, env=environment, cwd=folder)
    for number in early:
        process.send_signal(number)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the program got the signal too and is saving its state
            continue


def installed(index):
    """Return the installed extras, or None if the installed packages are not the required ones.

    Without an index or a build, any build that was requested before is accepted.
    """
    mark, given, have = read_stamp()
    fitting = [index]
    if index is None:
        fitting += [f"{BUILD}{name}" for name in BACKENDS] + [given]
    return have if mark in map(fingerprint, fitting) else None


def read_stamp():
    """Return the stamp's fingerprint, the index given for the installation, and the extras."""
    words = STAMP.read_text(encoding="utf-8").split() if STAMP.is_file() else []
    mark, words = words[0] if words else None, words[1:]
    given = [unquote(word[len(INDEX) :]) for word in words if word.startswith(INDEX)]
    return mark, given[0] if given else None, [w for w in words if not w.startswith(INDEX)]


def write_stamp(index, extras):
    """Record what is installed; without an index, the one that was given before is kept."""
    index = index or read_stamp()[1]
    given = [f"{INDEX}{quote(index)}"] if index else []
    partial = STAMP.with_name(f"{STAMP.name}.partial")
    partial.write_text(" ".join([fingerprint(index), *given, *extras]), encoding="utf-8")
    partial.replace(STAMP)


def set_up(extras, index, *, reinstall=False):
    """Create the environment and install what is missing; return at once if nothing is."""
    have = installed(index)
    if not reinstall and have is not None and set(extras) <= set(have):
        return
    with alone():
        if reinstall and VENV.exists():
            require_possible(index)
            remove_environment()
        have = installed(index)  # another start.py may have installed it meanwhile
        if have is None or not set(extras) <= set(have):
            before = read_stamp()[1] if have is None else None
            install(extras, index or before, have)  # new pins from the old ones' index


def require_possible(index):
    """Stop if the requested build cannot be installed, before the environment is removed."""
    card = graphics_card()
    backend_of(index, card)
    found = [(Path(folder) / name).lstat() for folder, _, names in os.walk(VENV) for name in names]
    freed = sum(file.st_size for file in found if file.st_nlink == 1)  # others are in uv's cache
    require_room(build_of(index, card), freed)


def remove_environment():
    """Remove the environment.

    Its stamp is removed first, so that a partly removed environment never counts as an
    installation.
    """
    say(f"Removing {VENV.name} ...")
    try:
        STAMP.unlink(missing_ok=True)
        shutil.rmtree(VENV)
    except OSError as error:
        stop(
            f"Could not remove {VENV}: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
            + ". End the programs that run from it, or remove that folder yourself, and give "
            "--reinstall again."
        )


def install(extras, index, have):
    """Create the environment if it is missing, and install the packages that it lacks."""
    began = time.perf_counter()
    fresh = not VENV.exists()
    card = graphics_card() if have is None else None
    there = torch_there() if have is None else None
    backend = backend_of(index, card, there) if have is None else None
    if fresh:
        require_room(build_of(index, card))
        say(what_comes(index, card))
    uv = shutil.which("uv")
    if not python().exists():
        say(f"Making {VENV.name} with Python {sys.version.split()[0]} ...")
        command = [uv, "venv", "-q", "--python", sys.executable, str(VENV)] if uv else None
        run(command or [sys.executable, "-m", "venv", str(VENV)], "create the environment")
    installer = (
        [uv, "pip", "install", "--python", str(python())]
        if uv
        else [str(python()), "-m", "pip", "install", "--disable-pip-version-check"]
    )
    all_extras = sorted({*(have or []), *extras})
    what = "the pinned packages" if have is None else f"the packages for {' and '.join(extras)}"
    how_long = "; once, some minutes" if fresh else ""
    say(f"Installing {what} with {'uv' if uv else 'pip'}{how_long} ...")
    may_fail = index is None and backend == BACKENDS["cpu"]
    if backend and not install_build(backend, uv, installer, may_fail=may_fail):
        say(
            "  PyTorch comes from the package registry instead, which has the CUDA build for "
            "Linux: it needs no card."
        )
        require_room("CUDA")
    elif index and not backend and not index.startswith(BUILD):
        say("  PyTorch from the index that was given ...")
        run(
            [*installer, "-q", "--index-url", index, pinned("torch")],
            "install PyTorch from the index that was given",
        )
    target = f"{HERE}[{','.join(all_extras)}]" if all_extras else str(HERE)
    run([*installer, "-q", "-c", str(CONSTRAINTS), "-e", target], "install the packages")
    write_stamp(index, all_extras)
    say(f"Installed in {time.perf_counter() - began:.0f} s.")


@contextlib.contextmanager
def alone():
    """Hold the installation lock for the block, and wait while another start.py has it.

    The system frees the lock of a start.py that has died.
    """
    try:
        opened = LOCK.open("a+b")
    except OSError as error:
        stop(
            f"{LOCK} cannot be written: {error.strerror or error}. The packages are installed into "
            f"{HERE}: make that folder writable, or copy it to one that is."
        )
    with opened as file:
        if os.name == "nt":
            import msvcrt

            def lock():
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            def lock():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

        try:
            wait_for(lock)
        except KeyboardInterrupt:
            stop("stopped while waiting for another start.py. Nothing was changed.")
        yield


def wait_for(lock):
    """Take a lock, and print once that another start.py has it if it takes long."""
    is_said = False
    while True:
        try:
            lock()
        except (BlockingIOError, PermissionError):  # held; Windows reports PermissionError
            if not is_said:
                say("Another start.py is installing here; waiting for it ...")
            is_said = True
            time.sleep(1)
        except OSError:  # a disk without locks: continue without one
            return
        else:
            return


def graphics_card():
    """Return the name of this machine's NVIDIA card, or None without a card or driver."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    names = found.stdout.strip().splitlines() if found.returncode == 0 else []
    return names[0].strip() if names else None


def torch_there():
    """Return the version and the build of the environment's PyTorch, or None without PyTorch."""
    places = ("lib/python3*/site-packages", "Lib/site-packages")
    files = [file for place in places for file in VENV.glob(f"{place}/torch/version.py")]
    if not files:
        return None
    text = files[0].read_text(encoding="utf-8")
    found = dict(re.findall(r"^(__version__|cuda|hip)\b[^=\n]*= *'([^']*)'", text, re.MULTILINE))
    build = "CUDA" if "cuda" in found else "ROCm" if "hip" in found else "CPU"
    return found.get("__version__", "").partition("+")[0], build


def backend_of(index, card, there=None):
    """Return uv's name of PyTorch's build to install; None where the ordinary registry has it.

    The registry has the CUDA build for Linux and the CPU build for Windows; uv knows the indexes of
    the others. `there` is what `torch_there` found: its build stays unless .venv is created again.
    """
    asked = (index or "").removeprefix(BUILD) if (index or "").startswith(BUILD) else None
    system = platform.system()
    if index and not asked:
        return None
    wanted = asked
    if there:
        version, build = there
        if asked and asked.upper() != build:
            stop(
                f"--build {asked}: {VENV.name} has the {build} build of PyTorch. Give --reinstall "
                f"too, which creates {VENV.name} again."
            )
        if pinned("torch") == f"torch=={version}":
            return None
        if not asked and build.lower() not in BACKENDS:
            stop(
                f"{VENV.name} has the {build} build of PyTorch {version}, and {pinned('torch')} is "
                f"needed now. Give --torch-index with the address of its {build} builds, or "
                f"--reinstall, which takes another build."
            )
        wanted = build.lower()
    if asked == "cuda" and not card and system == "Windows":
        stop(
            "--build cuda: nvidia-smi finds no NVIDIA card. Install the card's driver first; or "
            f"give {OTHERWISE}."
        )
    if system == "Windows":
        wanted = wanted or ("cuda" if card else "cpu")
        return BACKENDS[wanted] if wanted == "cuda" else None
    wanted = wanted or ("cuda" if card or there else "cpu")
    return BACKENDS["cpu"] if wanted == "cpu" and system == "Linux" else None


def what_comes(index, card):
    """Return a line with the card found, the build of PyTorch for it, and how to get the other."""
    build = build_of(index, card)
    other = {
        "CPU": "For the CUDA build: --build cuda --reinstall, before the verb.",
        "CUDA": "For the CPU build, which is smaller: --build cpu --reinstall, before the verb.",
    }.get(build)
    if build == "CPU" and not card:
        other = (
            "If there is one, install its driver, and then the CUDA build: --build cuda "
            "--reinstall, before the verb."
        )
    if card:
        words = f"Found {card}: installing the {build} build of PyTorch."
    elif build == "CUDA":  # requested, on Linux
        words = "Found no NVIDIA card; installing the CUDA build of PyTorch, which needs none."
    else:
        words = f"Found no NVIDIA card: installing the {build} build of PyTorch."
    if platform.system() == "Darwin" or other is None:
        return words
    return f"{words} {other}"


def install_build(backend, uv, installer, *, may_fail=False):
    """Install PyTorch through uv, which knows its builds by name; pip needs an address for each.

    Return whether it was installed. With `may_fail`, False instead of stopping: another build will
    do.
    """
    say("  PyTorch from its own index ...")
    if not uv:
        is_there = run(
            [*installer, "-q", "uv"],
            f"install uv, which finds the build of PyTorch (or give {OTHERWISE})",
            may_fail=may_fail,
        )
        if not is_there:
            return False
        installer = [str(python()), "-m", "uv", "pip", "install", "--python", str(python())]
    return run(
        [*installer, "-q", "--torch-backend", backend, pinned("torch")],
        f"install that build of PyTorch (or give {OTHERWISE})",
        may_fail=may_fail,
    )


def build_of(index, card=None):
    """Return the build of PyTorch to install: as requested, by the index, or by this machine."""
    if (index or "").startswith(BUILD):
        return index.removeprefix(BUILD).upper()
    name = (index or "").rstrip("/").rpartition("/")[2].lower()
    if name == "cpu":
        return "CPU"
    if name.startswith("rocm"):
        return "ROCm"
    if index:
        return "CUDA"
    return "CUDA" if card and platform.system() in ("Linux", "Windows") else "CPU"


def require_room(build, freed=0):
    """Stop if the disk has no room for the packages and the archives downloaded for them.

    `freed` is how many bytes removing the environment will free.
    """
    packages, downloads = NEEDED_GIB[build]
    free = (shutil.disk_usage(HERE).free + freed) / 2**30
    if free < packages + downloads:
        stop(
            f"The packages with a {build} build of PyTorch need about {packages + downloads:g} GiB "
            f"while they are installed ({downloads:g} of them for downloads) and {packages:g} "
            f"after, and only {free:.1f} GiB are free on the disk of {HERE}. Free some space"
            + ("" if build == "CPU" else ", or take the CPU build with --build cpu,")
            + " and start again."
        )


def run_tests(words, environment):
    """Run the checks, unless only some tests are requested, then pytest; return the exit code.

    All tests run in several processes of one thread each: processes whose threads outnumber the
    cores take twice as long. There is one more process than there are cores, since many tests wait
    for other programs; the tests of `--fast`, which takes further pytest options, wait for none,
    and each process takes ten seconds to import them. IMPASTO_LAUNCHER, the name that this program
    was called by, is hidden from them.
    """
    environment.pop("IMPASTO_LAUNCHER", None)
    is_fast = words[:1] == ["--fast"]
    waiting = 0 if is_fast else 1
    spread = ["-n", str(min(4, (os.cpu_count() or 1) + waiting)), "--dist", "worksteal"]
    if is_fast:
        left_out = [f"--ignore={file}" for file in LONG_TESTS]
        words = [*spread, *FAST_TESTS, *left_out, *words[1:]]
    if is_fast or not words:
        environment = {"OMP_NUM_THREADS": "1", **environment}
    if not words:
        words = spread
        compiling = start_compiling(environment)
        for check in CHECKS:
            say("$ " + " ".join(check))
            code = call([str(program(check[0])), *check[1:]], environment, HERE)
            if code:
                compiling.kill()
                return code
        compiling.wait()
    say("$ pytest " + " ".join(words))
    return call([str(program("pytest")), *words], environment, HERE)


def start_compiling(environment):
    """Start compiling the tests to bytecode on a core that the checks leave idle.

    Otherwise each of pytest's processes would do it, for ten seconds. Errors are left to pytest to
    report.
    """
    words = [str(program("pytest")), "--collect-only", "-qq"]
    return subprocess.Popen(
        words, env=environment, cwd=HERE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def fingerprint(index):
    """Return a hash of everything that an installation depends on."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {HERE} {index}".encode())
    for file in (CONSTRAINTS, HERE / "pyproject.toml"):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def pinned(package):
    """Return the line of the constraints file for a package."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{package}=="))


def python():
    """Return the path of the environment's interpreter."""
    return VENV / "Scripts" / "python.exe" if os.name == "nt" else VENV / "bin" / "python"


def program(name):
    """Return the path of a program of the environment."""
    return python().with_name(f"{name}.exe" if os.name == "nt" else name)


def run(command, what, *, may_fail=False):
    """Run a command quietly; return whether it succeeded.

    If it fails, this program ends with one sentence that says why; with `may_fail` only if the disk
    is full, and otherwise the last line of the command's output is printed.

    Downloads go to a folder in `.venv`, so that space is needed on one disk only, and not on a
    small one for temporary files. If the disk of pip's or uv's cache is nearly full, the cache is
    not used.
    """
    temporary = VENV / "tmp"
    environment = dict(os.environ)
    if VENV.is_dir():
        temporary.mkdir(exist_ok=True)
        home = nearest_folder(Path(os.path.expanduser("~")))  # noqa: PTH111 - may not exist
        environment.update({name: str(temporary) for name in ("TMPDIR", "TEMP", "TMP")})
        if shutil.disk_usage(home).free / 2**30 < NEEDED_GIB["CUDA"][1]:
            environment.update(PIP_NO_CACHE_DIR="1", UV_NO_CACHE="1")
    result = waited(command, environment)
    shutil.rmtree(temporary, ignore_errors=True)
    if result.returncode == 0:
        return True
    output = result.stdout.decode("utf-8", errors="replace")
    if any(words in output for words in DISK_WORDS):
        stop(f"Could not {what}: the disk of {HERE} is full. Free some space and start again.")
    if not may_fail:
        stop_for(what, output)
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    say(f"  Could not {what}: {lines[-1][:300] if lines else 'it printed nothing'}")
    return False


def stop_for(what, output):
    """Stop because a command has failed: with one sentence, or after the end of its output."""
    if any(words in output for words in NETWORK_WORDS):
        stop(
            f"Could not {what}: the package registry cannot be reached, or has nothing for this "
            "Python and system. Check the network connection (and the proxy settings, if there is "
            "a proxy) and start again."
        )
    print("\n".join(output.splitlines()[-15:]), file=sys.stderr)
    stop(f"Could not {what}; the lines above say why. `--reinstall` starts from scratch.")


def nearest_folder(path):
    """Return a folder, or the nearest existing folder above it.

    A service's user may have no home.
    """
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path if path.is_dir() else HERE


def waited(command, environment):
    """Run a command and return its result, printing a dot every 5 seconds as a sign of progress."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=HERE, env=environment
        )
        waits = 0
        while True:
            try:
                process.wait(timeout=5)
                break
            except subprocess.TimeoutExpired:
                waits += 1
                print(".", end="", flush=True)
            except KeyboardInterrupt:
                process.terminate()
                process.wait()
                stop("stopped while installing. Start again: what was downloaded is kept.")
        if waits:
            print()
        log.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, log.read())


def say(message):
    """Print a message for the user."""
    print(message, flush=True)


def stop(message):
    """Print one clear sentence and exit with code 1."""
    print(f"start.py: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
