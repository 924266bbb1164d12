"""Files given by mistake are identified, whichever program wrote them."""

import pytest
import torch
from safetensors.torch import save_file

from impasto.checkpoints.kinds import kind_of
from impasto.checkpoints.reading import open_tensor_file
from impasto.models.families import file_layouts
from impasto.models.reading.opening import OpenOptions
from impasto.models.writing.inspection import inspect_model
from impasto.progress import SilentProgress

UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["unet.down_blocks.0.attentions.0.attn1.to_k.lora.down.weight"], "LoRA"),
        (["mid_block.attn1.processor.to_q_lora.up.weight"], "LoRA"),
        (["lora_unet_x.hada_w1_a"], "LoRA or LyCORIS"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "LoRA"),
        (["single_transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"], "Flux"),
        (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["transformer_blocks.0.attn.add_q_proj.weight"], "SD 3, PixArt"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "IP-Adapter"),
        (["body.0.in_conv.weight", "conv_in.weight"], "T2I-Adapter"),
        (["adapter.body.0.resnets.0.block1.weight"], "T2I-Adapter"),
        (["down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"], "motion module"),
        (["conv_first.weight", "body.0.rdb1.conv1.weight"], "upscaler"),
        (["model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"], "upscaler"),
        (["vision_model.encoder.layers.0.self_attn.q_proj.weight"], "CLIP vision"),
        (["visual.transformer.resblocks.0.ln_1.weight"], "CLIP vision"),
        (["input_hint_block.0.weight"], "ControlNet"),
        (["position_net.linears.0.weight"], "GLIGEN"),
        ([UNET + "input_blocks.1.0.time_stack.in_layers.0.weight"], "Video"),
        (["noise_augmentor.time_embed.0.weight", UNET + "label_emb.0.0.weight"], "unCLIP"),
        ([UNET + "input_blocks.0.0.weight", "clip_l.transformer.text_model.x"],
         "a Stable Diffusion checkpoint as ComfyUI has it in memory"),
        ([UNET + "input_blocks.0.0.weight", "cond_stage_model.clip_l.transformer.text_model.x",
          "first_stage_model.encoder.conv_in.weight"], "as ComfyUI has it in memory"),
        ([UNET + "input_blocks.0.0.weight", "clip_h.transformer.text_model.x"],
         "a Stable Diffusion checkpoint as ComfyUI has it in memory"),
        ([UNET + "joint_blocks.0.x_block.attn.proj.weight", "clip_l.transformer.text_model.x",
          "clip_g.transformer.text_model.x"], "SD 3 checkpoint"),
        ([UNET + "label_emb.0.0.weight", "clip_g.transformer.text_model.x"], "SDXL refiner, or"),
        ([UNET + "label_emb.0.0.weight", "clip_l.transformer.text_model.x",
          "clip_g.transformer.text_model.x"], "an SDXL checkpoint as a program has it in memory"),
        (["clip_l.transformer.text_model.x", "clip_g.transformer.text_model.x"], "no kind"),
        (["add_embedding.linear_1.weight", "down_blocks.0.resnets.0.x"], "SDXL"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "T5"),
        (["model.layers.0.self_attn.q_proj.weight"], "language model"),
        ([UNET + "input_blocks.0.0.weight", "first_stage_model.encoder.conv_in.weight"],
         "a U-Net and a VAE, without text encoder"),
        (["input_blocks.0.0.weight"], "a U-Net alone"),
        (["cond_stage_model.transformer.text_model.x"], "a text encoder alone"),
        (["encoder.layers.0.weight", "decoder.layers.1.weight"], "TAESD"),
        (["encoder.layers.0.self_attn.q_proj.weight"], "text encoder of a Diffusers"),
    ],
)  # fmt: skip
def test_by_names(tmp_path, names, words):
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors")
    assert words in kind_of(open_tensor_file(tmp_path / "x.safetensors"), file_layouts()).name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(4, 768)},
          "name": "x"}, "embedding"),
        ({"<cat>": torch.zeros(768)}, "embedding"),
        ({"cat-toy": torch.zeros(2, 1024)}, "embedding"),
        ({"image_proj": {"a": torch.ones(1)}, "ip_adapter": {"b": torch.ones(1)}}, "IP-Adapter"),
        ({"params_ema": {"conv_first.weight": torch.ones(1)}}, "upscaler"),
        ({"optimizer_name": "AdamW", "hash": "0", "optimizer_state_dict": {}}, "optimizer"),
        ({768: ({}, {}), "step": 1}, "hypernetwork"),
    ],
)  # fmt: skip
def test_by_what_is_no_tensor(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pt")
    assert words in kind_of(open_tensor_file(tmp_path / "x.pt"), file_layouts()).name


def test_numbers_of_a_file_do_not_stand_in_for_what_was_found(tmp_path):
    file = tmp_path / "x.ckpt"
    counters = {"Kind": 1, "Path": 2, "Size": 3, "Form": 4, "Tensors": 5, "global_step": 6}
    torch.save({"w": torch.ones(1), **counters}, file)
    rows = inspect_model(str(file), OpenOptions(), SilentProgress())["File"]
    assert rows["Path"] == str(file)
    assert not {"1", "2", "3", "4", "5"} & set(rows.values())
    assert rows["global_step"] == "6"
