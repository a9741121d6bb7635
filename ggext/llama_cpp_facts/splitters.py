"""Which of llama.cpp's pre-tokenizers split text by std::regex (``llama_vocab::impl::load``).

The expressions of the others are recognized by ``unicode_regex_split_custom``, or match single
characters only. std::regex recurses for every character of a match.
"""

from __future__ import annotations

#: ``tokenizer.ggml.pre`` of vocabularies that are split by code written by hand.
BY_HAND = frozenset(
    # as GPT-2
    "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert "
    "jina-v1-en jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4 "
    # as GPT-2, after single digits
    "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2 "
    # as Llama 3
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx "
    "smaug-bpe chatglm-bpe glm4 glm5 "
    # as Qwen 2 and Qwen 3.5
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 qwen35 "
    # their own
    "kimi-k2 gemma4 granite-embed-multi-311m sarvam-moe laguna".split()
)
#: The names that are split by std::regex.
BY_REGEX = frozenset(
    "default minicpm5 deepseek-llm deepseek-coder deepseek-v3 hunyuan-dense joyai-llm hy_v4 "
    "spark2_5 youtu falcon jais-2 whitespace poro-chat bloom gpt3-finnish viking tekken exaone-moe "
    "chameleon gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m tiny_aya cohere2moe "
    "superbpe bailingmoe bailingmoe2 llada-moe seed-coder ufakzeka afmoe".split()
)
