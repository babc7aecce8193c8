"""The Auto classes of transformers, taught to open saved folders without remote code."""


def register() -> None:
    """Register the model and tokenizer classes with the Auto classes of transformers.

    `import minigpt` calls it. Calling it again changes nothing.
    """
    import transformers
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    from minigpt.modeling_minigpt import configuration_bigram, modeling_bigram, modeling_minigpt
    from minigpt.modeling_minigpt.configuration_minigpt import MiniGPTConfig
    from minigpt.tokenization.subword import SentencePieceTokenizer, SubwordTokenizer
    from minigpt.tokenization.tokenization_minigpt import MiniGPTTokenizer

    AutoConfig.register(MiniGPTConfig.model_type, MiniGPTConfig, exist_ok=True)
    for auto_class, model_class in (
        (AutoModel, modeling_minigpt.MiniGPTModel),
        (AutoModelForCausalLM, modeling_minigpt.MiniGPTForCausalLM),
        (AutoModelForSequenceClassification, modeling_minigpt.MiniGPTForSequenceClassification),
        (AutoModelForTokenClassification, modeling_minigpt.MiniGPTForTokenClassification),
    ):
        auto_class.register(MiniGPTConfig, model_class, exist_ok=True)
    bigram_config = configuration_bigram.BigramConfig
    AutoConfig.register(bigram_config.model_type, bigram_config, exist_ok=True)
    AutoModel.register(bigram_config, modeling_bigram.BigramModel, exist_ok=True)
    AutoModelForCausalLM.register(bigram_config, modeling_bigram.BigramForCausalLM, exist_ok=True)
    # Experimental in transformers: a later version may lack it.
    if (decision := getattr(transformers, "AutoModelForDecision", None)) is not None:
        decision.register(MiniGPTConfig, modeling_minigpt.MiniGPTForCausalLM, exist_ok=True)
        decision.register(bigram_config, modeling_bigram.BigramForCausalLM, exist_ok=True)
    for config_class in (MiniGPTConfig, bigram_config):
        # Each is found by its name; the last one also where a folder names none.
        for tokenizer_class in (SubwordTokenizer, SentencePieceTokenizer, MiniGPTTokenizer):
            AutoTokenizer.register(config_class, tokenizer_class=tokenizer_class, exist_ok=True)
