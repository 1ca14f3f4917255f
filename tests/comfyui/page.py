"""What tests on the live server share: graphs that train and use a concept, and raw requests."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tools.client import ComfyClient, Result

Graph = dict[str, dict[str, Any]]
PROMPT = "a photo of a teddy* on a green background"
PICTURES = Path(__file__).resolve().parents[2] / "demo" / "concepts" / "berry"
SLIDERS = {"bias": 0.6, "temperature": 0.15, "strength": 1.0}
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def uploaded(client: ComfyClient) -> list[str]:
    """Names of two pictures of a concept in ComfyUI's input folder."""
    return [client.upload_image(picture) for picture in sorted(PICTURES.glob("*.png"))[:2]]


def training(pictures: Sequence[str], name: str, **changes: Any) -> Graph:
    """Trains a concept teddy* on two pictures for two steps and saves it."""
    settings = {
        "placeholder": "teddy*",
        "superclass": "teddy",
        "steps": 2,
        "batch_size": 2,
        "seed": 1,
        **changes,
    }
    return {
        "demo": node("PerfusionDemoModel"),
        "a": node("LoadImage", image=pictures[0]),
        "b": node("LoadImage", image=pictures[1]),
        "images": node("ImageBatch", image1=["a", 0], image2=["b", 0]),
        "train": node(
            "PerfusionTrainConcept",
            model=["demo", 0],
            clip=["demo", 1],
            vae=["demo", 2],
            images=["images", 0],
            **settings,
        ),
        "save": node("PerfusionSaveConcept", concept=["train", 0], name=name, overwrite=True),
    }


def train(client: ComfyClient, name: str, **changes: Any) -> str:
    """Trains a concept teddy*, with values that show; returns its file's name."""
    client.run(training(uploaded(client), name, **{"value_rate": 1.0, **changes}))
    return f"{name}.safetensors"


def loader(file: str, above: str, **changes: Any) -> dict[str, Any]:
    """A concept on the model and the CLIP of the node `above`."""
    return node(
        "PerfusionConceptLoader", file=file, model=[above, 0], clip=[above, 1], **SLIDERS | changes
    )


def sampling(
    model: list[Any], clip: list[Any], prompt: str = PROMPT, name: str = "out", steps: int = 2
) -> Graph:
    """A small picture from a node's model and a node's CLIP, with the autoencoder of "demo"."""
    return {
        "text": node("CLIPTextEncode", clip=clip, text=prompt),
        "none": node("CLIPTextEncode", clip=clip, text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sampler": node(
            "KSampler",
            model=model,
            positive=["text", 0],
            negative=["none", 0],
            latent_image=["empty", 0],
            seed=3,
            steps=steps,
            cfg=3.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        ),
        "decode": node("VAEDecode", samples=["sampler", 0], vae=["demo", 2]),
        "image": node("SaveImage", images=["decode", 0], filename_prefix=name),
    }


def tuned(file: str, steps: int = 2, prompt: str = PROMPT, **tuning: Any) -> Graph:
    """A picture of one concept, its sliders set by a node "tune" just before the sampler."""
    return {
        "demo": node("PerfusionDemoModel"),
        "loader": loader(file, "demo"),
        "tune": node("PerfusionTune", model=["loader", 0], **SLIDERS | tuning),
    } | sampling(["tune", 0], ["loader", 1], prompt, "page", steps)


def saved_picture(client: ComfyClient, result: Result) -> tuple[bytes, Graph]:
    """The pixels of a run's picture, and the graph that is saved with it."""
    (image,) = result.images("image")
    picture = Image.open(io.BytesIO(client.view(image)))
    return picture.tobytes(), json.loads(picture.info["prompt"])


def ask(
    client: ComfyClient,
    path: str,
    query: Mapping[str, str] | None = None,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """A request as a page sends it: the status, and the answer (JSON, or bytes of a picture)."""
    url = f"{client.url}{path}" + (f"?{urlencode(query)}" if query else "")
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    kind = {"Content-Type": "application/json"} if data is not None else {}
    request = urllib.request.Request(url, data, {**kind, **(headers or {})})
    try:
        with _OPENER.open(request, timeout=60) as answer:
            status, found, text = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, found, text = error.code, error.headers, error.read()
    is_json = found.get_content_type() == "application/json"
    return status, json.loads(text) if is_json else text
