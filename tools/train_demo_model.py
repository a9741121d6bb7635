"""Make the demo model from nothing but a seed: text, tokenizer, training, figures, card.

    python tools/train_demo_model.py --seed 1 --out ggext/data/demo-model

Needs ggext, torch and transformers. On one machine the same seed and the same number of threads
give the same checkpoint. Where other programs use the cores too, OMP_WAIT_POLICY=PASSIVE saves
most of the time that torch's threads spend waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ggext.data import demo_language as language

CONTEXT = 256
HEAD_DIM = 32
# The slowest pair turns once in 16 trained contexts, as in Llama 2 (13). Under base 10000 it takes
# 137: half of the pairs hardly turn, and the unscaled model still finds things at 4 x the context.
THETA = 1000.0
LEARNING_RATE = 1e-3
LENGTHS = tuple(CONTEXT * factor for factor in (1, 2, 4, 8))
METHODS = ("none", "linear", "ntk", "yarn")
# Recall that the demo promises: method, factor, sign and bound (+ at least, - at most).
GOALS = (
    ("yarn", 4, 1, 0.95),
    ("yarn", 8, 1, 0.90),
    ("none", 4, -1, 0.50),
    ("none", 8, -1, 0.10),
)
# The template writes the BOS token itself and add_bos_token is false, so no program doubles it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# ---------------------------------------------------------------- tokenizer


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE in GPT-2's form, with just the merges that make every word one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=True
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=5000,  # never reached: training ends when nothing is left to merge
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(language.vocabulary(), trainer)
    tokenizer.add_special_tokens(
        [
            AddedToken(mark, special=True, normalized=False)
            for mark in language.SPECIAL_TOKENS
        ]
    )
    for word in language.vocabulary():
        if len(tokenizer.encode(word).ids) != 1:
            raise SystemExit(f"tokenizer: {word!r} is not one token")
    return tokenizer


def token_ids(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Ids (n, length) of texts of one length."""
    return torch.tensor(
        [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]
    )


# ---------------------------------------------------------------- training text


@dataclass(frozen=True)
class Stage:
    """A step of the curriculum; `paired` texts are bare keys and values, the others chats."""

    length: int
    n_facts: tuple[int, int]
    n_words: int = 10_000  # how many keys and places it uses, of those there are
    paired: bool = False
    tokens: int = 8192  # a batch


# Pairs come first because a chat spends 15 tokens on one answer: with chats alone the model still
# guessed among the values of the text after 3 million tokens, with pairs it looks up after 0.7.
STAGES = (
    Stage(24, (3, 3), n_words=16, paired=True, tokens=4096),
    Stage(32, (3, 6), paired=True, tokens=4096),
    Stage(72, (3, 4)),
    Stage(96, (3, 6)),
    Stage(160, (3, 16)),
    Stage(CONTEXT, (3, 36)),
)


def training_text(rng: Random, stage: Stage) -> str:
    """A text of exactly `stage.length` tokens."""
    if not stage.paired:
        return language.training_chat(rng, stage.length, stage.n_facts)
    keys, places = language.OBJECTS[: stage.n_words], language.PLACES[: stage.n_words]
    told = language.facts(rng, rng.randint(*stage.n_facts), keys, places)
    return language.bare_pairs(rng, told, stage.length)


@dataclass
class Batch:
    """Token ids (n, length), and masks (n, length-1) over the predicted tokens."""

    ids: Tensor
    answer: Tensor  # all tokens of the answers with their end markers
    value: Tensor  # the places in the answers alone


def batch(rng: Random, stage: Stage, tokenizer: Tokenizer) -> Batch:
    """Training texts of one length; nothing is padded."""
    texts = [training_text(rng, stage) for _ in range(stage.tokens // stage.length)]
    ids = token_ids(tokenizer, texts)
    answer, value = (torch.zeros_like(ids, dtype=torch.bool) for _ in range(2))
    if stage.paired:
        value[:, 2 * stage.n_facts[1] + 1 :: 2] = True
        return Batch(ids, value[:, 1:], value[:, 1:])
    starts = ids == tokenizer.token_to_id(language.ASSISTANT)
    for offset in range(1, language.ANSWER_TOKENS + 2):
        answer[:, offset:] |= starts[:, :-offset]
    value[:, 5:] = starts[:, :-5]  # Look for the key PLACE
    return Batch(ids, answer[:, 1:], value[:, 1:])


# ---------------------------------------------------------------- model


def rope_parameters(method: str, factor: float) -> dict[str, Any]:
    """transformers' rope_parameters for one of METHODS."""
    if method == "none" or factor == 1:
        return {"rope_type": "default", "rope_theta": THETA}
    if method == "ntk":
        theta = THETA * factor ** (HEAD_DIM / (HEAD_DIM - 2))
        return {"rope_type": "default", "rope_theta": theta}
    rope = {"rope_type": method, "rope_theta": THETA, "factor": factor}
    return rope | (
        {"original_max_position_embeddings": CONTEXT} if method == "yarn" else {}
    )


def new_model(
    vocab_size: int, method: str = "none", factor: float = 1
) -> LlamaForCausalLM:
    """An untrained demo model under a RoPE scaling."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
        rope_parameters=rope_parameters(method, factor),
        tie_word_embeddings=True,
        initializer_range=0.08,  # the default 0.02 is for wide models; here it is all but silence
        bos_token_id=vocab_size - len(language.SPECIAL_TOKENS),
        eos_token_id=vocab_size - 1,
        dtype=torch.float32,  # a prototype under bfloat16 never learned to look up
    )
    return LlamaForCausalLM(config)


def rescale(model: LlamaForCausalLM, method: str, factor: float) -> LlamaForCausalLM:
    """The same weights under another RoPE scaling."""
    other = new_model(model.config.vocab_size, method, factor)
    other.load_state_dict(model.state_dict())
    return other.eval()


def seed_lookup(model: LlamaForCausalLM) -> None:
    """Start one previous-token head in layer 0 and one matching, copying head in layer 1.

    The previous-token head: the embeddings get one constant component, and the keys made of it are
    the queries turned back by one position, so query times key is largest one token back. The
    matching head: its queries map a token as its keys map what the first head moved there, in the
    pairs alone that turn by less than half a turn; its output is its input transposed, which
    copies under tied embeddings.
    Training is free to change all of it.
    """
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    half = HEAD_DIM // 2
    model.model.embed_tokens.weight[:, 0] = 4 * model.config.initializer_range
    angles = THETA ** (-torch.arange(half) / half)
    # The norm turns the constant into about 4; fast dimensions tell neighbours apart best.
    strength = 2.0 * angles.clamp(min=0.05)
    query, key = first.q_proj.weight[:HEAD_DIM], first.k_proj.weight[:HEAD_DIM]
    query[:, 0] = 0
    query[:half, 0] = strength
    key[:] = 0
    key[:half, 0] = strength * angles.cos()
    key[half:, 0] = strength * angles.sin()
    moved = first.o_proj.weight[:, :HEAD_DIM] @ first.v_proj.weight[:HEAD_DIM]
    query, key = second.q_proj.weight[:HEAD_DIM], second.k_proj.weight[:HEAD_DIM]
    key *= (angles * CONTEXT < math.pi).repeat(2)[:, None]
    query[:] = key @ moved
    query *= 0.3 / query.std()
    second.o_proj.weight[:, :HEAD_DIM] = second.v_proj.weight[:HEAD_DIM].T


# ---------------------------------------------------------------- figures


def as_chat(sample: language.RecallSample) -> str:
    """A recall sample as the chat template writes it, the answer included."""
    asked = f"{language.BOS}{language.USER}{language.opening(sample)}{language.END}"
    return f"{asked}{language.ASSISTANT}{sample.answer}{language.END}"


def recall(
    model: LlamaForCausalLM, tokenizer: Tokenizer, length: int, n: int, seed: int
) -> float:
    """Share of answers given exactly, greedy, in chats that fill `length` tokens.

    One pass over prompt and right answer decides it: greedy decoding gives the answer exactly if
    and only if every token of it is the likeliest after the ones before.
    """
    rng, right, tail = Random(seed), 0, language.ANSWER_TOKENS + 1
    for _ in range(n):
        ids = token_ids(tokenizer, [as_chat(language.recall_sample(rng, length))])
        guessed = model(ids, logits_to_keep=tail + 1).logits[:, :-1].argmax(-1)
        right += int((guessed == ids[:, -tail:]).all())
    return right / n


def perplexity(
    model: LlamaForCausalLM, tokenizer: Tokenizer, n: int, seed: int
) -> list[float]:
    """Perplexity of plain documents in the windows that LENGTHS bounds."""
    rng, total = Random(seed), torch.zeros(LENGTHS[-1] - 1)
    for _ in range(n):
        told = language.facts(rng, language.RECALL_FACTS)
        text = language.document(rng, told, LENGTHS[-1] - 2)
        ids = token_ids(tokenizer, [language.BOS + language.USER + text])
        total += cross_entropy(
            model(ids[:, :-1]).logits[0], ids[0, 1:], reduction="none"
        )
    return [
        math.exp(total[max(0, low - 1) : high - 1].mean().item() / n)
        for low, high in pairwise((0, *LENGTHS))
    ]


def margin(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int) -> float:
    """The smallest distance to GOALS' bounds, on 64 texts a goal; it chooses the checkpoint."""
    distances, told = [], []
    for method, factor, sign, bound in GOALS:
        share = recall(
            rescale(model, method, factor), tokenizer, factor * CONTEXT, 64, seed
        )
        distances.append(sign * (share - bound))
        told.append(f"{method} {factor}x {share:.3f}")
    print("      validation:", ", ".join(told), flush=True)
    return min(distances)


# ---------------------------------------------------------------- training


def train(
    model: LlamaForCausalLM, tokenizer: Tokenizer, budget: float, seed: int
) -> None:
    """Train on `budget` tokens in all and leave the best of the last checkpoints in the model."""
    rng, started = Random(seed), time.monotonic()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98)
    )
    stage, last, step, seen, hits, text_weight = 0, len(STAGES) - 1, 0, 0, 0.0, 0.0
    best, chosen = -math.inf, model.state_dict()
    while seen < budget:
        current = stage if stage == 0 or rng.random() < 0.7 else rng.randrange(stage)
        made = batch(rng, STAGES[current], tokenizer)
        logits = model(made.ids[:, :-1]).logits
        wanted = made.ids[:, 1:]
        losses = cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        losses = losses.view_as(wanted)
        loss = losses[made.answer].mean()
        if not STAGES[current].paired:
            loss = loss + text_weight * losses.mean()
        left = 1 - seen / budget
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(
                1, (step + 1) / 100, max(0.02, left / 0.4)
            )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + wanted.shape[0] * (wanted.shape[1] + 1)
        if current == stage:
            hit = (logits.argmax(-1) == wanted)[made.value].float().mean().item()
            hits = 0.95 * hits + 0.05 * hit
            if hits > 0.97 and stage < last:
                stage, hits = stage + 1, 0.0
            if stage >= 3:  # the loss on all tokens would bury the answers before that
                text_weight = min(0.2, max(0.02, text_weight + 0.0005))
        if step % 50 == 0:
            print(
                f"{step:5d} {seen / 1e6:6.2f}M tokens  stage {stage}  loss {loss.item():.3f}  "
                f"values {hits:.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
        if step % 150 == 0 and left < 0.4 and stage == last:
            with torch.no_grad():
                found = margin(model, tokenizer, seed + step)
            if found >= best:
                best, chosen = (
                    found,
                    {k: v.clone() for k, v in model.state_dict().items()},
                )
    model.load_state_dict(chosen)


# ---------------------------------------------------------------- checkpoint


def write_checkpoint(out: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """config.json, model.safetensors, tokenizer.json and tokenizer_config.json; then read back."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(
        0o644
    )  # safetensors writes it for the owner alone
    (out / "generation_config.json").unlink()  # says nothing that config.json does not
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": language.BOS,
        "eos_token": language.END,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    check(out, model, tokenizer)


def check(out: Path, model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """What transformers reads is what was trained, token for token, and takes at most 4 MB."""
    sample = language.recall_sample(Random(0), CONTEXT)
    user = {"role": "user", "content": language.opening(sample)}
    reply = {"role": "assistant", "content": sample.answer}
    wanted = tokenizer.encode(as_chat(sample)).ids
    read = AutoTokenizer.from_pretrained(out)
    given = read.apply_chat_template([user, reply], return_dict=False)
    prompt = read.apply_chat_template(
        [user], add_generation_prompt=True, return_dict=False
    )
    if (
        given != wanted
        or prompt != wanted[: -language.ANSWER_TOKENS - 1]
        or len(given) != CONTEXT
    ):
        raise SystemExit("the chat template does not give the tokens of training")
    ids = torch.tensor([wanted])
    apart = LlamaForCausalLM.from_pretrained(out)(ids).logits - model(ids).logits
    if apart.abs().max() > 1e-4:
        raise SystemExit("the checkpoint's logits are not those of training")
    if sum(file.stat().st_size for file in out.iterdir()) > 4_000_000:
        raise SystemExit("the checkpoint takes more than 4 MB")


def table(
    heads: Sequence[object], rows: Mapping[str, Sequence[float]], digits: int
) -> str:
    """A Markdown table, one row a method."""
    cells = [["", *map(str, heads)], ["---"] * (len(heads) + 1)]
    cells += [[name, *(f"{x:.{digits}f}" for x in row)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def measure(
    model: LlamaForCausalLM, tokenizer: Tokenizer, n: int, seed: int
) -> dict[str, str]:
    """The card's two tables: recall with factor = length/CONTEXT, perplexity with the largest."""
    recalls, perplexities = {}, {}
    for method in METHODS:
        recalls[method] = [
            recall(
                rescale(model, method, length / CONTEXT),
                tokenizer,
                length,
                n,
                seed + length,
            )
            for length in LENGTHS
        ]
        longest = rescale(model, method, LENGTHS[-1] / CONTEXT)
        perplexities[method] = perplexity(longest, tokenizer, 16, seed)
        print(method, recalls[method], perplexities[method], flush=True)
    windows = [f"{low}–{high}" for low, high in pairwise((0, *LENGTHS))]
    return {
        "recall": table(LENGTHS, recalls, 3),
        "perplexity": table(windows, perplexities, 2),
    }


CARD = """# The demo model

A Llama of {parameters:,} parameters (3 layers, width 128, 4 heads of 32 over 2 key-value heads,
base 1000, trained context 256) that looks facts up in a text, to show what context extension
does and does not do. Made from nothing but a seed in {minutes:.0f} minutes on {threads} CPU cores
(shared with other work), from {tokens:.1f} M tokens of generated text, never longer than 256:

    python tools/train_demo_model.py --seed {seed} --tokens {tokens:.1f}e6 --threads {threads}

It speaks the closed little English of `ggext/data/demo_language.py` and nothing else:

> {example.document}
>
> {example.question}
>
> {example.answer}

Other words and other ways to ask get nonsense; a thing that the text does not name gets a place
all the same. Chat template (it writes the BOS token itself, `add_bos_token` is false):

    {template}

## Recall

Share of whole answers that are exact (greedy), {samples} texts a figure, {n_facts} facts anywhere
in each, story sentences between them. The text with question, answer and turn markers fills the
length; factor = length / 256. Nothing was tuned at a longer length.

{recall}

## Perplexity by position

Documents of 2048 tokens, factor 8, by position. Names, things and places are drawn by chance, so
no model comes far below the first figure.

{perplexity}

## Training and choice

Bare pairs of thing and place at 24 and 32 tokens, then chats at 72, 96, 160 and 256, each until
97 % of the places are right, earlier lengths mixed in; the loss on the answers, later with 0.02 to
0.2 of the loss on all tokens. A previous-token head and a matching head are started as such. Of
the checkpoints in the last 40 % that one was kept whose recall on 64 other texts a goal stays
furthest inside the goals (YaRN ≥ 0.95 at 1024 and ≥ 0.90 at 2048, unscaled ≤ 0.50 and ≤ 0.10): it
was chosen for good recall with YaRN and, within these bounds, for bad recall without.

The base too was chosen with these figures in view: a run at base 10000 (seed 1, stopped after
15 M tokens) reached 0.98 and 1.00 with YaRN on 64 texts, but up to 0.75 unscaled at 1024.
"""


def write_card(
    args: argparse.Namespace, parameters: int, minutes: float, tables: Mapping[str, str]
) -> None:
    card = CARD.format(
        **tables,
        parameters=parameters,
        minutes=minutes,
        tokens=args.tokens / 1e6,
        seed=args.seed,
        threads=args.threads,
        samples=args.samples,
        n_facts=language.RECALL_FACTS,
        example=language.recall_sample(Random(0), 80, 4),
        template=CHAT_TEMPLATE,
    )
    (args.out / "CARD.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the demo model and write its checkpoint."
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tokens", type=float, default=12e6, help="training tokens in all"
    )
    parser.add_argument(
        "--samples", type=int, default=400, help="recall samples a figure"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("ggext/data/demo-model"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    tokenizer, started = build_tokenizer(), time.monotonic()
    model = new_model(tokenizer.get_vocab_size())
    with torch.no_grad():
        seed_lookup(model)
    train(model, tokenizer, args.tokens, args.seed)
    minutes = (time.monotonic() - started) / 60
    with torch.no_grad():
        write_checkpoint(args.out, model, tokenizer)
        tables = measure(model, tokenizer, args.samples, args.seed)
    write_card(args, model.num_parameters(), minutes, tables)


if __name__ == "__main__":
    main()
