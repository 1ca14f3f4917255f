"""What `--devices` says: one worker each, and how ComfyUI is told to use that device."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .errors import FleetError

_ENTRY = re.compile(r"(cpu|cuda|mps)(?::(\d{1,3}))?")


@dataclass(frozen=True)
class Device:
    """Where one worker computes.

    Attributes:
        name: for people, such as "cuda:1".
        environment: variables of the worker's process.
        arguments: of ComfyUI's command line.
    """

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def devices_of(text: str) -> list[Device]:
    """The workers of "cuda:0,cuda:1", "cuda" (all cards), "cpu:2" (two workers on the CPU), "mps"
    or "auto" (all cards, else one worker on the CPU). Raises FleetError for anything else."""
    if text == "auto":
        count = _cards()
        text = ",".join(f"cuda:{n}" for n in range(count)) or "cpu"
    found: list[Device] = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = _ENTRY.fullmatch(part)
        if match is None:
            raise FleetError(
                f'"{part}" is no device: name cuda:0 (a card), cuda (all), cpu:2 (two workers on '
                "the CPU) or mps, several apart by commas"
            )
        kind, number = match[1], match[2]
        if kind == "cpu":
            found += _cpu(int(number or 1))
        elif kind == "cuda":
            found += [_card(n) for n in ([int(number)] if number else range(_cards()))]
        else:
            found.append(Device("mps"))
    names = [device.name for device in found if device.name != "cpu"]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not found:
        problem = f"{twice.pop()} is named twice" if twice else f'"{text}" names no device here'
        raise FleetError(f"{problem}: name each device once, such as cuda:0,cuda:1")
    return found


def _cpu(count: int) -> list[Device]:
    if not count:
        raise FleetError("cpu:0 is no worker: name cpu:1 or more")
    # Threads that wait for each other on busy cores take many times as long.
    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    return [Device("cpu", environment, ("--cpu",))] * count


def _card(number: int) -> Device:
    """A card by its number, as torch counts those that this process sees."""
    seen = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    if seen and number >= len(seen):
        raise FleetError(
            f"cuda:{number} is not there: CUDA_VISIBLE_DEVICES shows {len(seen)} cards, which are "
            "counted from 0"
        )
    return Device(f"cuda:{number}", {"CUDA_VISIBLE_DEVICES": seen[number] if seen else str(number)})


def _cards() -> int:
    import torch

    return torch.cuda.device_count()
