"""How `make demo` trains: read from its graph, so that the lab trains as the demo does."""

from __future__ import annotations

from tools.workflows import load_api

(_TRAINER,) = (
    node["inputs"]
    for node in load_api("train_concept").values()
    if node["class_type"] == "PerfusionTrainConcept"
)

STEPS: int = _TRAINER["steps"]
BATCH: int = _TRAINER["batch_size"]
SEED: int = _TRAINER["seed"]
RATES: dict[str, float] = {name: _TRAINER[name] for name in ("embedding_rate", "value_rate")}

# What each of a concept's pictures shows beside it, with "{}" for the concept.
CAPTIONS: tuple[str, ...] = tuple(_TRAINER["captions"].splitlines())
