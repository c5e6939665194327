"""The loss step of TRL's GRPO trainer, run by the Python of a bench environment of its own (`trl_environment`).

A script that imports nothing of this package. It is given a job file, loads model and adapter, and then answers lines:
`step N` makes the loss step of workload N and says its seconds and loss, `gradient N FILE` also writes the gradient.
"""

import json
import os
import sys
import tempfile
import time
from typing import Any


def main() -> None:
    """Serve lines from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    with open(sys.argv[1]) as file:
        job = json.load(file)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(job, folder)
        inputs = [_inputs(work, job["pad"], job["device"]) for work in job["workloads"]]
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for line in sys.stdin:
            what, number, *file_name = line.rstrip("\n").split(" ", 2)
            taken = _step(trainer, inputs[int(number)], job["device"])
            if what == "gradient":
                _save_gradient(trainer.model, file_name[0])
            print(json.dumps(taken), file=answers, flush=True)


def _trainer(job: dict[str, Any], folder: str) -> Any:
    """TRL's trainer on the base model and the adapter. Gradient checkpointing, which costs time, is switched off."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job["precision"] or "float32")
    base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype, attn_implementation="sdpa")
    members = len(job["workloads"][0]["prompts"])
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=members,
        num_generations=members,
        gradient_accumulation_steps=1,
        loss_type="cispo",
        epsilon_high=job["clip"],
        beta=0.0,
        temperature=1.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=job["device"] == "cpu",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=PeftModel.from_pretrained(base, job["adapter"], is_trainable=True),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["-"] * members}),
        processing_class=AutoTokenizer.from_pretrained(job["base"]),
    )
    trainer.current_gradient_accumulation_steps = 1  # `Trainer.train` sets it
    trainer.model.to(job["device"]).train()
    return trainer


def _inputs(work: dict[str, Any], pad: int, device: str) -> dict[str, Any]:
    """A group as TRL prepares it: prompts padded on the left, completions on the right."""
    import torch

    prompts, answers = work["prompts"], work["answers"]
    before, after = max(map(len, prompts)), max(map(len, answers))
    prompt_ids = [[pad] * (before - len(p)) + p for p in prompts]
    prompt_mask = [[0] * (before - len(p)) + [1] * len(p) for p in prompts]
    completion_ids = [a + [pad] * (after - len(a)) for a in answers]
    completion_mask = [[1] * len(a) + [0] * (after - len(a)) for a in answers]
    logprobs = [lp + [0.0] * (after - len(lp)) for lp in work["logprobs"]]
    return {
        "prompt_ids": torch.tensor(prompt_ids, device=device),
        "prompt_mask": torch.tensor(prompt_mask, device=device),
        "completion_ids": torch.tensor(completion_ids, device=device),
        "completion_mask": torch.tensor(completion_mask, device=device),
        "advantages": torch.tensor(work["advantages"], device=device),
        "old_per_token_logps": torch.tensor(logprobs, device=device),
        "num_items_in_batch": torch.tensor(float(sum(map(len, answers))), device=device),
    }


def _step(trainer: Any, inputs: dict[str, Any], device: str) -> dict[str, float]:
    """Forward and backward; no optimizer."""
    import torch

    trainer.model.zero_grad(set_to_none=True)
    begun, spent = time.perf_counter(), time.process_time()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    if device != "cpu":
        torch.cuda.synchronize()
    taken = {"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - spent}
    return {**taken, "loss": float(loss.detach())}


def _save_gradient(model: Any, file: str) -> None:
    from safetensors.torch import save_file

    found = {name: p.grad.float().cpu().contiguous() for name, p in model.named_parameters() if p.grad is not None}
    save_file(found, file)


if __name__ == "__main__":
    main()
