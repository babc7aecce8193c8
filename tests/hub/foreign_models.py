"""The models that people bring along, as their own scripts have them: oracles, with the names that those save."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


def sharpen(model: nn.Module, seed: int = 0, std: float = 0.4) -> nn.Module:
    """Draws every parameter anew, norms around 1 and the rest around 0, so that an error in any of them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + is_norm)
    return model.eval()


@torch.no_grad()
def write(model: nn.Module, ids: list[int], new_tokens: int, never: tuple[int, ...] = ()) -> list[int]:
    """Greedily, from the last block of what is there."""
    ids = list(ids)
    for _ in range(new_tokens):
        scores = model(torch.tensor([ids[-model.block_size :]]))[0, -1]
        scores[list(never)] = -math.inf
        ids.append(int(scores.argmax()))
    return ids


class NanoNorm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoAttention(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int, bias: bool, masks: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        mask = torch.tril(torch.ones(block_size, block_size))[None, None]  # (1, 1, block, block)
        # Where PyTorch had no fused attention, the mask was a buffer of this name, and is in the checkpoint.
        self.register_buffer("bias", mask, persistent=masks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, time, width = x.shape
        size = width // self.heads
        q, k, v = (part.view(batch, time, self.heads, size).transpose(1, 2) for part in self.c_attn(x).split(width, 2))
        scores = q @ k.transpose(-2, -1) / math.sqrt(size)  # (batch, heads, time, time)
        scores = scores.masked_fill(self.bias[:, :, :time, :time] == 0, -math.inf)
        found = scores.softmax(-1) @ v  # (batch, heads, time, size)
        return self.c_proj(found.transpose(1, 2).reshape(batch, time, width))


class NanoMLP(nn.Module):
    def __init__(self, width: int, bias: bool, gelu: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.gelu = nn.GELU(approximate=gelu)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int, bias: bool, masks: bool, gelu: str) -> None:
        super().__init__()
        self.ln_1 = NanoNorm(width, bias)
        self.attn = NanoAttention(width, heads, block_size, bias, masks)
        self.ln_2 = NanoNorm(width, bias)
        self.mlp = NanoMLP(width, bias, gelu)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's `GPT`, and its variants of other times: masks among the weights, GELU by tanh, an untied head."""

    def __init__(
        self,
        n_layer: int = 2,
        n_head: int = 3,
        n_embd: int = 12,
        block_size: int = 8,
        bias: bool = False,
        vocab_size: int = 11,
        dropout: float = 0.0,
        *,
        masks: bool = False,
        gelu: str = "none",
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.arguments = {
            "n_layer": n_layer,
            "n_head": n_head,
            "n_embd": n_embd,
            "block_size": block_size,
            "bias": bias,
            "vocab_size": vocab_size,
            "dropout": dropout,
        }
        self.block_size = block_size
        blocks = [NanoBlock(n_embd, n_head, block_size, bias, masks, gelu) for _ in range(n_layer)]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "drop": nn.Dropout(dropout),
                "h": nn.ModuleList(blocks),
                "ln_f": NanoNorm(n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        if tied:
            self.transformer.wte.weight = self.lm_head.weight
        sharpen(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))  # (batch, time, width)
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))  # (batch, time, vocab)


def save_nanogpt(gpt: NanoGPT, path: Path, prefix: str = "", **changes: Any) -> Path:
    """As nanoGPT's train.py does, its optimizer after a step included; `prefix` is what compiling puts before names."""
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-9)
    gpt(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    saved = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    optimizer.step()
    gpt.load_state_dict(saved)
    checkpoint = {
        "model": {prefix + name: tensor for name, tensor in gpt.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": gpt.arguments,
        "iter_num": 2000,
        "best_val_loss": torch.tensor(1.4697),
        "config": {"out_dir": "out-shakespeare-char", "dataset": "shakespeare_char", "learning_rate": 1e-3},
    }
    torch.save(checkpoint | changes, path)
    return path


class LectureHead(nn.Module):
    def __init__(self, width: int, size: int, block_size: int, scale: str) -> None:
        super().__init__()
        self.key = nn.Linear(width, size, bias=False)
        self.query = nn.Linear(width, size, bias=False)
        self.value = nn.Linear(width, size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))
        self.scale = {"head_size": size, "n_embd": width}[scale] ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time = x.shape[1]
        weights = self.query(x) @ self.key(x).transpose(-2, -1) * self.scale  # (batch, time, time)
        weights = weights.masked_fill(self.tril[:time, :time] == 0, -math.inf).softmax(-1)
        return weights @ self.value(x)  # (batch, time, size)


class LectureHeads(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int, scale: str) -> None:
        super().__init__()
        self.heads = nn.ModuleList([LectureHead(width, width // heads, block_size, scale) for _ in range(heads)])
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class LectureFeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(0.2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class LectureBlock(nn.Module):
    def __init__(self, width: int, heads: int, block_size: int, scale: str) -> None:
        super().__init__()
        self.sa = LectureHeads(width, heads, block_size, scale)
        self.ffwd = LectureFeedForward(width)
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class LectureGPT(nn.Module):
    """The lecture's gpt.py; with `norm_in_blocks` its v2.py, whose last norm stands at the end of the blocks."""

    def __init__(
        self,
        vocab_size: int = 11,
        width: int = 12,
        heads: int = 3,
        layers: int = 2,
        block_size: int = 8,
        *,
        scale: str = "head_size",
        norm_in_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.token_embedding_table = nn.Embedding(vocab_size, width)
        self.position_embedding_table = nn.Embedding(block_size, width)
        blocks: list[nn.Module] = [LectureBlock(width, heads, block_size, scale) for _ in range(layers)]
        self.blocks = nn.Sequential(*blocks, *([nn.LayerNorm(width)] if norm_in_blocks else []))
        self.ln_f = nn.Identity() if norm_in_blocks else nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab_size)
        sharpen(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.token_embedding_table(ids) + self.position_embedding_table(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))  # (batch, time, vocab)


class LectureBigram(nn.Module):
    """The lecture's bigram.py."""

    block_size = 8

    def __init__(self, vocab_size: int = 11) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocab_size, vocab_size)
        sharpen(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.token_embedding_table(ids)  # (batch, time, vocab)
