"""How training images are varied: shifted, mirrored, a square of each blanked, by numbers that were drawn before."""

import torch
from torch import Tensor
from torch.nn import functional


def vary(images: Tensor, draws: Tensor, crop: int, padding: str = "zero") -> Tensor:
    """Shift each image by up to `crop` pixels, and mirror it where told; what comes in is black, or its reflection.

    images uint8 [B, C, H, W]; draws int64 [3, B]: row and column, 0 to 2 * crop, of the crop within the padded image,
    and 1 for mirrored. Padding "zero" is 0 before normalisation, that is black, torchvision's usual order of
    transforms; "reflect" repeats the pixels beside the edge, not the edge.
    """
    b, c, h, w = images.shape
    top, left, mirrored = draws.view(3, b, 1, 1)
    line = torch.arange(w, device=images.device)
    columns = left + torch.where(mirrored.bool(), w - 1 - line, line)  # [B, 1, W]
    rows = top + torch.arange(h, device=images.device).view(h, 1)  # [B, H, 1]
    source = (rows * (w + 2 * crop) + columns).view(b, 1, h * w).expand(b, c, h * w)
    if padding == "reflect":
        lines = [reflected(size, crop, images.device) for size in (h, w)]
        padded = images[:, :, lines[0]][:, :, :, lines[1]].flatten(2)
    else:
        padded = functional.pad(images, (crop,) * 4).flatten(2)
    return padded.gather(2, source).view(b, c, h, w)  # one gather: twice as fast as unfold and where


def reflected(size: int, pad: int, device: torch.device) -> Tensor:
    """The lines of an image of `size` lines that padding by `pad` shows, int64 [size + 2 * pad]; pad < size."""
    line = torch.arange(-pad, size + pad, device=device).abs()
    return torch.minimum(line, 2 * (size - 1) - line)


def blank(x: Tensor, centres: Tensor, side: int) -> None:
    """Set a square of each image to 0, the mean of normalised pixels, in place.

    x float [B, C, H, W]; centres int64 [2, B]: the row and the column of each square of `side` pixels, of an even side
    the one after its middle. What of a square lies outside of its image changes nothing: as published (Cutout, DeVries
    and Taylor 2017).
    """
    covered = []
    for first, length in zip(centres - side // 2, x.shape[2:], strict=True):
        offset = torch.arange(length, device=x.device) - first.view(-1, 1)  # [B, H] and then [B, W]
        covered.append((offset >= 0) & (offset < side))
    rows, columns = covered
    x.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
