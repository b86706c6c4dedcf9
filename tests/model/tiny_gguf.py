"""A small GGUF file like the one in the wheel: the same layers, tokens, kinds of numbers, and fields."""

from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

BYTES = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES, "Ġ", "Ċ", "Pa", "ri", "Pari", "Paris"]
MERGES = ["P a", "r i", "Pa ri", "Pari s"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_gguf(file: Path) -> LlamaForCausalLM:
    """Write the file and return what it holds, with the weights that its kinds of numbers leave."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        rope_theta=100_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(config)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in network.named_parameters():
        layer = name.removesuffix(".weight").rpartition(".")[2]
        kind = Kind.F32 if parameter.dim() == 1 else Kind.Q8_0 if layer == "embed_tokens" else Kind.Q4_1
        kept = gguf.quantize(parameter.detach().numpy(), kind)
        if kind is not Kind.F32:
            parameter.data = torch.from_numpy(gguf.dequantize(kept, kind).copy())
        if layer in heads:  # llama.cpp turns pairs of numbers where transformers turns halves
            rows, width = kept.shape
            kept = kept.reshape(heads[layer], 2, rows // heads[layer] // 2, width).swapaxes(1, 2)
            kept = kept.reshape(rows, width)
        writer.add_tensor(names.get_name(name, (".weight",)), kept, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return network
