"""Small ONNX files with exactly the shapes and metadata of each kind of tagger, made for tests.

Each computes a known function of its input, the maximum of each channel, so that a test can check
whether layout, channel order and range are those of its kind.
"""

import csv
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def means_model(file, *, side, channels_first, rows=3, batch="N", outputs=None, metadata=None):
    """Write a model whose output row i is the maximum of channel i, and 0 for further rows."""
    shape = [batch, 3, side, side] if channels_first else [batch, side, side, 3]
    axes = [2, 3] if channels_first else [1, 2]
    matrix = np.zeros((3, rows), dtype=np.float32)
    for channel in range(min(3, rows)):
        matrix[channel, channel] = 1
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["means"], axes=axes, keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["output"]),
    ]
    found = [helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, rows])]
    for name, width in (outputs or {}).items():
        values = numpy_helper.from_array(np.zeros((3, width), dtype=np.float32), f"{name}_zeros")
        nodes.append(helper.make_node("MatMul", ["means", f"{name}_zeros"], [name]))
        found.insert(0, helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, width]))
        nodes[-1].doc_string = values.name
    initializers = [numpy_helper.from_array(matrix, "matrix")] + [
        numpy_helper.from_array(np.zeros((3, width), dtype=np.float32), f"{name}_zeros")
        for name, width in (outputs or {}).items()
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        found,
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(file))


def selected_tags(file, rows=(("a", 0), ("b", 4), ("c", 9))):
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["tag_id", "name", "category", "count"])
        writer.writerows([n, name, category, 1] for n, (name, category) in enumerate(rows))


RED, GREEN, BLUE = 200.0, 100.0, 50.0
"""The test image for taggers, of one colour."""


def sigmoid(*values):
    return [1 / (1 + np.exp(-value)) for value in values]


def wd14(folder, batch="N"):
    means_model(folder / "model.onnx", side=448, channels_first=False, batch=batch)
    selected_tags(folder / "selected_tags.csv")
    return [BLUE, GREEN, RED]


def cl_tagger(folder):
    means_model(folder / "model_optimized.onnx", side=448, channels_first=True, rows=6)
    mapping = {0: ("a", "General"), 1: ("b", "Character"), 5: ("c", "Quality")}
    rows = {str(n): {"tag": tag, "category": c} for n, (tag, c) in mapping.items()}
    (folder / "tag_mapping.json").write_text(json.dumps(rows))
    return sigmoid(*(value / 127.5 - 1 for value in (BLUE, GREEN, RED)))


def pixai(folder):
    means_model(folder / "model.onnx", side=448, channels_first=True, outputs={"embedding": 7})
    selected_tags(folder / "selected_tags.csv", [("a", 0), ("b", 4), ("c", 0)])
    steps = [
        {"type": "resize", "size": [448, 448]},
        {"type": "normalize", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    ]
    (folder / "preprocess.json").write_text(json.dumps({"test": steps}))
    return [value / 127.5 - 1 for value in (RED, GREEN, BLUE)]


def camie(folder):
    means_model(folder / "model.onnx", side=512, channels_first=True)
    mapping = {
        "idx_to_tag": {"0": "a", "1": "b", "2": "c"},
        "tag_to_category": {"a": "general", "b": "artist", "c": "rating"},
    }
    text = json.dumps({"dataset_info": {"tag_mapping": mapping}})
    (folder / "metadata.json").write_text(text)
    return sigmoid(RED / 255, GREEN / 255, BLUE / 255)


def joytag(folder):
    means_model(folder / "model.onnx", side=448, channels_first=True)
    (folder / "top_tags.txt").write_text("a\nb\nc\n")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    channels = zip((RED, GREEN, BLUE), mean, std, strict=True)
    return sigmoid(*((value / 255 - m) / s for value, m, s in channels))


def deepdanbooru(folder, **options):
    means_model(folder / "deepdanbooru.onnx", side=512, channels_first=False, **options)
    return [RED / 255, GREEN / 255, BLUE / 255]


def with_tags_txt(folder):
    (folder / "tags.txt").write_text("a\nb\nrating:safe\n")
    return deepdanbooru(folder)


def of_deepghs(folder):
    rows = [("a", 0), ("b", 4), ("rating:safe", 9)]
    selected_tags(folder / "deepdanbooru_tags.csv", rows)
    return deepdanbooru(folder)


KINDS = {
    "wd14": wd14,
    "wd14 of batch 1": lambda folder: wd14(folder, batch=1),
    "cl_tagger": cl_tagger,
    "pixai": pixai,
    "camie": camie,
    "joytag": joytag,
    "deepdanbooru, tags in its metadata": lambda folder: deepdanbooru(
        folder, metadata={"tags": "['a', 'b', 'rating:safe']"}
    ),
    "deepdanbooru, tags.txt": with_tags_txt,
    "deepdanbooru, deepghs": of_deepghs,
}


def make(kind, folder):
    """Write a tagger of one kind; return its folder and the expected values of rows 0, 1 and 2."""
    return KINDS[kind](folder)
