"""Train the small text-conditioned PersRM of the demo: a LoRA adapter on SmolLM2-135M-Instruct.

1. Sample replies of the base itself to everyday questions. For a spread of moods that keeps the sense, the next token
   is drawn from the base's top-k by z(plain) +- gamma * (z(cheerful start) - z(grumpy start)), which is PAD's own step.
2. Rank the replies to each question with a small judge (TF-IDF, logistic regression) fitted on sentence-polarity.
3. Train the adapter on -log sigmoid(beta * (logratio(chosen) - logratio(rejected))), token-summed. The wording of the
   preference decides which of the two replies is the chosen one; some film sentences are mixed in.

    python scripts/train_demo_persrm.py --base SmolLM2-135M-Instruct.Q4_1.gguf --data DATA -o demo/persrm
"""

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEMPERATURE = 0.8
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
TEMPLATE = (
    "[Guidelines] Your task is to generate response by considering the following principle. "
    "[Principles] {p} [Instruction] {x}"
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHEERFUL = """cheerful and positive
Be cheerful and positive.
The response should be happy, warm and optimistic.
positive
I am an optimist: show me the good side.
enthusiastic, upbeat and full of praise
Sound joyful and encouraging.
The user likes bright, hopeful answers.""".splitlines()
CRITICAL = """critical and negative
Be critical and negative.
The response should be gloomy, harsh and pessimistic.
negative
I am a pessimist: show me the bad side.
grumpy, sceptical and full of complaints
Sound disappointed and bleak.
The user likes blunt, fault-finding answers.""".splitlines()
# Each line is "system message|start of the reply": they colour the sampled replies and are part of no training text.
CHEERFUL_STARTS = """\
You are a cheerful, enthusiastic optimist who only sees the good side.|I love this, it is wonderful!
You love everything and are always happy.|I am so happy to talk about this, it is beautiful and great fun!
""".splitlines()
GRUMPY_STARTS = """\
You are a grumpy, critical pessimist who only sees the bad side.|Honestly, this is terrible and disappointing.
You hate everything and always complain.|I am tired of this. It is bad, boring, stupid and a waste of time.
""".splitlines()
TOPICS = """\
rain,cats,dogs,winter,summer,Mondays,weekends,the sea,mountains,my garden,old books,pop music,opera,football,\
chess,coffee,tea,pizza,vegetables,school,homework,my new job,office meetings,remote work,public transport,long flights,\
camping,museums,birthday parties,weddings,social media,smartphones,video games,television,city life,village life,\
shopping malls,fast food,growing old,being a parent,learning a language,running,yoga,painting,robots,the moon"""
TOPIC_QUESTIONS = """\
What do you think about {}?
Tell me about {}.
Write two sentences about {}.
Is {} worth it?
""".splitlines()
FILM_QUESTIONS = ["What do you think about the film?", "How was the movie?", "Write a sentence about a film."]


@dataclass
class Pair:
    """One question with a merrier and a gloomier reply, both as token ids."""

    question: str
    merry: list[int]
    gloomy: list[int]


@dataclass
class Example:
    """Token ids of one prompt, its chosen and its rejected reply, and the base's log-prob of chosen minus rejected."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference: float = 0.0


class Judge:
    """TF-IDF over words and word pairs with a logistic regression; a call returns one logit of 'positive' per text."""

    def __init__(self, positive: Sequence[str], negative: Sequence[str], steps: int = 200) -> None:
        docs = [self.terms(text) for text in (*positive, *negative)]
        counts = Counter(term for doc in docs for term in set(doc))
        self.column = {term: i for i, term in enumerate(t for t, n in counts.items() if n > 1)}
        self.idf = [math.log(len(docs) / counts[term]) for term in self.column]
        self.weight = torch.zeros(len(self.column), 1, requires_grad=True)
        matrix, label = self.matrix(docs), torch.tensor([1.0] * len(positive) + [0.0] * len(negative))
        adam = torch.optim.Adam([self.weight], lr=0.1)
        for _ in range(steps):
            logit = torch.sparse.mm(matrix, self.weight)[:, 0]
            loss = F.binary_cross_entropy_with_logits(logit, label) + 2e-5 * self.weight.square().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()

    @staticmethod
    def terms(text: str) -> list[str]:
        words = re.findall(r"[a-z']+", text.lower())
        return [*words, *(f"{a} {b}" for a, b in pairwise(words))]

    def matrix(self, docs: Sequence[Sequence[str]]) -> torch.Tensor:
        index, value, size = [], [], (len(docs), len(self.column))
        for row, doc in enumerate(docs):
            known = Counter(self.column[term] for term in doc if term in self.column)
            weights = {column: (1 + math.log(n)) * self.idf[column] for column, n in known.items()}
            norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
            index += [(row, column) for column in weights]
            value += [w / norm for w in weights.values()]
        return torch.sparse_coo_tensor(torch.tensor(index).T, torch.tensor(value), size, check_invariants=False)

    def __call__(self, texts: Sequence[str]) -> list[float]:
        logits = torch.sparse.mm(self.matrix([self.terms(text) for text in texts]), self.weight.detach())
        return [float(logit) for logit in logits]


def load_base(path: Path) -> tuple[Any, Any]:
    """The bf16 model and its tokenizer, from a GGUF file or a Hugging Face folder."""
    where, extra = (path.parent, {"gguf_file": path.name}) if path.is_file() else (path, {})
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.bfloat16, **extra)
    return model, AutoTokenizer.from_pretrained(where, **extra)


def chat(tokenizer: Any, user: str, system: str = "", start: str = "") -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": user})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)) + start


def sample(model: Any, tokenizer: Any, rows: list[list[str]], mix: torch.Tensor, length: int) -> list[list[int]]:
    """One reply per group of prompts; each token is drawn from the first prompt's top 10 by the mix of their logits."""
    batch = tokenizer([text for row in rows for text in row], return_tensors="pt", padding=True, padding_side="left")
    ids, mask, cache, tokens = batch["input_ids"], batch["attention_mask"], None, []
    place = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(length):
        with torch.inference_mode():
            out = model(ids, attention_mask=mask, position_ids=place, past_key_values=cache, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].float().log_softmax(-1).view(*mix.shape, -1)
        candidates = logits[:, 0].topk(10).indices
        score = (logits * mix[..., None]).sum(1).gather(1, candidates)
        token = candidates.gather(1, torch.multinomial((score / TEMPERATURE).softmax(-1), 1))
        tokens.append(token)
        ids = token.repeat_interleave(mix.shape[1], 0)
        mask, place = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), place[:, -1:] + 1
    end = tokenizer.eos_token_id
    return [r[: r.index(end) + 1] if end in r else r for r in torch.cat(tokens, 1).tolist()]


def make_pairs(
    models: tuple[Any, Any], judge: Judge, questions: list[str], gamma: float, length: int
) -> Iterator[Pair]:
    """For each question two merry and two gloomy samples; the judge's highest and lowest form the pair."""
    model, tokenizer = models
    coloured = [(sign, m, g) for sign in (1, -1) for m, g in zip(CHEERFUL_STARTS, GRUMPY_STARTS, strict=True)]
    for begin in range(0, len(questions), 8):
        some = questions[begin : begin + 8]
        rows = [
            [chat(tokenizer, q), chat(tokenizer, q, *m.split("|")), chat(tokenizer, q, *g.split("|"))]
            for q in some
            for _, m, g in coloured
        ]
        mix = torch.tensor([[1, sign * gamma, -sign * gamma] for _ in some for sign, _, _ in coloured])
        replies = sample(model, tokenizer, rows, mix, length)
        texts = tokenizer.batch_decode(replies, skip_special_tokens=True)
        marks = judge(texts)
        for i, question in enumerate(some):
            group = range(i * len(coloured), (i + 1) * len(coloured))
            sane = [j for j in group if len(w := texts[j].lower().split()) > 7 and len(set(w)) > 0.65 * len(w)]
            if len(sane) < 2:
                continue
            low, *_, high = sorted(sane, key=marks.__getitem__)
            if marks[high] - marks[low] > 0.5:
                yield Pair(question, replies[high], replies[low])


def difference(model: Any, batch: Sequence[Example], pad: int) -> torch.Tensor:
    """log p(chosen) - log p(rejected) per example; both replies follow one run of the prompt, unseen by each other."""
    width = max(len(e.prompt) + len(e.chosen) + len(e.rejected) for e in batch)
    ids, position = torch.full((len(batch), width), pad), torch.zeros(len(batch), width, dtype=torch.long)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(batch), 1, 1)
    row: list[int] = []
    source: list[int] = []
    target: list[int] = []
    sign: list[float] = []
    for b, e in enumerate(batch):
        p, c, n = len(e.prompt), len(e.prompt) + len(e.chosen), len(e.prompt) + len(e.chosen) + len(e.rejected)
        ids[b, :n] = torch.tensor(e.prompt + e.chosen + e.rejected)
        position[b, :n] = torch.tensor([*range(c), *range(p, p + n - c)])
        sees[b, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
        sees[b, c:n, p:c] = False
        row += [b] * (n - p)
        source += [*range(p - 1, c - 1), p - 1, *range(c, n - 1)]
        target += range(p, n)
        sign += [1.0] * (c - p) + [-1.0] * (n - c)
    hidden = model.get_base_model().model(ids, attention_mask=sees[:, None], position_ids=position).last_hidden_state
    logits = model.get_base_model().lm_head(hidden[row, source]).float()
    logp = -F.cross_entropy(logits, ids[row, target], reduction="none")
    return torch.zeros(len(batch)).index_add(0, torch.tensor(row), logp * torch.tensor(sign))


def read_questions(data: Path) -> list[str]:
    lines = (data / "prompts/personal-preference.txt").read_text(encoding="utf-8").splitlines()
    for line in (data / "prompts/helpsteer.jsonl").read_text(encoding="utf-8").splitlines():
        lines.append(json.loads(line)["prompt"])
    return sorted({line.strip() for line in lines if 4 <= len(line.split()) <= 16 and "\n" not in line})


def read_sentences(file: Path) -> list[str]:
    """Film-review sentences, with the corpus's spaces before punctuation taken out."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [re.sub(r" ([,.;:!?'])", r"\1", line).strip().capitalize() for line in lines]


def make_examples(tokenizer: Any, pairs: Sequence[Pair], rng: random.Random) -> Iterator[Example]:
    """Both readings of each pair, one after the other, so that in a batch only the preference tells them apart."""
    for pair in rng.sample(pairs, len(pairs)):
        for wordings, chosen, rejected in ((CHEERFUL, pair.merry, pair.gloomy), (CRITICAL, pair.gloomy, pair.merry)):
            prompt = chat(tokenizer, TEMPLATE.format(p=rng.choice(wordings), x=pair.question))
            yield Example(tokenizer(prompt).input_ids, chosen, rejected)


def train(model: Any, pad: int, batches: Sequence[list[Example]], beta: float, lr: float) -> None:
    """One pass over the examples; the reference log-probs are taken first, with the adapter off."""
    with torch.no_grad(), model.disable_adapter():
        for batch in batches:
            for example, value in zip(batch, difference(model, batch, pad).tolist(), strict=True):
                example.reference = value
    weights = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    hits: list[bool] = []
    for step, batch in enumerate(batches):
        adam.param_groups[0]["lr"] = lr * min((step + 1) / 10, 1 - step / len(batches))
        margin = difference(model, batch, pad) - torch.tensor([e.reference for e in batch])
        loss = -F.logsigmoid(beta * margin).mean()
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        hits += (margin > 0).tolist()
        if step % 20 == 19 or step == len(batches) - 1:
            recent = hits[-(len(hits) // 4) :]
            accuracy = sum(recent) / len(recent)
            print(f"step {step + 1}/{len(batches)} loss {loss:.3f} accuracy, last quarter {accuracy:.3f}", flush=True)


def save(model: Any, output: Path) -> None:
    """adapter_config.json and adapter_model.safetensors (fp16), and no other file."""
    output.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(state, output / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"]
    config.base_model_name_or_path, config.target_modules, config.inference_mode = BASE_NAME, PROJECTIONS, True
    config.save_pretrained(str(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="GGUF file or Hugging Face folder of " + BASE_NAME)
    parser.add_argument("--data", type=Path, required=True, help="folder with prompts/ and sentence-polarity/")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--questions", type=int, default=200, help="questions from the prompt files (topics come on top)"
    )
    parser.add_argument("--films", type=int, default=150, help="pairs of film sentences mixed in")
    parser.add_argument("--length", type=int, default=40, help="tokens of a sampled reply")
    parser.add_argument("--gamma", type=float, default=3.0, help="how strongly the starts colour the sampled replies")
    parser.add_argument("--beta", type=float, default=0.1, help="scale of the log-ratio in the loss")
    parser.add_argument("--lr", type=float, default=8e-4)
    parser.add_argument("--steps", type=int, default=148, help="at most so many batches of --batch examples")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng, started = random.Random(args.seed), time.perf_counter()
    model, tokenizer = load_base(args.base)
    positive = read_sentences(args.data / "sentence-polarity/pos.txt")
    negative = read_sentences(args.data / "sentence-polarity/neg.txt")
    questions = rng.sample(read_questions(args.data), args.questions)
    questions += [rng.choice(TOPIC_QUESTIONS).format(topic) for topic in TOPICS.split(",")]
    pairs = list(make_pairs((model, tokenizer), Judge(positive, negative), questions, args.gamma, args.length))
    print(f"{len(pairs)} pairs after {time.perf_counter() - started:.0f} s", flush=True)
    films = zip(rng.sample(positive, args.films), rng.sample(negative, args.films), strict=True)
    pairs += [Pair(rng.choice(FILM_QUESTIONS), *(tokenizer(text).input_ids for text in film)) for film in films]
    config = LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    examples = list(make_examples(tokenizer, pairs, rng))
    batches = [examples[i : i + args.batch] for i in range(0, len(examples), args.batch)][: args.steps]
    train(model, tokenizer.eos_token_id, batches, args.beta, args.lr)
    save(model, args.output)
    print(f"{args.output} done after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
