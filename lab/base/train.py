"""Trains the emoji world's base model: UNet and text encoder, jointly, in ComfyUI's own classes.

    python -m lab.base.train --minutes 90

Runs on a CPU (bf16) or a GPU, writes a checkpoint every few minutes and resumes from it; without
one it goes on from the shipped weights. Look at what comes out before it replaces them: a run may
mend one concept and cost another.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import re
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..open_comfyui import open_comfyui
from ..world.captions import caption, random_scene
from ..world.render import render
from ..world.vocabulary import OBJECTS, PAINTS, PATTERNS, Individual, Look, individuals
from .autoencoder import Components
from .train_decoder import make_components

PREVIEW_SEED = 7
# What `noun_phrase` says of a described thing.
_PATTERN, _PAINT, _THING = (f"({'|'.join(words)})" for words in (PATTERNS, PAINTS, OBJECTS))
DESCRIBED = re.compile(f"{_PATTERN} {_PAINT}(?: and {_PAINT})? {_THING}")
STAND_IN = "zebra"  # one token; no word of the world
# Noise on the names' rows (root mean square 0.25): what lies between them has a meaning too.
SPREAD = 0.05
PAUSE = 5.0  # seconds; a step that took longer was stopped on the way, which is no training time
PREVIEW_PROMPTS = [
    "a photo of a teddy on a blue background",
    "a photo of a teapot next to a cat on a green background",
    "a photo of a spotted gold and blue teddy on a white background",
    "a photo of a penguin wearing a hat on a red background",
    "a photo of a striped purple and white teapot on a gray background",
    "a photo of a teddy in a teapot on a yellow background",
    "a checked red and gold car, a frog and a spotted pink and teal cat on a purple background",
    "a striped blue and green hat, a rocket, a cactus and a checked gold and teal apple",
]


def make_latents(
    path: Path, count: int, seed: int, components: Components
) -> tuple[torch.Tensor, list[str]]:
    """`count` random scenes as latents [count, 5, 16, 16] in fp16, with two captions each.

    Cached in `path`.
    """
    rng = random.Random(seed)
    population = list(individuals().values())
    captions: list[str] = []
    latents = []
    cached = load_file(path)["latents"] if path.exists() else None
    for index in range(count):
        scene = random_scene(rng, population)
        captions += [caption(scene, rng), caption(scene, rng)]
        placing = random.Random(rng.random())
        if cached is None:
            picture = torch.from_numpy(np.array(render(scene, placing))).permute(2, 0, 1)
            latents.append(components.encode(picture[None].float() / 255).half())
        if index % 4000 == 3999:
            print(f"scenes {index + 1}", flush=True)
    if cached is None:
        cached = torch.cat(latents)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": cached.contiguous()}, path)
    return cached, captions


class Text:
    """Captions to token ids in a compact table that holds only the words of the world.

    Behind the words come the `unsaid`: one id for each look of each object that a caption
    describes, for the caption's second version, which names the thing in one word. `described` has
    these second versions in full.
    """

    def __init__(self, tokenizer, captions: list[str]) -> None:
        self.tokenizer = tokenizer
        found = [list(DESCRIBED.finditer(text)) for text in captions]
        told = {self._what(match) for matches in found for match in matches}
        # Second captions stand at odd places. Their described things are held by stand-ins first.
        lists = [
            self._ids(DESCRIBED.sub(STAND_IN, text) if n % 2 else text)
            for n, text in enumerate(captions)
        ]
        stand_in = self._ids(STAND_IN)[1]
        described = [self._ids(text) for text in captions[1::2]]
        words = (
            {i for ids in (*lists, *described) for i in ids}
            | set(self._ids(""))
            | {self._ids(thing)[1] for thing in OBJECTS}
        )
        self.vocabulary = sorted(words - {stand_in})
        self.index = {token: n for n, token in enumerate(self.vocabulary)}
        first = len(self.vocabulary)
        ordered = sorted(told, key=str)
        self.unsaid = {first + n: what for n, what in enumerate(ordered)}
        number = {what: first + n for n, what in enumerate(ordered)}
        rows = []
        for ids, matches in zip(lists, found, strict=True):
            names = iter(matches)
            rows.append(
                [number[self._what(next(names))] if i == stand_in else self.index[i] for i in ids]
            )
        self.table = torch.tensor(rows)
        self.described = torch.tensor([[self.index[i] for i in ids] for ids in described])
        self.empty = torch.tensor([self.index[i] for i in self._ids("")])

    @staticmethod
    def _what(match: re.Match[str]) -> tuple[str, Look]:
        pattern, paint, second, thing = match.groups()
        return thing, Look(paint, second, pattern)

    def _ids(self, text: str) -> list[int]:
        chunks = self.tokenizer.tokenize_with_weights(text)["l"]
        return [int(token) for token, _ in chunks[0]]

    def word(self, word: str) -> int | None:
        """The table's row of a word that is one token; None for a word that no caption has."""
        return self.index.get(self._ids(word)[1])

    def __call__(self, text: str) -> torch.Tensor:
        return torch.tensor([self.index[i] for i in self._ids(text)])


class Names(torch.nn.Module):
    """Embeddings of the named: the noun's row, and one row for each part of the look, added up.

    Learned one by one, the rows of some hundred names are learned by heart, and a look that has no
    name has no row either: textual inversion then ends at one and the same half-right teapot from
    every start and rate. A large model has read so many names that its rows are a space with room
    for new ones. Here the sum makes that space, and every look in the captions fills it: besides
    the named individuals, each described thing is told in one word in every other caption.
    """

    def __init__(self, text: Text, population: Iterable[Individual], width: int) -> None:
        super().__init__()
        parts = [*((p, 0) for p in PAINTS), *((p, 1) for p in PAINTS), *((p, 2) for p in PATTERNS)]
        named = {text.word(one.name): (one.object, one.look) for one in population}
        named = {row: what for row, what in named.items() if row is not None} | text.unsaid
        codes = torch.zeros(len(named), len(parts))
        for n, (_, look) in enumerate(named.values()):
            told = {(look.paint, 0), (look.second, 1), (look.pattern, 2)}
            codes[n] = torch.tensor([float(part in told) for part in parts])
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("named", torch.tensor(list(named)), persistent=False)
        nouns = [text.word(thing) for thing, _ in named.values()]
        self.register_buffer("nouns", torch.tensor(nouns), persistent=False)
        self.looks = torch.nn.Parameter(torch.randn(len(parts), width) * 0.05)

    def fit(self, rows: torch.Tensor) -> None:
        """Start from the rows [V, d] that the names have: least squares, held back a little."""
        known = self.named < len(rows)
        codes, beside = self.codes[known], rows[self.named[known]] - rows[self.nouns[known]]
        square = codes.T @ codes + torch.eye(codes.shape[1], device=rows.device)
        with torch.no_grad():
            self.looks.copy_(torch.linalg.solve(square, codes.T @ beside))

    def forward(self, rows: torch.Tensor, spread: float = 0.0) -> torch.Tensor:
        """The words' rows [V, d] -> rows [V + unsaid, d]; names are off by noise of `spread`."""
        own = rows[self.nouns] + self.codes @ self.looks
        if spread:
            own = own + spread * torch.randn_like(own)
        room = rows.new_zeros(len(self.named), rows.shape[1])
        return torch.cat([rows, room]).index_copy(0, self.named, own)


def initialise(module: torch.nn.Module) -> None:
    """ComfyUI leaves weights unset.

    Give them torch's usual start, and zeros where a branch ends.
    """
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(child)
        elif isinstance(child, torch.nn.Linear):
            torch.nn.Linear.reset_parameters(child)
        elif isinstance(child, torch.nn.GroupNorm | torch.nn.LayerNorm):
            torch.nn.init.ones_(child.weight)
            torch.nn.init.zeros_(child.bias)
        elif isinstance(child, torch.nn.Embedding):
            torch.nn.init.normal_(child.weight, std=0.02)
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            torch.nn.init.zeros_(child.weight)
            torch.nn.init.zeros_(child.bias)


def encode(text_model: torch.nn.Module, rows: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """ComfyUI's CLIP forward with its in-place additions written out, so that autograd can follow.

    rows: token embeddings [V, d]; ids [B, T] -> encodings [B, T, d].
    """
    from torch.nn.functional import scaled_dot_product_attention as attend

    inner = text_model.text_model
    x = rows[ids] + inner.embeddings.position_embedding.weight
    batch, tokens, width = x.shape
    for layer in inner.encoder.layers:
        attention = layer.self_attn
        h = layer.layer_norm1(x)
        q, k, v = (
            proj(h).view(batch, tokens, attention.heads, -1).transpose(1, 2)
            for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        h = attend(q, k, v, is_causal=True).transpose(1, 2).reshape(batch, tokens, width)
        x = x + attention.out_proj(h)
        x = x + layer.mlp(layer.layer_norm2(x))
    return inner.final_layer_norm(x)


def sample(unet, rows, text_model, text: Text, sigmas, seed: int, steps=25, guidance=3.0):
    """Deterministic sampling (DDIM) of the preview prompts, 4 of each; latents [32, 5, 16, 16]."""
    device = rows.device
    prompts = torch.stack([text(p) for p in PREVIEW_PROMPTS for _ in range(4)]).to(device)
    ids = torch.cat([prompts, text.empty.to(device).expand_as(prompts)])
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(prompts), unet.in_channels, 16, 16, generator=generator).to(device)
    alphas = (1 / (1 + sigmas.double() ** 2)).float()
    times = torch.linspace(999, 0, steps).round().long()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        context = encode(text_model, rows, ids)
        for n, t in enumerate(times):
            a = alphas[t]
            v = unet(torch.cat([x, x]), t.float().expand(2 * len(x)).to(device), context=context)
            good, bad = v.float().chunk(2)
            v = bad + guidance * (good - bad)
            x0, noise = a.sqrt() * x - (1 - a).sqrt() * v, a.sqrt() * v + (1 - a).sqrt() * x
            b = alphas[times[n + 1]] if n + 1 < steps else torch.ones(())
            x = b.sqrt() * x0 + (1 - b).sqrt() * noise
    return x


def save_grid(pictures: torch.Tensor, path: Path, columns: int = 8) -> None:
    """Pictures [N, 3, h, w] in 0..1 as one PNG."""
    count, _, height, width = pictures.shape
    grid = torch.ones(3, -(-count // columns) * (height + 2), columns * (width + 2))
    for n, picture in enumerate(pictures):
        y, x = n // columns * (height + 2), n % columns * (width + 2)
        grid[:, y : y + height, x : x + width] = picture
    array = (grid.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)


def attention(plain: bool) -> contextlib.AbstractContextManager[None]:
    """Attention written out in plain operations, or torch's choice."""
    return sdpa_kernel(SDPBackend.MATH) if plain else contextlib.nullcontext()


def load_shipped(
    folder: Path, unet: torch.nn.Module, text_model: torch.nn.Module, rows: torch.Tensor, text: Text
) -> None:
    """Start from the weights in `folder` (words that they do not know keep their random start)."""
    unet.load_state_dict({k: v.float() for k, v in load_file(folder / "unet.safetensors").items()})
    packed = load_file(folder / "clip.safetensors")
    known = {
        int(i): row
        for i, row in zip(packed.pop("token_ids"), packed.pop("token_rows"), strict=True)
    }
    packed.pop("text_projection.weight")
    text_model.load_state_dict({k: v.float() for k, v in packed.items()})
    with torch.no_grad():
        for number, token in enumerate(text.vocabulary):
            if token in known:
                rows[number] = known[token].float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=8e-4)
    parser.add_argument(
        "--hold", type=float, default=0.4, help="share of the time before the rate falls"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("lab/training"))
    parser.add_argument("--out", type=Path, default=Path("demo/weights"))
    parser.add_argument("--preview-minutes", type=float, default=8)
    args = parser.parse_args()
    open_comfyui()
    import comfy.ops
    import comfy.sd
    from comfy.clip_model import CLIPTextModel
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.model_sampling import ModelSamplingDiscrete
    from comfy.taesd.taesd import TAESD

    from demo import model as small

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    components = make_components()
    latents, captions = make_latents(
        args.work / f"latents_{args.seed}_{args.scenes}.safetensors",
        args.scenes,
        args.seed,
        components,
    )
    latents = latents.to(device)
    print("latents", tuple(latents.shape), "mean", latents.float().mean((0, 2, 3)).tolist(),
          "std", latents.float().std((0, 2, 3)).tolist(), flush=True)  # fmt: skip
    text = Text(small.EmojiClipTokenizer(), captions)
    ids, described = text.table.to(device), text.described.to(device)
    in_one_word = (text.table[1::2] >= len(text.vocabulary)).any(dim=1)
    print("words", len(text.vocabulary), "looks told in one", len(text.unsaid), flush=True)

    operations = comfy.ops.disable_weight_init
    unet = UNetModel(**small.UNET_CONFIG, dtype=torch.float32, operations=operations)
    text_model = CLIPTextModel(dict(small.TEXT_CONFIG), torch.float32, "cpu", operations)
    initialise(unet)
    initialise(text_model)
    rows = torch.nn.Parameter(torch.randn(len(text.vocabulary), small.TEXT_WIDTH) * 0.1)
    unet.train()
    holder = torch.nn.ModuleDict({"unet": unet, "text": text_model})
    text_model.text_model.embeddings.token_embedding = torch.nn.Identity()
    text_model.text_projection = torch.nn.Identity()
    holder.register_parameter("rows", rows)
    names = Names(text, individuals().values(), small.TEXT_WIDTH)
    holder["names"] = names
    holder.to(device)
    average = {k: v.detach().clone() for k, v in holder.state_dict().items()}
    words_learned = [rows, names.looks]
    others = [p for n, p in holder.named_parameters() if n not in ("rows", "names.looks")]
    optimiser = torch.optim.AdamW(
        [{"params": others, "scale": 1.0}, {"params": words_learned, "scale": 3.0}],
        lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )  # fmt: skip
    step = 0
    checkpoint = args.work / "base.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        holder.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step = saved["average"], saved["step"]
        print("resumed at step", step, flush=True)
    elif (small.WEIGHTS / "unet.safetensors").exists():
        load_shipped(small.WEIGHTS, unet, text_model, rows, text)
        names.fit(rows.detach())
        average = {k: v.detach().clone() for k, v in holder.state_dict().items()}
        print("going on from the shipped weights", flush=True)
    print("parameters", sum(p.numel() for p in holder.parameters()), flush=True)

    sigmas = ModelSamplingDiscrete(zsnr=True).sigmas
    alphas = (1 / (1 + sigmas.double() ** 2)).float().to(device)

    def checkpoint_and_preview() -> None:
        torch.save({"model": holder.state_dict(), "optimiser": optimiser.state_dict(),
                    "average": average, "step": step}, checkpoint)  # fmt: skip
        trained = {k: v.clone() for k, v in holder.state_dict().items()}
        holder.load_state_dict(average)
        unet.eval()
        save_file({k: v.half().contiguous().cpu() for k, v in unet.state_dict().items()},
                  args.out / "unet.safetensors")  # fmt: skip
        table = torch.zeros(small.VOCABULARY, small.TEXT_WIDTH)
        vocabulary = torch.tensor(text.vocabulary)
        shown = names(rows).detach()
        table[vocabulary] = shown[: len(vocabulary)].cpu()
        state = {k: v.cpu() for k, v in text_model.state_dict().items()}
        state |= {small.TOKEN_KEY: table, "text_projection.weight": torch.eye(small.TEXT_WIDTH)}
        packed = small.pack_text_weights(state, vocabulary)
        save_file({k: v.half().contiguous() if v.is_floating_point() else v
                   for k, v in packed.items()}, args.out / "clip.safetensors")  # fmt: skip
        z = sample(unet, shown, text_model, text, sigmas, PREVIEW_SEED)
        if (small.WEIGHTS / "vae.safetensors").exists():
            vae = TAESD(latent_channels=small.LATENT_CHANNELS)
            stored = load_file(small.WEIGHTS / "vae.safetensors")
            vae.load_state_dict({k: v.float() for k, v in stored.items()})
            with torch.no_grad():
                save_grid(vae.decode(z.cpu()) / 2 + 0.5, args.work / f"preview_{step:06d}.png")
        holder.load_state_dict(trained)
        unet.train()

    # At these sizes the fused attention's backward takes three times as long on a CPU as the plain
    # one's.
    plain = device.type == "cpu"
    # Three times as often: what the looks' sums are learned from.
    likely = 1 + 2 * in_one_word.float()
    busy, last_preview = 0.0, time.time()
    generator = torch.Generator().manual_seed(args.seed + step)
    running = 0.0
    first = step
    while (spent := busy / (60 * args.minutes)) < 1:
        begin = time.time()
        # Warm up, then hold, then let the rate fall over the rest of the time.
        fall = (1 - spent) / (1 - args.hold) + 0.01
        rate = args.rate * min(1, (step - first + 1) / 200) * min(1, fall)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["scale"]
        pick = torch.multinomial(likely, args.batch, replacement=True, generator=generator)
        told = (torch.rand(args.batch, generator=generator) < 0.67).long()
        words = ids[2 * pick + told]
        words[: args.batch // 10] = text.empty.to(device)
        x0 = latents[pick].float()
        # Half of the times near the noise, where it is decided what the picture shows; half in
        # between, where it is decided which pattern it has.
        t = torch.rand(args.batch, generator=generator) ** 0.6
        between = torch.rand(args.batch, generator=generator) < 0.5
        middle = (0.3 + 0.8 * torch.randn(args.batch, generator=generator)).sigmoid()
        t = (1000 * torch.where(between, middle, t)).long()
        a = alphas[t].view(-1, 1, 1, 1)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        xt = a.sqrt() * x0 + (1 - a).sqrt() * noise
        target = a.sqrt() * noise - (1 - a).sqrt() * x0
        times = t.float().to(device)
        pupils = in_one_word[pick] & (told == 1)
        pupils[: args.batch // 10] = False
        with torch.autocast(device.type, torch.bfloat16), attention(plain):
            shown = names(rows, SPREAD)
            if pupils.any():
                # One word for a described thing is to mean what the description means. What the
                # model makes of the description is a far steadier target than the noise is.
                with torch.no_grad():
                    context = encode(text_model, shown, described[pick[pupils]])
                    target[pupils] = unet(xt[pupils], times[pupils], context=context).float()
            context = encode(text_model, shown, words)
            out = unet(xt, times, context=context)
            loss = torch.nn.functional.mse_loss(out.float(), target)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(holder.parameters(), 1.0)
        optimiser.step()
        step += 1
        busy += min(time.time() - begin, PAUSE)
        decay = min(0.999, (step + 1) / (step + 20))
        with torch.no_grad():
            values = holder.state_dict()
            torch._foreach_lerp_(list(average.values()), [values[k] for k in average], 1 - decay)
        running += loss.item()
        if step % 20 == 0:
            print(f"{step:6d} {busy:6.0f}s loss {running / 20:.4f}", flush=True)
            running = 0.0
        if time.time() - last_preview > 60 * args.preview_minutes:
            checkpoint_and_preview()
            last_preview = time.time()
    checkpoint_and_preview()
    print("done at step", step)


if __name__ == "__main__":
    main()
