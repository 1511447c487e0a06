"""A small decoder-only transformer over bytes, untrained: what a request costs follows its context and its answer.

Prefill computes the whole context at once, decode one byte after another with the keys and values of all before kept,
as a large language model does. Positions are rotations (Su et al., arXiv 2104.09864), so any context length will do.
Weights come from `inference_server.train_text`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

VOCABULARY = 256
WIDTH, HEADS, LAYERS = 64, 4, 4
_ROTATION_BASE = 10_000.0

Cache = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Attention and a feed-forward network, each behind a normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, 3 * WIDTH)
        self.combine = nn.Linear(WIDTH, WIDTH)
        self.feed_norm = nn.LayerNorm(WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor, rotation: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """The block's output [n, t, width], and the keys and values of everything up to its end."""
        n, t, _ = x.shape
        query, key, value = (
            part.reshape(n, t, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in self.project(self.attention_norm(x)).split(WIDTH, dim=-1)
        )
        query, key = _rotated(query, rotation), _rotated(key, rotation)
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        # One new byte sees everything before it; a context sees no future.
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
        x = x + self.combine(mixed.transpose(1, 2).reshape(n, t, WIDTH))
        return x + self.feed(self.feed_norm(x)), key, value


class Transformer(nn.Module):
    """Logits of the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """One step.

        Args:
            tokens: A context, or with `past` the one byte that follows it, int64[n, t].
            past: Keys and values of what came before.

        Returns:
            Logits float[n, t, 256], and keys and values up to the end.
        """
        before = 0 if past is None else past[0][0].shape[2]
        rotation = _rotation(before, tokens.shape[1], tokens.device)
        x = self.embedding(tokens)
        cache: Cache = []
        for i, block in enumerate(self.blocks):
            x, key, value = block(x, rotation, None if past is None else past[i])
            cache.append((key, value))
        return self.norm(x) @ self.embedding.weight.T / math.sqrt(WIDTH), cache


def _rotation(first: int, count: int, device: torch.device) -> Tensor:
    """Angles of these positions, [count, width of half a head]."""
    half = WIDTH // HEADS // 2
    frequency = _ROTATION_BASE ** (-torch.arange(half, device=device) / half)
    return torch.arange(first, first + count, device=device)[:, None] * frequency


def _rotated(x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    cosine, sine = angle.cos(), angle.sin()
    return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)
