"""The ratio that each tensor of a model is mixed with: by network, and by block of its U-Net.

Blocks have two sets of names. `IN00` to `IN11`, `M00`, `OUT00` to `OUT11` are those of the A1111
extension for merging by blocks (bbc-mc/sdweb-merge-block-weighted-gui) and of supermerger
(`blockfromkey` of hako-mikan/sd-webui-supermerger): the numbers of LDM's input, middle and output
blocks, with the embeddings of time and size in the first and the last layers in the last. The
others are diffusers' names of modules, as in `method.block_lrs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from impasto.errors import ConfigError
from impasto.models import families
from impasto.models.reading.contents import ModelContents
from impasto.models.trainable import block_of

BASE = "BASE"
"""Name for all tensors outside the U-Net: text encoders and VAE."""

_NUMBERED = re.compile(r"(IN|OUT)(\d{1,2})", re.ASCII)
_MIDDLE = {"M", "M0", "M00", "MID", "MID00"}
_LDM_BLOCKS = (("input_blocks.", "IN"), ("output_blocks.", "OUT"))


@dataclass(frozen=True)
class Ratios:
    """The ratio of each tensor.

    Attributes:
        default: Ratio of tensors that no name covers.
        named: Names of networks, of kinds of networks, and of blocks -> their ratios. If several
            names cover a tensor, diffusers' longest applies, then `IN04` and the like, then the
            network's.
        listed: Ratios of all blocks that were given as a list; `named` takes precedence.
    """

    default: float
    named: Mapping[str, float] = field(default_factory=dict)
    listed: Mapping[str, float] = field(default_factory=dict)

    @property
    def given(self) -> dict[str, float]:
        """The ratios that were given besides the default, by the name of a network or block."""
        own = {_canonical(name): ratio for name, ratio in self.named.items()}
        return {**self.listed, **own}

    def of(self, contents: ModelContents) -> dict[str, dict[str, float]]:
        """Return network -> name of a tensor -> its ratio.

        Raises:
            ConfigError: A name is of no network or block of this model, or has no effect.
        """
        wanted = self.given
        used: set[str] = set()
        found: dict[str, dict[str, float]] = {}
        for component, tensors in contents.components.items():
            blocks = mbw_blocks(contents) if component == contents.identity.family.unet.name else {}
            found[component] = {}
            for name in tensors:
                key = self._covering(wanted, component, name, blocks.get(name), contents)
                used.add(key)
                found[component][name] = wanted.get(key, self.default)
        if unknown := sorted({_canonical(name) for name in self.named} - used):
            raise ConfigError(
                f"{unknown[0]} is not a network or block of {contents.name}, or other names cover "
                f"all of it. The model has {known_names(contents)}."
            )
        return found

    def _covering(
        self,
        wanted: Mapping[str, float],
        network: str,
        name: str,
        block: str | None,
        contents: ModelContents,
    ) -> str:
        """Return the name in `wanted` that gives a tensor its ratio; empty if none does.

        Args:
            wanted: Names -> ratios.
            network: Network of the tensor.
            name: Name of the tensor.
            block: Block of the U-Net; None in other networks.
            contents: The model.
        """
        kinds = {
            component.name: component.kind for component in contents.identity.family.components
        }
        setting = next(
            setting for setting, kind in families.BY_SETTING.items() if kind is kinds[network]
        )
        inner = () if block is None else (block_of(name, wanted), block)
        outer = (BASE,) if block is None else ()
        candidates = (*inner, network, setting, *outer)
        return next((key for key in candidates if key in wanted), "")


def _canonical(name: str) -> str:
    """Return the standard spelling of a name: `IN04` for `in4`, `M00` for `mid`, or the name."""
    upper = name.strip().upper()
    if match := _NUMBERED.fullmatch(upper):
        return f"{match[1]}{int(match[2]):02}"
    if upper in _MIDDLE:
        return "M00"
    return BASE if upper == BASE else name.strip()


def mbw_blocks(contents: ModelContents) -> dict[str, str]:
    """Return name of a tensor of the U-Net -> its block (`IN00` and so on)."""
    component = contents.identity.family.unet
    tensors = contents.components[component.name]
    component_map = component.naming.map_of_ours(tensors.keys())
    ldm = {
        name: component_map.to_ldm(name).removeprefix(component.naming.prefix) for name in tensors
    }
    last = max(int(n.split(".")[1]) for n in ldm.values() if n.startswith("output_blocks."))
    return {name: _mbw_block(own, last) for name, own in ldm.items()}


def _mbw_block(name: str, last: int) -> str:
    for start, block in _LDM_BLOCKS:
        if name.startswith(start):
            return f"{block}{int(name.split('.')[1]):02}"
    if name.startswith("middle_block."):
        return "M00"
    return f"OUT{last:02}" if name.startswith("out.") else "IN00"


def block_order(contents: ModelContents) -> list[str]:
    """Return the blocks of a U-Net in the order of A1111's lists: `IN00` ..., `M00`, `OUT00` ..."""
    order = {"IN": 0, "M": 1, "OUT": 2}
    found = set(mbw_blocks(contents).values())
    return sorted(found, key=lambda block: (order[block.rstrip("0123456789")], block))


def listed_ratios(numbers: Sequence[float], contents: ModelContents) -> dict[str, float]:
    """Return block -> ratio for a list of ratios, as merging extensions for A1111 show and take it.

    Args:
        numbers: One per block (25 for SD, 19 for SDXL), optionally preceded by that of text
            encoders and VAE.
        contents: The model.

    Raises:
        ConfigError: There are more or fewer.
    """
    order = block_order(contents)
    if len(numbers) == len(order) + 1:
        order = [BASE, *order]
    if len(numbers) != len(order):
        raise ConfigError(
            f"--blocks has {len(numbers)} numbers; {contents.name} has {len(order)} blocks, "
            f"{order[0]} to {order[-1]}. Give {len(order)} numbers, or {len(order) + 1} with that "
            f"of text encoders and VAE first."
        )
    return dict(zip(order, numbers, strict=True))


def known_names(contents: ModelContents) -> str:
    """Return the names that a ratio may be given for, as part of a sentence."""
    order = block_order(contents)
    family = contents.identity.family
    first = [block for block in order if block.startswith("IN")]
    last = [block for block in order if block.startswith("OUT")]
    tensors = contents.components[family.unet.name]
    modules = sorted({_module(name) for name in tensors})
    networks = dict.fromkeys((*families.BY_SETTING, *family.names))
    return (
        f"{', '.join(networks)}; {first[0]} to {first[-1]}, M00, {last[0]} to {last[-1]}; "
        f"{', '.join(modules)}, and layers in those, such as down_blocks.1.attentions.0"
    )


def _module(name: str) -> str:
    names = name.split(".")
    return ".".join(names[:2]) if names[1].isdigit() else names[0]
