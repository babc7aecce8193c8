"""The GPT spelled out, for reading: what the fast model computes, one idea a class.

After Andrej Karpathy's lecture "Let's build GPT: from scratch, in code, spelled out". Every head has its own query, key
and value; the mask is a triangle of ones; nothing is fused and nothing is cached. Read from top to bottom: a head lets
tokens look back, several heads look for several things at once, a feed-forward lets each token think about what it has
found, a block is both, and a GPT is a stack of blocks between a table of characters and a table of scores.

It computes exactly what a `MiniGPTForCausalLM` of the lecture's shape computes: `TextbookGPT.from_minigpt(model)` takes
over such a model's weights and gives the same logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from .configuration_minigpt import MiniGPTConfig
    from .modeling_minigpt import MiniGPTForCausalLM


class Head(nn.Module):
    """One head of causal self-attention: every token gathers from the tokens before it what it is looking for."""

    tril: torch.Tensor

    def __init__(self, n_embd: int, head_size: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        tril = torch.tril(torch.ones(block_size, block_size))  # (block, block)
        self.register_buffer("tril", tril, persistent=False)  # a constant: it is neither trained nor saved
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From tokens (batch, time, channels) to what each has found, (batch, time, head_size)."""
        _, time, _ = x.shape  # (batch, time, channels)
        q = self.query(x)  # (batch, time, head_size): what am I looking for?
        k = self.key(x)  # (batch, time, head_size): what do I hold?
        v = self.value(x)  # (batch, time, head_size): what do I tell those who find me?

        # A dot product of head_size terms has a variance of head_size; scaled back to 1, or softmax would pick one
        # token alone from the start.
        affinity = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5  # (batch, time, time)
        # No token may look into the future, which is what it is to predict.
        affinity = affinity.masked_fill(self.tril[:time, :time] == 0, float("-inf"))  # (batch, time, time)
        weights = self.dropout(F.softmax(affinity, dim=-1))  # (batch, time, time), each row sums to 1
        return weights @ v  # (batch, time, head_size)


class MultiHeadAttention(nn.Module):
    """Several heads side by side, each free to look for something else, and a projection that mixes their finds."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        head_size = n_embd // n_head
        self.heads = nn.ModuleList([Head(n_embd, head_size, block_size, dropout) for _ in range(n_head)])
        self.proj = nn.Linear(n_head * head_size, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From tokens (batch, time, channels) to what all heads have found, (batch, time, channels)."""
        found = torch.cat([head(x) for head in self.heads], dim=-1)  # (batch, time, n_head * head_size)
        return self.dropout(self.proj(found))  # (batch, time, channels)


class FeedForward(nn.Module):
    """Each token on its own: out to four times the width, a ReLU, and back."""

    def __init__(self, n_embd: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd),  # (batch, time, 4 * channels)
            nn.ReLU(),
            nn.Linear(4 * n_embd, n_embd),  # (batch, time, channels)
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From tokens (batch, time, channels) to what each makes of itself, (batch, time, channels)."""
        return self.net(x)  # (batch, time, channels)


class Block(nn.Module):
    """Communication, then computation, each added to what was there, so that gradients pass a deep stack unhindered."""

    def __init__(self, n_embd: int, n_head: int, block_size: int, dropout: float) -> None:
        super().__init__()
        self.sa = MultiHeadAttention(n_embd, n_head, block_size, dropout)
        self.ffwd = FeedForward(n_embd, dropout)
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From a stream (batch, time, channels) to the stream with both added, (batch, time, channels)."""
        x = x + self.sa(self.ln1(x))  # (batch, time, channels)
        return x + self.ffwd(self.ln2(x))  # (batch, time, channels)


class TextbookGPT(nn.Module):
    """The lecture's GPT.

    Args:
        vocab_size: Number of different characters.
        n_embd: Width of the stream that runs through the blocks ("channels"), a multiple of `n_head`.
        n_head: Heads of each block.
        n_layer: Number of blocks.
        block_size: Longest context in characters.
        dropout: Probability of dropping an attention weight, or a feature on its way back into the stream.

    Raises:
        ValueError: If the heads do not divide the width.
    """

    def __init__(
        self,
        vocab_size: int = 65,
        n_embd: int = 64,
        n_head: int = 4,
        n_layer: int = 4,
        block_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) must be a multiple of n_head ({n_head}); change either.")
        self.block_size = block_size
        self.token_embedding_table = nn.Embedding(vocab_size, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, dropout) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, idx: torch.Tensor, targets: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Predicts the next character at every position.

        Args:
            idx: Characters, int64 (batch, time), at most `block_size` long.
            targets: The characters that do follow, int64 (batch, time): `idx` moved on by one.

        Returns:
            The logits (batch, time, vocab_size), and the loss in nats a character, None without targets.
        """
        _, time = idx.shape
        tok_emb = self.token_embedding_table(idx)  # (batch, time, channels)
        pos_emb = self.position_embedding_table(torch.arange(time, device=idx.device))  # (time, channels)
        x = tok_emb + pos_emb  # (batch, time, channels): what stands here, and where
        x = self.blocks(x)  # (batch, time, channels)
        x = self.ln_f(x)  # (batch, time, channels)
        logits = self.lm_head(x)  # (batch, time, vocab_size)
        if targets is None:
            return logits, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # (batch * time, vocab_size), (batch * time)
        return logits, loss

    @torch.no_grad()
    def generate(
        self,
        idx: torch.Tensor,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        do_sample: bool = True,
    ) -> torch.Tensor:
        """Continues a text, one character at a time.

        Args:
            idx: The text so far, int64 (batch, time), of any length from one character on.
            max_new_tokens: How many characters to add.
            generator: Source of chance for sampling; torch's own by default.
            do_sample: Draw from the probabilities, or take the likeliest character.

        Returns:
            The text and its continuation, int64 (batch, time + max_new_tokens).
        """
        for _ in range(max_new_tokens):
            context = idx[:, -self.block_size :]  # (batch, at most block): there are no positions for more
            logits, _ = self(context)
            # The last position alone says what comes next; float32 so that chance falls alike at every precision.
            logits = logits[:, -1, :].float()  # (batch, vocab_size)
            probs = F.softmax(logits, dim=-1)  # (batch, vocab_size)
            if do_sample:
                idx_next = torch.multinomial(probs, num_samples=1, generator=generator)  # (batch, 1)
            else:
                idx_next = probs.argmax(dim=-1, keepdim=True)  # (batch, 1)
            idx = torch.cat((idx, idx_next), dim=1)  # (batch, time + 1)
        return idx

    @classmethod
    def from_minigpt(cls, model: MiniGPTForCausalLM) -> TextbookGPT:
        """Takes over the weights of a model that has the lecture's shape.

        Args:
            model: A `MiniGPTForCausalLM`. How its weights began (`residual_init`, `initializer_range`) does not matter.

        Returns:
            A model with copies of the weights, in their dtype, on their device, training or not as the other one.

        Raises:
            ValueError: If the model is of another shape, naming the first configuration field in which it differs.
        """
        config = model.config
        if config.model_type != "minigpt" or not hasattr(model, "lm_head"):
            raise ValueError(f"the textbook GPT takes over a MiniGPTForCausalLM, got a {type(model).__name__}.")
        refuse_another_shape(config)
        textbook = cls(
            config.vocab_size,
            config.hidden_size,
            config.num_attention_heads,
            config.num_hidden_layers,
            config.max_position_embeddings,
            config.dropout,
        )
        textbook.to(device=model.device, dtype=model.dtype)
        textbook.load_state_dict(lecture_weights(model))
        return textbook.train(model.training)


def lecture_weights(model: MiniGPTForCausalLM) -> dict[str, torch.Tensor]:
    """The weights of a lecture-shaped model under the lecture's names, its own memory: what is written there is its."""
    theirs = model.state_dict()
    n_head = model.config.num_attention_heads
    whole = {
        "token_embedding_table": "model.embed_tokens",
        "position_embedding_table": "model.embed_positions",
        "ln_f": "model.norm",
        "lm_head": "lm_head",
    }
    ours: dict[str, torch.Tensor] = {}
    for i in range(model.config.num_hidden_layers):
        block, layer = f"blocks.{i}", f"model.layers.{i}"
        whole[f"{block}.ln1"] = f"{layer}.input_layernorm"
        whole[f"{block}.sa.proj"] = f"{layer}.self_attn.o_proj"
        whole[f"{block}.ln2"] = f"{layer}.post_attention_layernorm"
        whole[f"{block}.ffwd.net.0"] = f"{layer}.mlp.up_proj"
        whole[f"{block}.ffwd.net.2"] = f"{layer}.mlp.down_proj"
        # One matrix asks for everything at once: its rows are all heads' queries, then all keys, then all values.
        qkv = theirs[f"{layer}.self_attn.qkv_proj.weight"]  # (3 * n_head * head_size, channels)
        for name, rows in zip(("query", "key", "value"), qkv.chunk(3), strict=True):  # each (n_head * head_size, ...)
            for h, weight in enumerate(rows.chunk(n_head)):  # each (head_size, channels)
                ours[f"{block}.sa.heads.{h}.{name}.weight"] = weight
    for our_name, their_name in whole.items():
        for part in ("weight", "bias"):
            if f"{their_name}.{part}" in theirs:
                ours[f"{our_name}.{part}"] = theirs[f"{their_name}.{part}"]
    return ours


def refuse_another_shape(config: MiniGPTConfig) -> None:
    """Raises a ValueError for the first switch that is not where the lecture has it."""
    lecture: dict[str, Any] = {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "norm_eps": 1e-5,
        "norm_bias": True,
        "embedding_norm": False,
        "qk_norm": None,
        "hidden_act": "relu",
        "num_key_value_heads": config.num_attention_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "intermediate_size": 4 * config.hidden_size,
        "attention_bias": False,
        "attention_output_bias": True,
        "mlp_bias": True,
        "lm_head_bias": True,
        "tie_word_embeddings": False,
        "final_logit_softcapping": None,
        "embedding_dropout": 0,
        "sliding_window": None,
    }
    for switch, value in lecture.items():
        if (found := getattr(config, switch)) != value:
            raise ValueError(
                f"{switch}={found!r} is not the lecture's GPT, which has {value!r}; change it in the config."
            )
