"""Trains the shipped decoder of the emoji world's autoencoder on, until its pictures are sharp.

    python -m lab.base.refine_decoder --minutes 60

Five numbers a patch do not say where exactly an edge runs, so a decoder that is trained on
differences of pixels alone draws the mean of all edges that it may be: a blur. Here a small critic
of patches (hinge loss), which sees drawings and decoded pictures, asks for one of them.

`train_decoder` leaves half of ComfyUI's channels empty, for the sake of speed. Here they are woken
up: what flows into them starts at random and what flows out of them at zero, so that the picture is
as before at first. Latents get noise, as a sampler leaves them. Writes the weights every few
minutes and goes on from them; the critic starts anew.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm

from ..open_comfyui import open_comfyui
from ..world.vocabulary import individuals
from .autoencoder import CHANNELS, INSIDE, PATCH, Components
from .train_decoder import WIDTH, make_components, renders

NOISE = 0.08  # standard deviation of the latents' noise, at most
BATCH = 12  # crops a step, two of a picture
CROP, RIM = 9, 1  # cells of a crop, and of its rim, which is context alone
CRITIC = 0.03  # how much the critic's word counts
ALONE = 0.1  # share of the time in which the critic learns and is not listened to


def wake(decoder: torch.nn.Module) -> None:
    """Give the channels that are still empty random inputs; a no-op on those in use."""
    for conv in (m for m in decoder.modules() if isinstance(m, torch.nn.Conv2d)):
        with torch.no_grad():
            empty = conv.weight.flatten(1).abs().amax(dim=1) == 0
            fresh = torch.empty_like(conv.weight)
            torch.nn.init.kaiming_normal_(fresh, nonlinearity="relu")
            if conv.out_channels > WIDTH:
                conv.weight[empty] = fresh[empty]


def critic() -> torch.nn.Sequential:
    """Pictures [N, 3, h, w] -> how much each of their patches looks drawn [N, 1, h/8, w/8]."""
    widths = (3, 32, 64, 96)
    layers: list[torch.nn.Module] = []
    for ins, outs in itertools.pairwise(widths):
        layers += [spectral_norm(torch.nn.Conv2d(ins, outs, 4, 2, 1)), torch.nn.LeakyReLU(0.2)]
    return torch.nn.Sequential(*layers, spectral_norm(torch.nn.Conv2d(widths[-1], 1, 3, 1, 1)))


def crops(
    rng: random.Random, components: Components, pictures: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Where something is: latents [count, 5, CROP, CROP], and the inner parts of the pictures.

    Args:
        pictures: [N, 3, 128, 128] in 0..1; as many crops of each as it takes.
    """
    latents = components.encode(pictures)
    # What is drawn differs from the background, whose patches are nearly all alike.
    busy = (latents - latents.flatten(2).median(dim=2).values[..., None, None]).square().sum(dim=1)
    side, inner = latents.shape[-1] - CROP, CROP - 2 * RIM
    z, x = [], []
    for n in range(count):
        of = n % len(pictures)
        weights = busy[of].flatten() + 1e-3
        cell = rng.choices(range(weights.numel()), weights.tolist())[0]
        places = divmod(cell, latents.shape[-1])
        row, column = (min(max(at - rng.randrange(2, CROP - 2), 0), side) for at in places)
        z.append(latents[of, :, row : row + CROP, column : column + CROP])
        top, left = PATCH * (row + RIM), PATCH * (column + RIM)
        x.append(pictures[of, :, top : top + PATCH * inner, left : left + PATCH * inner])
    return torch.stack(z), torch.stack(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate", type=float, default=4e-4)
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
    patches = critic().to(device, memory_format=torch.channels_last)

    def save() -> None:
        state = {k: v.half().contiguous().cpu() for k, v in whole.state_dict().items()}
        save_file(state, out)

    optimiser = torch.optim.Adam(decoder.parameters(), lr=args.rate, betas=(0.5, 0.99))
    learner = torch.optim.Adam(patches.parameters(), lr=4e-4, betas=(0.5, 0.99))
    begin = saved = time.time()
    step, running = 0, torch.zeros(3)
    rim = PATCH * RIM
    while (spent := (time.time() - begin) / (60 * args.minutes)) < 1:
        z, x = crops(rng, components, renders(rng, population, BATCH // 2), BATCH)
        z = z + NOISE * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
        z = (z * INSIDE).to(device).contiguous(memory_format=torch.channels_last)
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        optimiser.param_groups[0]["lr"] = args.rate * min(1, (step + 1) / 100) * (1.02 - spent)
        with torch.autocast(device.type, torch.bfloat16):
            y = decoder(z).float()[..., rim:-rim, rim:-rim]
            drawn, decoded = patches(x), patches(y.detach())
            told = F.relu(1 - drawn.float()).mean() + F.relu(1 + decoded.float()).mean()
        learner.zero_grad()
        told.backward()
        learner.step()
        with torch.autocast(device.type, torch.bfloat16):
            sharp = -patches(y).float().mean()
        error = (y - x).abs().mean()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = error + 2 * F.mse_loss(y, x) + edges + CRITIC * (spent > ALONE) * sharp
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        running += torch.tensor([error.item(), told.item(), sharp.item()])
        step += 1
        if step % 50 == 0:
            means = ", ".join(f"{value:.4f}" for value in (running / 50).tolist())
            print(
                f"{step:6d} {time.time() - begin:6.0f}s error, critic, asked: {means}", flush=True
            )
            running.zero_()
        if time.time() - saved > 180:
            save()
            saved = time.time()
    save()
    print(f"saved {out} after {step} steps")


if __name__ == "__main__":
    main()
