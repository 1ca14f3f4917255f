"""Trains the shipped decoder of the emoji world's autoencoder on, at its full width.

    python -m lab.base.refine_decoder --minutes 60

`train_decoder` leaves half of ComfyUI's channels empty, for the sake of speed. Here they are woken
up: what flows into them starts at random and what flows out of them at zero, so that the picture is
as before at first. Latents get more noise than there, as a sampler leaves them. Writes the weights
every few minutes and goes on from them.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..open_comfyui import open_comfyui
from ..world.vocabulary import individuals
from .autoencoder import CHANNELS, INSIDE
from .train_decoder import WIDTH, make_components, renders

NOISE = 0.15  # standard deviation of the latents' noise, at most
BATCH = 6


def wake(decoder: torch.nn.Module) -> None:
    """Give the channels that are still empty random inputs; a no-op on those in use."""
    for conv in (m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)):
        with torch.no_grad():
            empty = conv.weight.flatten(1).abs().amax(dim=1) == 0
            fresh = torch.empty_like(conv.weight)
            torch.nn.init.kaiming_normal_(fresh, nonlinearity="relu")
            if conv.out_channels > WIDTH:
                conv.weight[empty] = fresh[empty]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--file", type=Path, default=Path("demo/weights/vae.safetensors"))
    parser.add_argument("--out", type=Path, help="where to write; the file itself if not given")
    args = parser.parse_args()
    open_comfyui()
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(0)
    rng = random.Random(int(time.time()))
    population = list(individuals().values())
    components = make_components()
    out = args.out or args.file
    whole = TAESD(latent_channels=CHANNELS)
    stored = load_file(out if out.exists() else args.file)
    whole.load_state_dict({k: v.float() for k, v in stored.items()})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder = whole.taesd_decoder
    wake(decoder)
    decoder.to(device, memory_format=torch.channels_last).train()

    def save() -> None:
        state = {k: v.half().contiguous().cpu() for k, v in whole.state_dict().items()}
        save_file(state, out)

    optimiser = torch.optim.Adam(decoder.parameters(), lr=args.rate, betas=(0.9, 0.99))
    start = saved = time.time()
    step, running = 0, 0.0
    while (spent := (time.time() - start) / (60 * args.minutes)) < 1:
        pictures = renders(rng, population, BATCH)
        z = components.encode(pictures).to(device)
        x = pictures.to(device)
        rate = args.rate * min(1, (step + 1) / 100) * (1.02 - spent)
        optimiser.param_groups[0]["lr"] = rate
        noise = NOISE * torch.rand(len(z), 1, 1, 1, device=device) * torch.randn_like(z)
        with torch.autocast(device.type, torch.bfloat16):
            latents = ((z + noise) * INSIDE).contiguous(memory_format=torch.channels_last)
            y = decoder(latents).float()
        error = (y - x).abs().mean()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = error + 2 * F.mse_loss(y, x) + edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        running += error.item()
        if step % 50 == 49:
            print(f"{step + 1:6d} {time.time() - start:6.0f}s error {running / 50:.4f}", flush=True)
            running = 0.0
        if time.time() - saved > 180:
            save()
            saved = time.time()
        step += 1
    save()
    print(f"saved {out} after {step} steps")


if __name__ == "__main__":
    main()
