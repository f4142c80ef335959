"""Random 2-layer models with a real tokenizer trained on the spot: seconds, no download.

The Phi-3 has the fused `qkv_proj` and `gate_up_proj` of the real one and three end tokens; the
Llama ties its embeddings, as SmolLM2 does.
"""

from pathlib import Path

TEXTS = [
    "She hid behind the door when the footsteps came closer.",
    "Nobody had told him about the party, and he laughed until he cried.",
    "The old dog never came home again; they still set out his bowl.",
    "What a lovely morning, the whole street smells of fresh bread!",
    "sadness joy fear surprise joyful fearful negative neutral positive",
    "### Text: ### The tone is: Classify the text. Question Answer system user assistant",
    "0123456789 numbers, punctuation: ?!.,;() and {braces} — emoji 🙂 and ümläute",
]

PHI3_CHAT = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(specials: list[str], vocabulary: int = 1000):
    """Train a byte-level BPE tokenizer of the library tokenizers; `specials` get the first ids, in order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(TEXTS * 4, trainer)
    missing = vocabulary - backend.get_vocab_size()
    backend.add_tokens([f"filler{index}" for index in range(missing)])
    return backend


def tiny_tokenizer(specials: list[str], roles: dict[str, str], chat_template: str, vocabulary: int = 1000):
    """The same as transformers has it, with roles and a chat template."""
    from transformers import PreTrainedTokenizerFast

    backend = train_tokenizer(specials, vocabulary)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **roles)
    tokenizer.chat_template = chat_template
    tokenizer.model_max_length = 512
    return tokenizer


def make_tiny_phi3(folder: Path) -> Path:
    """Untied, fused projections, end tokens 2 and 3 (`<|endoftext|>`, `<|end|>`)."""
    import torch
    from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

    tokenizer = tiny_tokenizer(
        ["<unk>", "<s>", "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        PHI3_CHAT,
    )
    torch.manual_seed(0)
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=1000,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            original_max_position_embeddings=512,
            sliding_window=511,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=[2, 3], pad_token_id=2, bos_token_id=1, do_sample=False)
    return _save(model, tokenizer, folder)


def make_tiny_llama(folder: Path, vocabulary: int = 1000) -> Path:
    """Tied embeddings, pad = eos = `<|im_end|>` (id 2), as in SmolLM2."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {
            "unk_token": "<|endoftext|>",
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
        },
        CHATML,
        vocabulary,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=2, bos_token_id=1)
    return _save(model, tokenizer, folder)


def _save(model, tokenizer, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
