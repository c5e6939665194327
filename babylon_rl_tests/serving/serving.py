"""An endpoint in a thread of the tests' process, adapters that change what the tiny model says, and references."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
import uvicorn
from starlette.applications import Starlette

from babylon_rl.serving.requests import Sample, SampleRequest
from babylon_rl.serving.sampler import sample
from babylon_rl.training.policy import Policy
from babylon_rl.training.recipe import Recipe


@contextlib.contextmanager
def served(application: Starlette) -> Iterator[str]:
    """The application on a free loopback port; its base URL, which ends in /v1."""
    server = uvicorn.Server(uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=5))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        try:
            with httpx.Client(transport=httpx.HTTPTransport(retries=20)) as client:
                client.get(base_url.removesuffix("/v1") + "/health")
            yield base_url
        finally:
            server.should_exit = True
            thread.join()


def make_adapter(tiny: Path, folder: Path, seed: int) -> Path:
    """An adapter that says other things than the base model and than one of another seed."""
    policy = Policy(tiny)
    policy.add_fresh_adapter(Recipe(lora_layers=1), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    policy.model.save_pretrained(folder)
    return folder


def request(text: str, seed: int, **changes: Any) -> SampleRequest:
    """A request for free text at temperature 1."""
    given: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        **{"adapter": None, "choices": None, "temperature": 1.0, "top_p": 1.0, "exploration": 0.0},
        **{"max_tokens": 8, "seed": seed},
    }
    return SampleRequest(**{**given, **changes})


def alone(policy: Policy, one: SampleRequest) -> Sample:
    """The answer to the request with nothing else in its batch."""
    return sample(policy, [one])[0]
