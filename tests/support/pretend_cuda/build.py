"""Build the library that lets a CPU build of PyTorch accept `cuda` tensors; kept between runs."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("stand_in.cpp")


def reason_against() -> str | None:
    """Return why the library cannot be built here, or None if it can."""
    if not sys.platform.startswith("linux"):
        return "the pretended GPU is built for Linux only"
    if shutil.which("g++") is None:
        return "the pretended GPU needs g++, which is not on the PATH"
    from importlib.metadata import version

    if "+cpu" not in version("torch") and _has_cuda():
        return "PyTorch is built with CUDA here, whose own guard cannot be replaced"
    return None


def build(folder: Path) -> Path:
    """Return the shared library in a folder, building it if it is missing."""
    from importlib.metadata import version

    name = hashlib.sha256(SOURCE.read_bytes() + version("torch").encode()).hexdigest()[:16]
    library = folder / f"stand_in-{name}.so"
    if library.is_file():
        return library
    torch = _torch_folder()
    partial = library.with_suffix(".partial")
    command = [
        "g++", "-std=c++20", "-O0", "-fPIC", "-shared", f"-I{torch / 'include'}", str(SOURCE),
        "-o", str(partial), f"-L{torch / 'lib'}", "-lc10", "-ltorch_cpu",
        f"-Wl,-rpath,{torch / 'lib'}",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, text=True)
    return partial.rename(library)


def _torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _has_cuda() -> bool:
    return (_torch_folder() / "lib" / "libtorch_cuda.so").exists()
