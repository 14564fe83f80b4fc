"""Transformers in miniature as users write them: several layouts, tokens and attentions; none takes square images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (3, 20, 16)
PATCH = 4  # 5 x 4 patches


class ChannelsLast(nn.Module):
    """A convolutional stem, then everything in (N, H, W, C); `fixed` takes images of one size only."""

    def __init__(self, width: int = 6, fixed: bool = False) -> None:
        super().__init__()
        self.fixed = fixed
        self.stem = nn.Conv2d(3, width, PATCH, PATCH)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 9), nn.GELU(), nn.Linear(9, width))
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        if self.fixed and x.shape[1:] != SHAPE:
            raise AssertionError("images of one size only")
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.drop(x + self.mlp(self.norm(x)))
        return self.head(x.mean((1, 2)))


class Qkv(nn.Module):
    """Attention in the manner of timm: one linear layer for queries, keys and values, `proj` behind the heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.match = nn.Softmax(-1)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        weights = self.match(q @ k.transpose(-2, -1) / (d // self.num_heads) ** 0.5)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, d))


class Torch(nn.Module):
    """torch's attention on itself, in either order of images and tokens."""

    def __init__(self, width: int, num_heads: int, batch_first: bool) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, num_heads, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, value=x, need_weights=False)[0]


class TinyViT(nn.Module):
    """Patches, `extra` learned tokens at the `place`, one block, a head on the first extra token or on the mean.

    `cut` cuts the patches by reshaping in place of a convolution; `sequence_first` runs in (T, N, C); `content` makes
    the extra tokens depend on the image.
    """

    def __init__(
        self, width: int = 12, extra: int = 1, place: str = "front", attention: str = "torch",
        cut: bool = False, sequence_first: bool = False, content: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.place, self.sequence_first, self.content, self.count = place, sequence_first, content, extra
        self.embed = nn.Linear(3 * PATCH * PATCH, width) if cut else nn.Conv2d(3, width, PATCH, PATCH)
        self.extra = nn.Parameter(torch.randn(1, extra, width))
        self.position = nn.Parameter(torch.randn(1, 20 + extra, width))
        self.drop = nn.Dropout(0.1)
        self.norm1 = nn.LayerNorm(width)
        self.attn = Qkv(width, 3) if attention == "qkv" else Torch(width, 3, not sequence_first)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 15), nn.GELU(), nn.Linear(15, width))
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        if isinstance(self.embed, nn.Linear):
            x = x.reshape(n, 3, 5, PATCH, 4, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(n, 20, -1)
            x = self.embed(x)
        else:
            x = self.embed(x).flatten(2).transpose(1, 2)
        extra = self.extra.expand(n, -1, -1)
        if self.content:
            extra = extra + x.mean(1, keepdim=True)
        middle = {"front": 0, "back": 20, "middle": 10}[self.place]
        x = self.drop(torch.cat([x[:, :middle], extra, x[:, middle:]], 1) + self.position)
        if self.sequence_first:
            x = x.transpose(0, 1)
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        if self.sequence_first:
            x = x.transpose(0, 1)
        return self.head(x[:, middle] if self.count else x.mean(1))


def seeded(make: type[nn.Module], **options: object) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(**options).eval()
