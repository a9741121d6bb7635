"""Every architecture that the pinned llama.cpp has a name for (``LLM_ARCH_NAMES``), and why ggext
does not write a file of it where it does not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType


def _of(names: str, words: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), words)


#: Architectures that continue no text → what they are.
OTHERS: Mapping[str, str] = MappingProxyType(
    _of(
        "bert eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert "
        "nomic-bert nomic-bert-moe t5encoder",
        "an encoder",
    )
    | _of("t5", "an encoder with a decoder")
    | _of("clip", "what sees or hears for another model")
    | _of("dflash eagle3 gemma4-assistant", "a draft for another model")
    | _of("dream llada llada-moe rnd1", "a diffusion model")
    | _of("pockettts qwen3tts wavtokenizer-dec", "speech")
)

_NO_JUDGE = (
    "not yet: transformers does not know it, so that nothing here could judge it"
)
_MAMBA = "not yet: layers of Mamba"
_SPARSE = "not yet: sparse attention, of which what llama.cpp computes is still to be measured"
_LINEAR = "not yet: linear attention"
_LEFT = "not yet"

#: Text architectures that no family is converted to → the state.
NOT_WRITTEN: Mapping[str, str] = MappingProxyType(
    _of("gemma3n gptj phimoe", "refused")  # with the reason in ``converters.REFUSED``
    | _of(
        "arctic baichuan bailingmoe bailingmoe2 chatglm codeshell cogvlm deci deepseek "
        "deepseek2-ocr grok grovemoe jais maincoder maple minicpm nanbeige openelm orion "
        "pangu-embedded plamo plamo3 plm qwen refact smallthinker spark2_5 talkie xverse",
        _NO_JUDGE,
    )
    | _of("arwkv7 rwkv6 rwkv6qwen2 rwkv7", _NO_JUDGE + "; a recurrent state")
    | _of("jamba mamba mamba2 plamo2", _MAMBA)
    | _of("dots3note hy_v4", _SPARSE)
    | _of("bailingmoe3 glm5-next kimi-k3 kimi-linear minimax-01 qwen4exp", _LINEAR)
    | _of(
        "bitnet chameleon cohere2moe dbrx exaone-moe granite_swa graniteswitch hrm_text "
        "hunyuan-moe hunyuan_vl jais2 mellum paddleocr",
        _LEFT,
    )
)
