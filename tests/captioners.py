"""Tiny random captioners of several kinds, saved as transformers folders, for tests."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertTokenizerFast,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

WORDS = (
    "a", "the", "cat", "dog", "sun", "with", "word", "on", "it", "user", "assistant", "picture",
    "describe", "this", "in", "sentence",
)  # fmt: skip
SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def words_tokenizer(**options):
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    vocabulary = {word: n for n, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", bos_token="<s>",
        eos_token="</s>", additional_special_tokens=["<image>"], **options,
    )  # fmt: skip


def git(folder):
    torch.manual_seed(0)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = BertTokenizerFast(vocab={word: n for n, word in enumerate(names)})
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    model = GitForCausalLM(
        GitConfig(
            vision_config={**SMALL, "image_size": 32, "patch_size": 16},
            vocab_size=len(names), max_position_embeddings=64, pad_token_id=0,
            bos_token_id=2, eos_token_id=3, **SMALL,
        )
    )  # fmt: skip
    save(folder, model, GitProcessor(images, tokenizer))


def blip2(folder):
    torch.manual_seed(3)
    tokenizer = words_tokenizer()
    images = BlipImageProcessor(size={"height": 32, "width": 32})
    config = Blip2Config(
        vision_config={**SMALL, "image_size": 32, "patch_size": 16},
        qformer_config={**SMALL, "vocab_size": 30, "encoder_hidden_size": 16},
        text_config={
            "model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "vocab_size": len(tokenizer), "word_embed_proj_dim": 16,
            "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    save(folder, model, Blip2Processor(images, tokenizer, num_query_tokens=4))


def chat(folder):
    torch.manual_seed(0)
    tokenizer = words_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    config = LlavaConfig(
        vision_config={
            **SMALL, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 16,
        },
        text_config={
            **SMALL, "model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3, "num_key_value_heads": 2,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    processor = LlavaProcessor(
        images, tokenizer, patch_size=16, vision_feature_select_strategy="default",
        chat_template=CHAT, image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    save(folder, model, processor)


def florence2(folder):
    torch.manual_seed(1)
    tokenizer = words_tokenizer(extra_special_tokens={"image_token": "<image>"})
    images = CLIPImageProcessor(
        size={"height": 64, "width": 64}, crop_size={"height": 64, "width": 64},
        do_center_crop=False,
    )  # fmt: skip
    images.image_seq_length = 5
    config = Florence2Config(
        vision_config={
            "depths": (1, 1), "patch_size": (7, 3), "patch_stride": (8, 4), "patch_padding": (3, 1),
            "patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2),
            "num_groups": (2, 2), "window_size": 2, "projection_dim": 16, "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 64,
            "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
            "forced_eos_token_id": None,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Florence2ForConditionalGeneration(config)
    save(folder, model, Florence2Processor(images, tokenizer))


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


KINDS = {"git": git, "blip-2": blip2, "florence2": florence2, "chat": chat}
