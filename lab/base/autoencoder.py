"""The emoji world's picture autoencoder, in ComfyUI's TAESD class.

The encoder is linear: the first principal components of 8 x 8 pixel patches (in effect each patch's
colour and the slope of its brightness), written exactly into TAESD's layers, which pass
non-negative values through ReLU unchanged. Nothing has to be learned for it. The decoder is learned
(`train_decoder`): it knows the world's sprites and sharpens what the components leave soft.

What was tried (two cores): an encoder learned together with its decoder lost the colours of
patterns after ten minutes, with 4 latent channels and with 8. Twelve components give a mean
absolute error of 0.024 even without a decoder, but a small UNet spends itself on them: after 1,600
steps the layout was right and the objects were noise. After the fifth component the spectrum drops
by three; with five, a UNet of this size learns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PATCH = 8
CHANNELS = 5
# TAESD's decoder first squashes its input to -3..3; smaller values inside keep colours apart there.
INSIDE = 0.6


@dataclass(frozen=True)
class Components:
    """Mean [192] and basis [192, 5] of patches (colour, row, column), scale [5] of the latents."""

    mean: torch.Tensor
    basis: torch.Tensor
    scale: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, H, W] in 0..1 -> latents [N, 5, H/8, W/8].

        What the TAESD encoder computes.
        """
        n, _, height, width = pictures.shape
        patches = torch.nn.functional.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2)
        z = (patches - self.mean) @ self.basis * self.scale
        return z.transpose(1, 2).reshape(n, CHANNELS, height // PATCH, width // PATCH)


def principal_components(pictures: torch.Tensor) -> Components:
    """Components of the patches of `pictures` [N, 3, H, W].

    A component of variance v gets the latent variance v ** 0.5 (then all are scaled to a mean of
    1): between whitening, which would make a sampler spend itself on fine detail, and none, which
    would drown it.
    """
    patches = torch.nn.functional.unfold(pictures, PATCH, stride=PATCH).transpose(1, 2)
    patches = patches.reshape(-1, 3 * PATCH * PATCH).double()
    mean = patches.mean(dim=0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)  # signs that reproduce
    wanted = values.sqrt()
    wanted = wanted / wanted.mean()
    return Components(mean.float(), vectors.float(), (wanted / values).sqrt().float())


def write_encoder(taesd: torch.nn.Module, components: Components) -> None:
    """Set TAESD's encoder so that `taesd.encode` computes `components.encode` exactly."""
    taesd.vae_scale.data.fill_(INSIDE)
    encoder = taesd.taesd_encoder
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)  # every residual branch adds nothing
    first, down2, down4, down8, last = (encoder[i] for i in (0, 2, 6, 10, 14))
    for colour in range(3):
        first.weight.data[colour, colour, 1, 1] = 1
    # Two halvings move each 2 x 2 block of pixels into channels; a kernel's taps 1 and 2 are the
    # block.
    for conv, ins in ((down2, 3), (down4, 12)):
        for channel in range(ins):
            for row in range(2):
                for column in range(2):
                    conv.weight.data[
                        4 * channel + 2 * row + column, channel, 1 + row, 1 + column
                    ] = 1
    # The last halving projects; each component twice, with both signs, so that ReLU loses nothing.
    for row in range(PATCH):
        for column in range(PATCH):
            # Pixel (row, column) was moved first by its lowest bit, then by the next, then by the
            # highest.
            inner = 2 * (row & 1) + (column & 1)
            middle = 2 * (row >> 1 & 1) + (column >> 1 & 1)
            for colour in range(3):
                channel = 4 * (4 * colour + inner) + middle
                weights = components.basis[colour * 64 + row * 8 + column]
                taps = down8.weight.data[:, channel, 1 + (row >> 2), 1 + (column >> 2)]
                taps[:CHANNELS] = weights
                taps[CHANNELS : 2 * CHANNELS] = -weights
    for k in range(CHANNELS):
        last.weight.data[k, k, 1, 1] = components.scale[k] * INSIDE
        last.weight.data[k, CHANNELS + k, 1, 1] = -components.scale[k] * INSIDE
    last.bias.data.copy_(-(components.mean @ components.basis) * components.scale * INSIDE)
