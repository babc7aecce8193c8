"""Tools that look inside a model: nnsight, BertViz and Captum."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.extra("interpret")
PROMPT = "What is it"


@pytest.mark.door("nnsight with `dispatch=True`: reads hidden states and changes them", "nnsight")
def test_nnsight_reads_and_changes_hidden_states(saved):
    from nnsight import TransformersModel

    model = AutoModelForCausalLM.from_pretrained(saved)
    inputs = AutoTokenizer.from_pretrained(saved)(PROMPT, return_tensors="pt")
    expected = model(**inputs, output_hidden_states=True)

    traced = TransformersModel(str(saved), task="text-generation", dispatch=True)
    with traced.trace(PROMPT):
        first = traced.model.layers[0].output.save()
        last = traced.model.norm.output.save()
        logits = traced.lm_head.output.save()
    torch.testing.assert_close([first, last], list(expected.hidden_states[1:]))
    torch.testing.assert_close(logits, expected.logits)

    with traced.trace(PROMPT):
        traced.model.norm.output[:] = 0
        logits = traced.lm_head.output.save()
    torch.testing.assert_close(logits, model.lm_head(torch.zeros_like(last)))


@pytest.mark.door('BertViz with `attn_implementation="eager"`: draws the attention of every layer and head', "bertviz")
def test_bertviz_draws_the_attention(saved):
    from bertviz import head_view, model_view

    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved, attn_implementation="eager")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    attentions = model(**inputs, output_attentions=True).attentions
    tokens = tokenizer.convert_ids_to_tokens(inputs.input_ids[0])
    for view in (head_view, model_view):
        page = view(attentions, tokens, html_action="return").data
        start = page.index("const params = ") + len("const params = ")
        drawn = json.JSONDecoder().raw_decode(page, start)[0]["attention"][0]
        torch.testing.assert_close(torch.tensor(drawn["attn"]), torch.stack(attentions)[:, 0])
        assert len(drawn["left_text"]) == len(tokens)


@pytest.mark.door("Captum: integrated gradients that add up to the difference of logits", "captum")
def test_captum_attributes_a_logit_to_the_characters(saved):
    from captum.attr import LayerIntegratedGradients

    model = AutoModelForCausalLM.from_pretrained(saved).double()
    tokenizer = AutoTokenizer.from_pretrained(saved)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    spaces = torch.full_like(ids, tokenizer.convert_tokens_to_ids(" "))

    def logit(ids):
        return model(ids).logits[:, -1, 5]

    gradients = LayerIntegratedGradients(logit, model.get_input_embeddings())
    attributions, error = gradients.attribute(ids, spaces, n_steps=500, return_convergence_delta=True)
    assert attributions.shape == (*ids.shape, model.config.hidden_size)
    difference = (logit(ids) - logit(spaces)).item()
    assert attributions.sum().item() == pytest.approx(difference, abs=max(0.02, 0.05 * abs(difference)))
    assert abs(error.item()) < 0.02 + 0.05 * abs(difference)


@pytest.mark.door("Captum's `LLMAttribution` with `use_cached_outputs=False`: the log-probability of a text", "captum")
def test_captum_attributes_a_text_to_the_prompt(saved):
    from captum.attr import FeatureAblation, LLMAttribution, TextTokenInput

    model = AutoModelForCausalLM.from_pretrained(saved)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    prompt = TextTokenInput("What", tokenizer, skip_tokens=[])
    tool = LLMAttribution(FeatureAblation(model), tokenizer)
    found = tool.attribute(prompt, target=" is", use_cached_outputs=False).seq_attr

    def log_probability(ids):
        scores = model(ids).logits.log_softmax(-1)[0, 3:-1]
        return scores.gather(-1, ids[0, 4:, None]).sum().detach()

    ids = tokenizer("What is", return_tensors="pt").input_ids
    expected = []
    for place in range(4):
        without = ids.clone()
        without[0, place] = 0  # the token that captum puts there
        expected.append(log_probability(ids) - log_probability(without))
    torch.testing.assert_close(found.cpu(), torch.stack(expected), atol=1e-4, rtol=1e-4)
