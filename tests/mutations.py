"""Ways to damage a file: its bytes, the values of a tree, and the syntax of JSON and TOML."""

from __future__ import annotations

import copy
import json
import math
import struct

import tomli_w

ODD_VALUES = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**63, -(2**63), 10**320, 100_000, 0.5, -0.0, 1e308,
    math.nan, math.inf, -math.inf, "", " ", "\0", "x" * 70_000, "../../outside", "/etc/hostname",
    "C:\\train\\new", "\ud800", "\udcff", "\x1b[31mred", "ﬁ e\u0301", "\u2028", "nan", "1e999",
    "<b>", [], {}, [[]], [None], [1, 2, 3], [1.5, "a"], {"": {}}, {"step": -1}, [0, 0], [64, 64],
    [10**9, 10**9], {"a": {"b": {"c": {"d": []}}}},
]  # fmt: skip
ODD_KEYS = ["", "a", "0", "__class__", "../x", "\0", "é", "k" * 3000, "step "]


def damaged_bytes(rng, content):
    """Return a file's bytes with a few random edits."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 3, 12])):
        at = rng.randrange(len(data) + 1)
        rng.choice(_EDITS)(rng, data, at)
    return bytes(data)


def _flip(rng, data, at):
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _cut(rng, data, at):
    del data[at:]


def _drop(rng, data, at):
    del data[at : at + rng.choice([1, 3, 16, 300])]


def _insert(rng, data, at):
    data[at:at] = rng.randbytes(rng.choice([1, 2, 8, 500]))


def _repeat(rng, data, at):
    data[at:at] = data[at : at + rng.choice([1, 10, 400])]


def _zero(rng, data, at):
    stop = min(len(data), at + rng.choice([1, 8, 200, 10**6]))
    data[at:stop] = bytes(stop - at)


def _number(rng, data, at):
    form = rng.choice(["<q", ">q", "<I", "<d"])
    number = {"<d": math.nan, "<I": 2**32 - 1}.get(form, rng.choice([-1, 2**62, 0]))
    packed = struct.pack(form, number)
    data[at : at + len(packed)] = packed


def _head(rng, data, at):
    data[: rng.choice([0, 1, 4, 8])] = rng.choice(
        [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\x80\x02", b"<html>", b"\x93NUMPY"]
    )


def _tail(rng, data, at):
    data += rng.choice([bytes(600), b"}", b'{"step": 1', b"\xff\n", b"5\n", b"null\n", b"[]\n"])


def _swap(rng, data, at):
    data[:] = data[at:] + data[:at]


_EDITS = [
    _flip, _flip, _flip, _cut, _drop, _insert, _repeat, _zero, _number, _head, _tail, _swap
]  # fmt: skip


def places_in(tree, path=()):
    """Yield the path of every value in a tree of dicts and lists."""
    yield path
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from places_in(value, (*path, key))


def damaged_tree(rng, tree, odd=ODD_VALUES):
    """Return a copy with some values replaced, removed, renamed, nested or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        path = rng.choice(list(places_in(tree)))
        if not path:
            continue
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        _damage_entry(rng, holder, path[-1], odd)
    return tree if rng.random() > 0.03 else copy.deepcopy(rng.choice(odd))


def _damage_entry(rng, holder, key, odd):
    how = rng.randrange(7)
    if how <= 2:
        holder[key] = copy.deepcopy(rng.choice(odd))
    elif how == 3:
        del holder[key]
    elif how == 4:
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
    elif how == 5 and isinstance(holder, dict):
        holder[rng.choice(ODD_KEYS)] = holder.pop(key)
    elif isinstance(holder, list):
        holder.extend(copy.deepcopy(holder) * rng.choice([1, 9]))
    else:
        holder[key] = str(holder[key])


def deep_json(rng):
    """Return JSON nested so deeply that a recursive reader runs out of stack."""
    depth = rng.choice([400, 3000, 120_000])
    return rng.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "0" + "}" * depth])


def json_bytes(tree, **options):
    """Return JSON as other programs write it, including lone surrogates."""
    return json.dumps(tree, ensure_ascii=False, **options).encode("utf-8", "surrogatepass")


def damaged_json(rng, tree):
    """Return a JSON file with damage in a value, its syntax, its encoding or its bytes."""
    how = rng.random()
    if how < 0.6:
        return json_bytes(damaged_tree(rng, tree), indent=rng.choice([None, 1]))
    if how < 0.67:
        return deep_json(rng).encode()
    if how < 0.72:
        text = json.dumps(tree)
        return rng.choice(
            [text.encode("utf-16"), text.encode("utf-8-sig"), (text + text).encode(), b"", b"{}"]
        )
    return damaged_bytes(rng, json_bytes(tree))


def damaged_lines(rng, rows):
    """Return JSON lines, some of them damaged."""
    if rng.random() < 0.3:
        return damaged_bytes(rng, b"\n".join(json_bytes(row) for row in rows))
    return b"\n".join(
        damaged_json(rng, row).replace(b"\n", b" ") if rng.random() < 0.3 else json_bytes(row)
        for row in rows
    )


def damaged_toml(rng, tree):
    """Return a TOML file with damage in a value, its syntax or its bytes."""
    how = rng.random()
    if how < 0.65:
        changed = _for_toml(damaged_tree(rng, tree))
        text = tomli_w.dumps(changed if isinstance(changed, dict) else {"x": str(changed)})
        return text.encode("utf-8", "surrogatepass")
    if how < 0.72:
        depth = rng.choice([500, 50_000])
        deep = ["a = " + "[" * depth, "x = " + "{a=" * depth, ".".join(["a"] * depth) + " = 1"]
        return rng.choice(deep).encode()
    return damaged_bytes(rng, tomli_w.dumps(_for_toml(tree)).encode())


def _for_toml(value):
    if isinstance(value, dict):
        return {str(k): _for_toml(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_for_toml(v) for v in value if v is not None]
    if type(value) is int and abs(value) >= 2**63:
        return 2**63 - 1
    return value
