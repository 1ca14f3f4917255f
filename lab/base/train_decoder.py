"""Trains the decoder of the emoji world's autoencoder (see autoencoder.py).

    python -m lab.base.train_decoder --minutes 15

Trained at half ComfyUI's width (a quarter of the arithmetic), with a batch normalisation after
each convolution that is folded into it when saved, and with the missing channels filled with zeros:
the function stays the same. Resumes from its checkpoint.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from ..open_comfyui import open_comfyui
from ..world.captions import random_scene
from ..world.render import render
from ..world.vocabulary import Individual, individuals
from .autoencoder import CHANNELS, INSIDE, Components, principal_components, write_encoder

WIDTH = 32
COMPONENTS = Path(__file__).with_name("components.safetensors")


class Convolution(torch.nn.Sequential):
    """A convolution and its batch normalisation, trained as two and saved as one."""

    def folded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of the one convolution that does what both do in evaluation."""
        conv, norm = self
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = conv.weight * scale[:, None, None, None]
        return weight.detach(), (norm.bias - norm.running_mean * scale).detach()


def narrow(module: torch.nn.Module, width: int = WIDTH) -> None:
    """Give ComfyUI's module `width` channels instead of 64, and normalisation, in place."""
    for name, child in module.named_children():
        if not isinstance(child, torch.nn.Conv2d):
            narrow(child, width)
            continue
        ins, outs = (width if c == 64 else c for c in (child.in_channels, child.out_channels))
        # No normalisation at the outer end, nor where ComfyUI's convolution has no bias to fold it
        # into.
        plain = outs != width or child.bias is None
        conv = torch.nn.Conv2d(ins, outs, 3, 1, 1, bias=outs != width)
        torch.nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if plain:
            setattr(module, name, conv)
            continue
        norm = torch.nn.BatchNorm2d(outs)
        if name == "4":  # the last convolution of a residual block starts as a small correction
            torch.nn.init.constant_(norm.weight, 0.2)
        setattr(module, name, Convolution(conv, norm))


def widened(trained: torch.nn.Module, wide: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The same function in ComfyUI's width.

    Missing channels are zeros, and stay zeros through ReLU.
    """
    small = dict(trained.state_dict())
    for name, module in trained.named_modules():
        if isinstance(module, Convolution):
            small[f"{name}.weight"], small[f"{name}.bias"] = module.folded()
    out = {}
    for key, like in wide.state_dict().items():
        value = torch.zeros(like.shape)
        source = small[key].float()
        value[tuple(slice(0, n) for n in source.shape)] = source
        out[key] = value
    return out


def renders(rng: random.Random, population: list[Individual], count: int) -> torch.Tensor:
    """Fresh pictures [count, 3, 128, 128] in 0..1."""
    pictures = [np.asarray(render(random_scene(rng, population), rng)) for _ in range(count)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def load_components(path: Path = COMPONENTS) -> Components:
    stored = load_file(path)
    return Components(stored["mean"], stored["basis"], stored["scale"])


def make_components(path: Path = COMPONENTS, seed: int = 0) -> Components:
    """The world's principal components, computed once and kept in `path`.

    They are shipped: another machine's linear algebra may give a component the other sign, and
    the trained weights would not fit it.
    """
    if path.exists():
        return load_components(path)
    pictures = renders(random.Random(seed), list(individuals().values()), 1500)
    components = principal_components(pictures)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in vars(components).items()}, path)
    return components


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--work", type=Path, default=Path("lab/training"))
    parser.add_argument("--out", type=Path, default=Path("demo/weights/vae.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    open_comfyui()
    from comfy.taesd.taesd import TAESD

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed + int(time.time()))
    population = list(individuals().values())
    components = make_components()
    whole = TAESD(latent_channels=CHANNELS)
    write_encoder(whole, components)
    decoder = TAESD(latent_channels=CHANNELS).taesd_decoder
    narrow(decoder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoder.to(device, memory_format=torch.channels_last).train()
    checkpoint = args.work / "decoder.pt"
    if checkpoint.exists():
        decoder.load_state_dict(torch.load(checkpoint, weights_only=True))
        print("resumed", checkpoint)
    args.out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        torch.save(decoder.state_dict(), checkpoint)
        state = widened(decoder.eval().cpu(), whole.taesd_decoder)
        whole.taesd_decoder.load_state_dict(state)
        save_file({k: v.half().contiguous() for k, v in whole.state_dict().items()}, args.out)
        decoder.to(device).train()

    optimiser = torch.optim.Adam(decoder.parameters(), lr=2e-3, betas=(0.9, 0.99))
    start = saved = time.time()
    step = 0
    while (spent := (time.time() - start) / (60 * args.minutes)) < 1:
        pictures = renders(rng, population, 8)
        latents = components.encode(pictures)
        # A crop of 10 x 10 latents; a cell on each side is context only, but for the picture's own
        # edges.
        row, column = (rng.choice((0, 0, 1, 2, 3, 4, 5, 6, 6)) for _ in range(2))
        z = latents[:, :, row : row + 10, column : column + 10].to(device)
        x = pictures[:, :, 8 * row : 8 * row + 80, 8 * column : 8 * column + 80].to(device)
        optimiser.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1.02 - spent)
        noise = 0.06 * torch.rand(len(z), 1, 1, 1, device=device) * torch.randn_like(z)
        with torch.autocast(device.type, torch.bfloat16):
            y = decoder(
                ((z + noise) * INSIDE).contiguous(memory_format=torch.channels_last)
            ).float()
        inner = [slice(8 * (at > 0), 80 - 8 * (at < 6)) for at in (row, column)]
        y, x = y[..., inner[0], inner[1]], x[..., inner[0], inner[1]]
        error = (y - x).abs().mean()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        loss = error + 2 * F.mse_loss(y, x) + edges
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            print(
                f"{step:6d} {time.time() - start:6.0f}s loss {loss:.4f} error {error:.4f}",
                flush=True,
            )
        if time.time() - saved > 90:
            save()
            saved = time.time()
        step += 1
    save()
    print(f"saved {args.out} after {step} steps")


if __name__ == "__main__":
    main()
