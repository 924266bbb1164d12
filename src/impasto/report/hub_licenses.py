"""The licences that have an identifier on the Hugging Face Hub.

Source: huggingface/hub-docs, `docs/hub/repositories-licenses.md`. `unknown` is left out, since a
publisher must state a licence. Any other licence is `other`, with a name and a link.
"""

from __future__ import annotations

import difflib
import re

from impasto.errors import ConfigError

OTHER = "other"

COMMON = ("creativeml-openrail-m", "openrail++", "openrail", "cc-by-4.0", "cc0-1.0", "apache-2.0")
"""The most common licences of such models, shown first."""

LICENSES = (
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0",
    "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "llama2", "gemma", OTHER,
)  # fmt: skip
"""All licence identifiers that a repository's card can have."""

_ADDRESS = re.compile(r"https?://[^\s<>\"]+|LICENSE(\.\w+)?")


def require_license(license_id: str | None, name: str | None, link: str | None) -> str:
    """Return the licence identifier after checking it.

    Raises:
        ConfigError: It is missing or unknown, or `other` has no name or no valid link.
    """
    if not license_id:
        raise ConfigError(
            "A licence is required to publish a model. Give it with --license, or as license in "
            "[saving.metadata] of the run's settings. A fine-tuned model must respect the licence "
            "of its base model: Stable Diffusion 1.x is creativeml-openrail-m, 2.x openrail++."
        )
    if license_id not in LICENSES:
        near = difflib.get_close_matches(license_id.lower(), LICENSES, n=3)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(
            f"The Hugging Face Hub knows no licence {license_id!r}.{meant} For another licence, "
            f"give --license other with --license-name and --license-link."
        )
    if license_id == OTHER and not (name and link):
        raise ConfigError(
            "--license other needs --license-name, its name, and --license-link, the URL of its "
            "text."
        )
    if link and not _ADDRESS.fullmatch(link):
        raise ConfigError(f"--license-link {link!r} is not a URL of the form https://...")
    return license_id
