"""Stock models of a MiniGPT's sizes, to be measured beside it."""

from transformers import GPT2Config, GPT2LMHeadModel

from minigpt import MiniGPTConfig


def stock_gpt2(config: MiniGPTConfig) -> GPT2LMHeadModel:
    """A GPT-2 of the same width, depth, heads, block, vocabulary and dropout, that never ends a text."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_positions=config.max_position_embeddings,
            attn_pdrop=config.dropout,
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
