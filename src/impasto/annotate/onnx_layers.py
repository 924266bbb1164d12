"""Finds the penultimate layer of an ONNX classifier, and adds it as an output.

The package `onnx` is not needed: only the names in the model's graph are read from its bytes, by
the wire format of Protocol Buffers, and the output is added by appending a few bytes. Every parser
merges messages that occur twice ("Last One Wins" in the encoding guide) and concatenates their
lists, so a second graph that contains only an output adds that output.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH = 7  # field numbers of onnx.proto3: ModelProto.graph,
_NODE, _INITIALIZER, _OUTPUT = 1, 5, 12  # GraphProto's,
_INPUTS, _OUTPUTS, _KIND = 1, 2, 4  # NodeProto's,
_TENSOR_NAME, _VALUE_NAME = 8, 1  # and the names of TensorProto and ValueInfoProto
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_LAST_LAYERS = frozenset({"Gemm", "MatMul"})
_THROUGH = frozenset({"Sigmoid", "Softmax", "Add", "Mul", "Identity", "Cast", "Flatten", "Reshape"})


@dataclass(frozen=True)
class _Node:
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def penultimate_name(model: bytes, output: str) -> str | None:
    """Return the name of the input of the last fully connected layer; None if there is none.

    Args:
        model: The bytes of a `.onnx` file.
        output: The output that the layer leads to.

    Raises:
        ValueError: The bytes are not a model.
    """
    nodes, weights = _graph_of(model)
    made_by = {name: node for node in nodes for name in node.outputs}
    waiting, seen = [output], set()
    while waiting:
        node = made_by.get(waiting.pop())
        if node is None or node.outputs in seen:
            continue
        seen.add(node.outputs)
        given = [name for name in node.inputs if name and name not in weights]
        if node.kind in _LAST_LAYERS:
            return given[0] if len(given) == 1 else None
        if node.kind in _THROUGH:
            waiting += given
    return None


def with_output(model: bytes, name: str) -> bytes:
    """Return a model with one more output, for a value that its graph already computes."""
    value = _field(_VALUE_NAME, name.encode("utf-8"))
    return model + _field(_GRAPH, _field(_OUTPUT, value))


def _graph_of(model: bytes) -> tuple[list[_Node], set[str]]:
    """Return the nodes of a model's graph, and the names of weights and other constants."""
    nodes: list[_Node] = []
    weights: set[str] = set()
    for number, graph in _fields(memoryview(model)):
        if number != _GRAPH:
            continue
        for inner, content in _fields(graph):
            if inner == _NODE:
                nodes.append(_node_of(content))
            elif inner == _INITIALIZER:
                weights.update(_texts(content, _TENSOR_NAME))
    constants = (name for node in nodes if node.kind == "Constant" for name in node.outputs)
    weights.update(constants)
    return nodes, weights


def _node_of(content: memoryview) -> _Node:
    kinds = _texts(content, _KIND)
    return _Node(
        kinds[0] if kinds else "",
        tuple(_texts(content, _INPUTS)),
        tuple(_texts(content, _OUTPUTS)),
    )


def _texts(message: memoryview, wanted: int) -> list[str]:
    return [str(content, "utf-8") for number, content in _fields(message) if number == wanted]


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the numbers and contents of a message's length-delimited fields; others are skipped.

    Raises:
        ValueError: It is not a message: it ends within a field, or has one of an unknown type.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
            if size > len(message) - at:
                raise ValueError("it ends within a field")
            yield number, message[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_EIGHT, _FOUR):
            at += 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return a varint (seven bits per byte) and the position after it."""
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("it ends within a number")
        byte = message[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7


def _field(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
