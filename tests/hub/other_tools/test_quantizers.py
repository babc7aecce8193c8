"""torchao and AutoRound keep the weights in fewer bits.

Their extra is no part of `all`: with torchao installed, every `from_pretrained` of any model imports it and warns.
"""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.extra("quantize")


@pytest.mark.door("torchao's int8 weights: logits close, a smaller file that opens again", "torchao")
def test_torchao_int8_is_smaller_and_close(saved, tmp_path):
    pytest.importorskip("torchao", reason="needs the extra `quantize`")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    whole = AutoModelForCausalLM.from_pretrained(saved)
    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    small = AutoModelForCausalLM.from_pretrained(saved, quantization_config=config, device_map="cpu")
    inputs = AutoTokenizer.from_pretrained(saved)("What is it", return_tensors="pt")
    expected, found = whole(**inputs).logits, small(**inputs).logits
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.05 * expected.abs().max().item(), rtol=0)

    small.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 0.7 * (saved / "model.safetensors").stat().st_size
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(**inputs).logits, found)


@pytest.mark.door("AutoRound's 4-bit weights: logits correlate, a smaller file that opens again", "auto-round")
def test_auto_round_quantizes_to_4_bits(saved, text, tmp_path):
    pytest.importorskip("auto_round", reason="needs the extra `quantize`")
    from auto_round import AutoRound

    tokenizer = AutoTokenizer.from_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)
    block = model.config.max_position_embeddings
    ids = tokenizer(text[: 32 * block], return_tensors="pt").input_ids
    inputs = {"input_ids": ids[:, :block]}
    expected = model(**inputs).logits.flatten()
    tool = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        group_size=32,
        iters=2,
        dataset=list(ids.split(block, 1)),
        nsamples=32,
        seqlen=block,
        batch_size=8,
        device_map="cpu",
    )
    tool.quantize_and_save(str(tmp_path), format="auto_round")
    (config,) = tmp_path.rglob("config.json")
    names = load_file(config.with_name("model.safetensors")).keys()
    assert {name.split(".", 3)[3] for name in names if name.endswith("qweight")} >= {"mlp.up_proj.qweight"}
    again = AutoModelForCausalLM.from_pretrained(config.parent, device_map="cpu")
    found = again(**inputs).logits.flatten().float()
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9
    assert not torch.equal(found, expected)
