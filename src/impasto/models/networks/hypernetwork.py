"""Hypernetworks: small networks that change the context from which attention makes keys and values.

NovelAI Improvements on Stable Diffusion, 2022; AUTOMATIC1111/stable-diffusion-webui,
`modules/hypernetworks/hypernetwork.py`. One pair of networks per width serves all attention modules
whose context has that width: the captions' (768, 1024 in SD 2, 2048 in SDXL) and the image's own
(640, 1280, and 320 in SD 1 and 2).
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as torch_activations

from impasto.checkpoints.hypernetworks import (
    HALVES,
    HypernetworkContents,
    Structure,
    halves_of,
    read_hypernetwork,
)
from impasto.errors import ConfigError, ModelError
from impasto.models import families
from impasto.models.networks.attention import FusedAttention
from impasto.models.networks.attention_kernels import sdpa
from impasto.models.reading.opening import local_file, named_by
from impasto.strengths import path_and_strength

_WITHOUT_SHAPE = {
    "multiheadattention",
    "threshold",
    "glu",
}  # these need arguments, or halve their input
_OVER_BATCHES = {"softmax", "softmin", "logsoftmax"}
"""For these, as A1111 creates them, PyTorch implies the first of three dimensions, which is that of
images and prompts: the result depends on the images generated together, so that a file with one of
them cannot give the same images elsewhere."""


def _activations() -> dict[str, Callable[[], nn.Module]]:
    """Return the activations by A1111's names.

    Its own seven come first, then each activation of PyTorch in lower case.
    """
    found: dict[str, Callable[[], nn.Module]] = {
        name.lower(): kind
        for name, kind in vars(torch_activations).items()
        if inspect.isclass(kind)
        and issubclass(kind, nn.Module)
        and kind.__module__ == torch_activations.__name__
        and name.lower() not in {*_WITHOUT_SHAPE, *_OVER_BATCHES, "softmax2d"}
    }
    return {
        "linear": nn.Identity,
        "relu": nn.ReLU,
        "leakyrelu": nn.LeakyReLU,
        "elu": nn.ELU,
        "swish": nn.Hardswish,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        **found,
    }


ACTIVATIONS = _activations()

INITIALIZATIONS = (
    "Normal", "XavierUniform", "XavierNormal", "KaimingUniform", "KaimingNormal", "ZeroOutput",
)  # fmt: skip
"""A1111's, and `ZeroOutput`: as Normal, but with a last layer of zeros, so that it adds nothing."""


class ContextNetwork(nn.Module):
    """Computes x + strength * network(x) on the last dimension."""

    def __init__(self, width: int, structure: Structure) -> None:
        super().__init__()
        widths = structure.widths(width)
        builders: dict[str, Callable[[int], nn.Module]] = {
            "linear": lambda n: nn.Linear(widths[n], widths[n + 1]),
            "activation": lambda _: ACTIVATIONS[structure.activation](),
            "layer_norm": lambda n: nn.LayerNorm(widths[n + 1]),
            "dropout": lambda n: nn.Dropout(structure.dropout[n + 1]),
        }
        self.linear = nn.Sequential(*(builders[kind](n) for kind, n in structure.modules()))

    def forward(self, x: Tensor, strength: float = 1.0) -> Tensor:
        """Return the changed context, in the dtype of `x`."""
        wide = x.to(next(self.linear.parameters()).dtype)
        changed: Tensor = wide + self.linear(wide) * strength
        return changed.to(x.dtype)


class Hypernetwork(nn.Module):
    """Pairs of networks, by the width of the context that they change.

    Args:
        widths: Widths of the contexts that are changed.
        structure: How each network is built.

    Attributes:
        structure: How each network is built.
        initialization: Name of the initialization of its weights, as in A1111; set by `initialize`.
    """

    def __init__(self, widths: Sequence[int], structure: Structure) -> None:
        super().__init__()
        require_activation(structure.activation)
        self.structure, self.initialization = structure, "Normal"
        self.pairs = nn.ModuleDict(
            {
                str(width): nn.ModuleDict({h: ContextNetwork(width, structure) for h in HALVES})
                for width in sorted(set(widths))
            }
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The context widths that it has networks for."""
        return tuple(int(width) for width in self.pairs)

    def forward(
        self, of_keys: Tensor, of_values: Tensor, strength: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the changed contexts of keys and values; unchanged if no pair has their width."""
        width = str(of_keys.shape[-1])
        if width not in self.pairs:
            return of_keys, of_values
        pair: Any = self.pairs[width]
        return pair["k"](of_keys, strength), pair["v"](of_values, strength)

    @classmethod
    def of(cls, contents: HypernetworkContents) -> Hypernetwork:
        """Build the hypernetwork of a file, in float32."""
        network = cls(contents.widths, contents.structure)
        network.initialization = contents.initialization
        network.load_state_dict(
            {f"pairs.{name}": tensor.float() for name, tensor in contents.tensors().items()}
        )
        return network

    def halves(self) -> Mapping[int, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        """Return the tensors of the hypernetwork by width and half, in the layout of its files."""
        return halves_of({n.removeprefix("pairs."): t for n, t in self.state_dict().items()})


def require_activation(name: str) -> None:
    """Check that an activation with this name exists.

    Raises:
        ConfigError: It does not; the message names the nearest ones.
    """
    if name in _OVER_BATCHES:
        raise ConfigError(
            f"The activation {name!r} is not supported: A1111 computes it over all images "
            f"generated together, so that an image would depend on the others of its batch. Use "
            f"another, such as relu."
        )
    if name not in ACTIVATIONS:
        near = difflib.get_close_matches(name, ACTIVATIONS, n=3, cutoff=0.4)
        raise ConfigError(
            f"There is no activation {name!r}. The nearest are {', '.join(near) or 'none'}; known "
            f"are {', '.join(ACTIVATIONS)}."
        )


def initialize(network: Hypernetwork, name: str, seed: int) -> None:
    """Set the weights to A1111's initialization with this name, and the biases to 0.

    Layer norms always start at a scale of about 0.01, as in A1111. Kaiming's gain is that of ReLU
    unless the activation is leakyrelu.

    Raises:
        ConfigError: There is no such initialization.
    """
    if name not in INITIALIZATIONS:
        raise ConfigError(
            f"There is no initialization {name!r}; choose one of {', '.join(INITIALIZATIONS)}."
        )
    network.initialization = name.replace("ZeroOutput", "Normal")  # A1111 has no ZeroOutput
    gain: Any = "leaky_relu" if network.structure.activation == "leakyrelu" else "relu"
    generator = torch.Generator().manual_seed(seed)
    fill: dict[str, Callable[[Tensor], Any]] = {
        "Normal": lambda w: nn.init.normal_(w, 0.0, 0.01, generator=generator),
        "XavierUniform": lambda w: nn.init.xavier_uniform_(w, generator=generator),
        "XavierNormal": lambda w: nn.init.xavier_normal_(w, generator=generator),
        "KaimingUniform": lambda w: nn.init.kaiming_uniform_(
            w, nonlinearity=gain, generator=generator
        ),
        "KaimingNormal": lambda w: nn.init.kaiming_normal_(
            w, nonlinearity=gain, generator=generator
        ),
    }
    fill["ZeroOutput"] = fill["Normal"]
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.LayerNorm)):
            fill["Normal" if isinstance(module, nn.LayerNorm) else name](module.weight)
            nn.init.zeros_(module.bias)
    if name == "ZeroOutput":
        for child in network.modules():
            if isinstance(child, ContextNetwork):
                last = [m for m in child.linear if isinstance(m, (nn.Linear, nn.LayerNorm))][-1]
                nn.init.zeros_(last.weight)


def context_widths(unet: nn.Module) -> tuple[int, ...]:
    """Return the widths of all contexts that a U-Net attends to, in ascending order."""
    return tuple(sorted({module.to_k.in_features for module in _attentions(unet)}))


@dataclass
class HypernetworkStack:
    """Hypernetworks that are applied one after another, each with its strength.

    Attributes:
        networks: Hypernetworks by name, in order of application.
        strengths: Strengths by the same names; 0 skips a network.
    """

    networks: dict[str, Hypernetwork] = field(default_factory=dict)
    strengths: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, network: Hypernetwork, strength: float = 1.0) -> None:
        """Add a hypernetwork at the end.

        Raises:
            ConfigError: Another one has this name.
        """
        if name in self.networks:
            raise ConfigError(f"Two hypernetworks are called {name!r}. Rename one of the files.")
        self.networks[name], self.strengths[name] = network, strength

    def contexts(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changed contexts for keys and for values."""
        of_keys = of_values = context
        for name, network in self.networks.items():
            if self.strengths[name]:
                of_keys, of_values = network(of_keys, of_values, self.strengths[name])
        return of_keys, of_values

    def attach(self, unet: Any) -> None:
        """Have a U-Net attend to changed contexts, by setting its attention processors.

        An empty stack leaves the U-Net unchanged.

        Raises:
            ModelError: A hypernetwork is for a U-Net of other widths.
        """
        if not self.networks:
            return
        for name, network in self.networks.items():
            require_matching_widths(name, network.widths, unet)
        unet.set_attn_processor(
            {
                name: FusedAttention(
                    upcast=getattr(processor, "upcast", False),
                    kernel=getattr(processor, "kernel", sdpa),
                    contexts=self.contexts,
                )
                for name, processor in unet.attn_processors.items()
            }
        )

    @contextlib.contextmanager
    def attached(self, unet: Any) -> Iterator[None]:
        """Attach the hypernetworks within the block, then restore the attention processors."""
        before = dict(unet.attn_processors)
        self.attach(unet)
        try:
            yield
        finally:
            unet.set_attn_processor(before)

    @contextlib.contextmanager
    def at(self, strengths: Mapping[str, float]) -> Iterator[None]:
        """Use other strengths within the block; networks that are not named retain theirs.

        Raises:
            ConfigError: There is no hypernetwork with one of the names.
        """
        for name in strengths:
            if name not in self.networks:
                known = ", ".join(self.networks) or "none"
                raise ConfigError(
                    f"A prompt names the hypernetwork {name!r}, which is not loaded; "
                    f"known: {known}."
                )
        before = dict(self.strengths)
        self.strengths.update(strengths)
        try:
            yield
        finally:
            self.strengths.update(before)


def load_hypernetworks(specs: Sequence[str]) -> HypernetworkStack:
    """Load hypernetworks from files for generating images: frozen, and without dropout.

    Args:
        specs: `FILE` or `FILE:STRENGTH`, where FILE may be a URL; each hypernetwork is named after
            its file, without the extension.

    Raises:
        ConfigError: Two have the same name.
        ModelError: A file is missing, damaged, or not a hypernetwork.
    """
    stack = HypernetworkStack()
    for spec in specs:
        path, strength = path_and_strength(spec)
        file = local_file(path)
        with named_by(path, file):
            network = Hypernetwork.of(read_hypernetwork(file)).eval()
        stack.add(path.stem, network.requires_grad_(requires_grad=False), strength)
    return stack


def require_matching_widths(name: str, widths: Sequence[int], unet: nn.Module) -> None:
    """Check that a U-Net has contexts of all widths of a hypernetwork.

    Raises:
        ModelError: It has not: the hypernetwork is for another family of models.
    """
    there = context_widths(unet)
    unknown = sorted(set(widths) - set(there))
    if not unknown:
        return
    rows = (row.generation for row in families.FAMILIES if row.context_width in unknown)
    meant = next(rows, "another model")
    raise ModelError(
        f"The hypernetwork {name} is for {meant}: it has networks for contexts of width "
        f"{', '.join(map(str, unknown))}, and this model's widths are "
        f"{', '.join(map(str, there))}. Use a model of the family that it was trained on."
    )


def _attentions(unet: nn.Module) -> Iterator[Any]:
    """Yield the attention modules of diffusers' U-Net."""
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            yield module
