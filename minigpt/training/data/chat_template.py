"""How a conversation is written down for a model: who speaks, what is said, and where an answer ends."""

from typing import Any

# Plain letters, so that a vocabulary of a text's own characters has them. An answer begins with the space after the
# colon, because in subword vocabularies a word and the space before it are one token; and one that comes back from a
# model with its space, to be shown to it again, is written as it was.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- message.role + ':' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- '' if message.content.startswith(' ') else ' ' -}}{{- message.content + eos_token -}}
{%- endgeneration -%}
{%- else -%}
{{- ' ' + message.content -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'assistant:' -}}{%- endif -%}
"""


def give_chat_template(tokenizer: Any) -> bool:
    """Gives a tokenizer without a chat template ours; returns whether it did."""
    if tokenizer.chat_template is not None:
        return False
    tokenizer.chat_template = CHAT_TEMPLATE
    return True
