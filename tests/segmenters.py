"""Tiny random segmentation models of every kind, saved as transformers folders, for tests."""

import torch
from transformers import (
    DetrConfig,
    DetrForSegmentation,
    DetrImageProcessor,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

THINGS = ["cat", "dog", "sofa"]


def named(labels):
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def never_nothing(classifier):
    """Make the last class, "no object", never win."""
    with torch.no_grad():
        classifier.weight.mul_(20)
        classifier.bias[-1] = -100


def segformer(folder, labels=THINGS, winner=None):
    """Write a semantic model, or with one label a matting model; `winner` is found everywhere."""
    torch.manual_seed(0)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16],
        patch_sizes=[3, 3], strides=[2, 2], num_attention_heads=[1, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=8, **named(labels),
    )  # fmt: skip
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        model.decode_head.classifier.weight.mul_(500)
    if winner is not None:
        with torch.no_grad():
            model.decode_head.classifier.weight.zero_()
            model.decode_head.classifier.bias.copy_(torch.eye(len(labels))[labels.index(winner)])
    model.save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def detr(folder, labels=THINGS):
    """Write a model of instance, panoptic and semantic segments."""
    torch.manual_seed(2)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, backbone=None, num_queries=5,
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16,
        encoder_attention_heads=8, decoder_attention_heads=8, **named(labels),
    )  # fmt: skip
    model = DetrForSegmentation(config)
    never_nothing(model.detr.class_labels_classifier)
    model.save_pretrained(folder)
    DetrImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
