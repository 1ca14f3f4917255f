"""Trains the emoji world's transformer: Cosmos-Predict2's class and a T5, jointly.

    python -m lab.base.train_dit --minutes 90

On the same latents as `train.py`, as a rectified flow. Where a latent is mostly noise, the target
is what the world's UNet makes of it: the same in the mean as the noise that was added, and far
steadier. Runs on a CPU (bf16) or a GPU, writes a checkpoint every few minutes and resumes from it.
Look at what comes out before it is shipped.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from ..open_comfyui import open_comfyui
from ..world.vocabulary import PAINTS, PATTERNS, individuals
from . import train
from .train import DESCRIBED, PAUSE, PREVIEW_PROMPTS, attention, make_latents, save_grid
from .train_decoder import make_components

PREVIEW_SEED = 7
EMPTY_SHARE = 10  # one caption in so many is empty, for guidance
# Noise on the rows of described things that are told in one word (root mean square 0.25).
SPREAD = 0.05
# Share of noise from which on the UNet is asked. Below it, the latent itself is the better target.
ASKED_FROM = 0.15


def in_words(captions: Sequence[str]) -> list[str]:
    """Captions with the named described: "a simon" is "a spotted gold and blue teddy".

    T5 cuts names into pieces, which would have to be learned by heart.
    """
    words = {one.name: f"{one.look.words()} {one.object}" for one in individuals().values()}
    named = re.compile(rf"\ban? ({'|'.join(map(re.escape, words))})\b")
    return [named.sub(lambda match: f"a {words[match[1]]}", text) for text in captions]


class Teacher:
    """The world's UNet with its CLIP, asked for the velocity of a rectified flow."""

    def __init__(self, folder: Path, captions: Sequence[str]) -> None:
        from comfy.model_sampling import ModelSamplingDiscrete

        from demo import model as small

        model, clip, _ = small.load(folder)
        self.unet = model.model.diffusion_model.eval()
        self.text_model = clip.cond_stage_model.clip_l.transformer
        self.rows = self.text_model.text_model.embeddings.token_embedding.weight.detach()
        tokenizer = small.EmojiClipTokenizer()
        self.ids = torch.tensor([self._ids(tokenizer, text) for text in captions])
        self.empty = torch.tensor(self._ids(tokenizer, ""))
        sigmas = ModelSamplingDiscrete(zsnr=True).sigmas.double()
        # The share of the latent in a noisy one of length 1: falls with the time step.
        self.latent_share = (1 / (1 + sigmas**2)).sqrt().float().flip(0).contiguous()

    @staticmethod
    def _ids(tokenizer, text: str) -> list[int]:
        chunk, *_ = tokenizer.tokenize_with_weights(text)["l"]
        return [int(token) for token, *_ in chunk]

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        """x: noisy latents [B, 5, 16, 16], (1 - t) of the latent and t of noise; t [B]; ids of
        captions [B, 32]. The velocity, noise less latent [B, 5, 16, 16]."""
        length = ((1 - t) ** 2 + t**2).sqrt()
        share = ((1 - t) / length).view(-1, 1, 1, 1)
        step = len(self.latent_share) - 1 - torch.searchsorted(self.latent_share, share.flatten())
        context = train.encode(self.text_model, self.rows, ids)
        x = x / length.view(-1, 1, 1, 1)
        v = self.unet(x, step.clamp(0, 999).float(), context=context).float()
        noise_share = (1 - share**2).sqrt()
        return (share * v + noise_share * x) - (share * x - noise_share * v)


class Text:
    """Captions to token ids in a compact table that holds only the pieces of the world's words.

    T5 cuts a word into pieces. A thing that a caption describes is told in one word in every second
    caption: as the pieces of its noun, each moved by what the look adds (`Words`). These have ids
    of their own behind the pieces.
    """

    def __init__(self, tokenizer, captions: Sequence[str], tokens: int) -> None:
        self.tokenizer = tokenizer
        self.tokens = tokens
        pieces = {text: self._ids(text) for text in captions}
        known = {i for ids in pieces.values() for i in ids} | {0, 1}
        self.vocabulary = sorted(known)
        self.index = {piece: n for n, piece in enumerate(self.vocabulary)}
        self.moved: list[tuple[int, str, str | None, str]] = []  # piece, paint, second, pattern
        self._moved: dict[tuple[int, str, str | None, str], int] = {}
        self.plain = torch.stack([self(text) for text in captions])
        self.told = torch.stack([self._in_one_word(text) for text in captions])
        self.differ = (self.plain != self.told).any(dim=1)

    def _ids(self, text: str) -> list[int]:
        (chunk,) = self.tokenizer.tokenize_with_weights(text)["t5xxl"]
        ids = [int(token) for token, *_ in chunk]
        return ids[: ids.index(1)]  # up to the end token

    def _behind_a_word(self, text: str) -> list[int]:
        """As its ids are within a text: a comma that begins one would come with a space."""
        word = self._ids("a")
        return self._ids("a" + text)[len(word) :] if text[:1] == "," else self._ids(text)

    def _padded(self, rows: list[int]) -> Tensor:
        ends = [*rows, self.index[1]]
        assert len(ends) <= self.tokens, f"a caption of {len(ends)} pieces"
        return torch.tensor(ends + [self.index[0]] * (self.tokens - len(ends)))

    def __call__(self, text: str) -> Tensor:
        """Rows of the table [tokens], the end and the pads included."""
        return self._padded([self.index[i] for i in self._ids(text)])

    def _in_one_word(self, text: str) -> Tensor:
        rows: list[int] = []
        at = 0
        for match in DESCRIBED.finditer(text):
            pattern, paint, second, thing = match.groups()
            rows += [self.index[i] for i in self._behind_a_word(text[at : match.start()])]
            for piece in self._ids(thing):
                what = (self.index[piece], paint, second, pattern)
                if what not in self._moved:
                    self._moved[what] = len(self.vocabulary) + len(self.moved)
                    self.moved.append(what)
                rows.append(self._moved[what])
            at = match.end()
        rows += [self.index[i] for i in self._behind_a_word(text[at:])]
        return self._padded(rows)


class Words(torch.nn.Module):
    """The table's rows: learned pieces, and those of described things told in one word."""

    def __init__(self, text: Text, width: int) -> None:
        super().__init__()
        parts = [*((p, 0) for p in PAINTS), *((p, 1) for p in PAINTS), *((p, 2) for p in PATTERNS)]
        codes = [
            [float(part in {(paint, 0), (second, 1), (pattern, 2)}) for part in parts]
            for _, paint, second, pattern in text.moved
        ]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)
        pieces = torch.tensor([piece for piece, *_ in text.moved])
        self.register_buffer("pieces", pieces, persistent=False)
        self.rows = torch.nn.Parameter(torch.randn(len(text.vocabulary), width) * 0.25)
        self.looks = torch.nn.Parameter(torch.randn(len(parts), width) * 0.1)

    def forward(self, spread: float = 0.0) -> Tensor:
        """[V + moved, width]."""
        moved = self.rows[self.pieces] + self.codes @ self.looks
        if spread:
            moved = moved + spread * torch.randn_like(moved)
        return torch.cat([self.rows, moved])


def encode(t5: torch.nn.Module, rows: Tensor, ids: Tensor, pad: int) -> Tensor:
    """ComfyUI's T5 with its in-place additions written out, so that autograd can follow.

    rows: [V, d]; ids [B, T] -> encodings [B, T, d], zero where `pad` stands.
    """
    stack = t5.encoder
    x = rows[ids]
    real = ids != pad
    batch, tokens, _ = x.shape
    first = stack.block[0].layer[0].SelfAttention
    bias = first.compute_bias(tokens, tokens, x.device, x.dtype)
    mask = bias + torch.where(real, 0.0, -1e4)[:, None, None].to(bias)
    for block in stack.block:
        sublayer, feed = block.layer
        part = sublayer.SelfAttention
        h = sublayer.layer_norm(x)
        q, k, v = (
            proj(h).view(batch, tokens, part.num_heads, -1).transpose(1, 2)
            for proj in (part.q, part.k, part.v)
        )
        out = attend(q, k, v, attn_mask=mask.to(q), scale=1.0)
        x = x + part.o(out.transpose(1, 2).reshape(batch, tokens, -1))
        x = x + feed.DenseReluDense(feed.layer_norm(x))
    return stack.final_layer_norm(x) * real[..., None]


def initialise(dit: torch.nn.Module, t5: torch.nn.Module) -> None:
    """ComfyUI leaves weights unset. The transformer's branches start closed: their gates are 0."""
    for module in (dit, t5):
        for name, parameter in module.named_parameters():
            if parameter.dim() < 2:
                torch.nn.init.ones_(parameter)  # norms; nothing here has a bias
            else:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            if "adaln" in name and name.endswith(".2.weight"):
                torch.nn.init.zeros_(parameter)
    torch.nn.init.zeros_(dit.final_layer.linear.weight)
    attention_bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    torch.nn.init.normal_(attention_bias.weight, std=0.1)
    for block in t5.encoder.block:
        # T5 scales no attention, so its queries start small.
        block.layer[0].SelfAttention.q.weight.data *= 32**-0.5


@torch.no_grad()
def sample(dit, t5, rows: Tensor, text: Text, seed: int, steps: int = 25, guidance: float = 3.0):
    """Euler's steps of the preview prompts, 4 of each; latents [32, 5, 16, 16]."""
    device = rows.device
    prompts = torch.stack([text(p) for p in PREVIEW_PROMPTS for _ in range(4)]).to(device)
    ids = torch.cat([prompts, text("").to(device).expand_as(prompts)])
    x = torch.randn(len(prompts), 5, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    x = x.to(device)
    times = torch.linspace(1, 0, steps + 1)
    with torch.autocast(device.type, torch.bfloat16):
        context = encode(t5, rows, ids, text.index[0])
        for now, then in itertools.pairwise(times):
            v = dit(torch.cat([x, x]), now.expand(2 * len(x)).to(device), context)
            good, bad = v.float().chunk(2)
            x = x + (then - now) * (bad + guidance * (good - bad))
    return x[:, :, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90)
    parser.add_argument("--scenes", type=int, default=40000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--hold", type=float, default=0.6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("lab/training"))
    parser.add_argument("--out", type=Path, default=Path("lab/training/dit"))
    parser.add_argument("--preview-minutes", type=float, default=10)
    parser.add_argument("--teacher", type=Path, default=Path("demo/weights"))
    args = parser.parse_args()
    open_comfyui()
    import comfy.ops
    from comfy.ldm.cosmos.predict2 import MiniTrainDIT
    from comfy.taesd.taesd import TAESD
    from comfy.text_encoders.t5 import T5

    from demo.model import WEIGHTS

    from . import transformer as world

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    file = args.work / f"latents_{args.seed}_{args.scenes}.safetensors"
    latents, captions = make_latents(file, args.scenes, args.seed, make_components())
    latents = latents.to(device)
    teacher = Teacher(args.teacher, captions)
    captions = in_words(captions)
    text = Text(world.EmojiT5ClipTokenizer(), captions, world.TEXT_TOKENS)
    print("pieces", len(text.vocabulary), "moved", len(text.moved), flush=True)
    operations = comfy.ops.disable_weight_init
    config = {k: v for k, v in world.DIT_CONFIG.items() if k != "image_model"}
    dit = MiniTrainDIT(**config, dtype=torch.float32, operations=operations)
    t5 = T5({**world.TEXT_CONFIG, "vocab_size": 1}, torch.float32, "cpu", operations)
    initialise(dit, t5)
    t5.shared = torch.nn.Identity()
    words = Words(text, world.TEXT_WIDTH)
    holder = torch.nn.ModuleDict({"dit": dit, "t5": t5, "words": words}).to(device).train()
    average = {k: v.detach().clone() for k, v in holder.state_dict().items()}
    matrices = [p for p in holder.parameters() if p.dim() > 1]
    vectors = [p for p in holder.parameters() if p.dim() < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=args.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True,
    )  # fmt: skip
    step, checkpoint = 0, args.work / "dit.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        holder.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        average, step = saved["average"], saved["step"]
        print("resumed at step", step, flush=True)
    print("parameters", sum(p.numel() for p in holder.parameters()), flush=True)

    def save() -> None:
        torch.save({"model": holder.state_dict(), "optimiser": optimiser.state_dict(),
                    "average": average, "step": step}, checkpoint)  # fmt: skip
        trained = {k: v.clone() for k, v in holder.state_dict().items()}
        holder.load_state_dict(average)
        args.out.mkdir(parents=True, exist_ok=True)
        state = {k: v.half().contiguous().cpu() for k, v in dit.state_dict().items()}
        save_file(state, args.out / "dit.safetensors")
        rows = words().detach()
        packed = {k: v.half().contiguous().cpu() for k, v in t5.state_dict().items()}
        packed["token_rows"] = rows[: len(text.vocabulary)].half().cpu().contiguous()
        packed["token_ids"] = torch.tensor(text.vocabulary, dtype=torch.int32)
        save_file(packed, args.out / "t5.safetensors")
        z = sample(dit, t5, rows, text, PREVIEW_SEED)
        vae = TAESD(latent_channels=world.LATENT_CHANNELS)
        vae.load_state_dict(
            {k: v.float() for k, v in load_file(WEIGHTS / "vae.safetensors").items()}
        )
        with torch.no_grad():
            save_grid(vae.decode(z.cpu()) / 2 + 0.5, args.work / f"dit_{step:06d}.png")
        holder.load_state_dict(trained)

    plain, told = text.plain.to(device), text.told.to(device)
    generator = torch.Generator().manual_seed(args.seed + step)
    busy, last, running, first = 0.0, time.time(), 0.0, step
    while (spent := busy / (60 * args.minutes)) < 1:
        begin = time.time()
        fall = (1 - spent) / (1 - args.hold) + 0.01
        for group in optimiser.param_groups:
            group["lr"] = args.rate * min(1, (step - first + 1) / 300) * min(1, fall)
        pick = torch.randint(len(latents), (args.batch,), generator=generator)
        second = 2 * pick + (torch.rand(args.batch, generator=generator) < 0.5).long()
        in_one = torch.rand(args.batch, generator=generator) < 0.4
        ids = torch.where(in_one[:, None].to(device), told[second], plain[second])
        ids[: args.batch // EMPTY_SHARE] = text("").to(device)
        asked = teacher.ids[second]
        asked[: args.batch // EMPTY_SHARE] = teacher.empty
        used = int((ids != text.index[0]).sum(dim=1).max())
        x0 = latents[pick].float()[:, :, None]
        # Logit-normal: most of what a picture shows is decided in the middle of the flow.
        t = (0.4 + torch.randn(args.batch, generator=generator)).sigmoid().to(device)
        noise = torch.randn(x0.shape, generator=generator).to(device)
        at = t.view(-1, 1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16), attention(device.type == "cpu"):
            context = encode(t5, words(SPREAD), ids[:, :used], text.index[0])
            # The layers see zeros where pads are, as ComfyUI gives them.
            context = torch.nn.functional.pad(context, (0, 0, 0, ids.shape[1] - used))
            noisy, target = (1 - at) * x0 + at * noise, noise - x0
            noisy_enough = t > ASKED_FROM
            target[noisy_enough] = teacher(
                noisy[noisy_enough][:, :, 0], t[noisy_enough], asked[noisy_enough]
            )[:, :, None]
            out = dit(noisy, t, context)
            loss = (out.float() - target).square().mean()
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
        if time.time() - last > 60 * args.preview_minutes:
            save()
            last = time.time()
    save()
    print("done at step", step)


if __name__ == "__main__":
    random.seed(0)
    main()
