"""The trainer: GRPO with DAPO's asymmetric clip and token-level mean, and truncated importance
sampling (TIS) between the engine that sampled and the trainer that learns.

    A      = (reward - mean) / std, see `advantages_of`
    ratio  = pi_new / pi_old, both by the trainer; pi_old before the first update of the step
    weight = min(pi_old / pi_rollout, C); 1 without TIS
    gain   = min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)
    loss   = -sum over tokens of weight * gain / tokens

Answers without a token whose A is not 0 teach nothing and are left out, as in DAPO. Sources: arXiv
2402.03300 (GRPO; 4.1.3 for rewards of steps), 2503.14476 (DAPO); TIS in its token-level form.
"""

import dataclasses
import hashlib
import statistics
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from model import Qwen3
from rollout import Sample

TIS_MAX = 2.0  # C, and where clipped shares are reported also without TIS.
MISMATCH_ANSWERS = 64  # Of a step, scored whole to compare trainer and engine.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the trainer does with a step's answers."""

    learning_rate: float = 1.5e-4  # After the warm-up; then it falls linearly, to 1/10 at the end.
    warmup_steps: int = 2
    steps: int = 12
    updates_per_step: int = 1  # Parts that the answers are cut into, one update each.
    credit: str = "line"  # What is rewarded: each "line" of an answer, or the "answer" as a whole.
    clip_low: float = 0.2
    clip_high: float = 0.28  # DAPO's clip-higher.
    grad_norm_max: float = 1.0
    tis: bool = True
    micro_tokens: int = 8192  # Padded tokens of one forward pass; memory, not arithmetic.

    def rate(self, step: int) -> float:
        """The share of the learning rate that update `step` (from 0) takes."""
        return min((step + 1) / (self.warmup_steps + 1), 1.0 - 0.9 * step / self.steps)


@dataclasses.dataclass
class Row:
    """One answer as the trainer sees it. `old` is filled in when the trainer has scored it."""

    ids: list[int]  # Prompt and answer.
    num_scored: int  # Tokens of the answer.
    rollout: list[float]  # Their logprobs in the engine.
    advantages: list[float]
    old: torch.Tensor | None = None


def rows_of(groups: list[list[Sample]], credit: str) -> list[Row]:
    """The answers that teach something, each up to its last token that does."""
    rows = []
    for group in groups:
        for sample, advantages in zip(group, advantages_of(group, credit), strict=True):
            count = max((t + 1 for t, advantage in enumerate(advantages) if advantage), default=0)
            if count:
                rows.append(row_of(sample, advantages[:count]))
    return rows


def row_of(sample: Sample, advantages: list[float]) -> Row:
    """The first tokens of an answer, as many as there are advantages."""
    count = len(advantages)
    return Row(sample.prompt_ids + sample.output_ids[:count], count, sample.logprobs[:count],
               advantages)


def advantages_of(group: list[Sample], credit: str) -> list[list[float]]:
    """The advantage of every token of every answer to one problem.

    By answer, all tokens get (reward - mean) / std. By line, those of line k get the same of
    whether the line is right, among the answers whose lines before it all are: their state is the
    same, so the mean is a baseline of this very state. What follows a wrong line gets 0.
    """
    if credit == "answer":
        spans = [[(len(sample.output_ids), sample.reward)] for sample in group]
    else:
        spans = [[(end, float(right)) for end, right in sample.lines] for sample in group]
    advantages = [[0.0] * len(sample.output_ids) for sample in group]
    for k in range(max(map(len, spans))):
        rewards = [lines[k][1] for lines in spans if k < len(lines)]
        mean, std = statistics.fmean(rewards), statistics.pstdev(rewards)
        for lines, tokens in zip(spans, advantages, strict=True):
            if std > 0.0 and k < len(lines):
                begin = lines[k - 1][0] if k > 0 else 0
                end, reward = lines[k]
                tokens[begin:end] = [(reward - mean) / std] * (end - begin)
    return advantages


def batches_of(rows: list[Row], tokens_max: int, multiple: int) -> list[list[Row]]:
    """Rows of like length together, at most `tokens_max` padded tokens each.

    Their number is a multiple of `multiple` (ranks run in step); the last may be empty.
    """
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        if not batches or (len(batches[-1]) + 1) * len(batches[-1][0].ids) > tokens_max:
            batches.append([])
        batches[-1].append(row)
    return batches + [[] for _ in range(-len(batches) % multiple)]


def padded(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """ids int64 and scored bool, both [rows, tokens]; an empty batch is two tokens, none scored."""
    width = max((len(row.ids) for row in rows), default=2)
    ids = torch.zeros(max(len(rows), 1), width, dtype=torch.int64)
    scored = torch.zeros(ids.shape, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        scored[i, len(row.ids) - row.num_scored : len(row.ids)] = True
    return ids, scored


def policy_loss(new: torch.Tensor, rows: list[Row],
                recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the loss over tokens, number of tokens whose ratio was clipped).

    `new` [tokens] has the logprobs of all scored tokens, row by row.
    """
    if not rows:
        return new.sum(), torch.zeros(())
    advantage = torch.tensor([x for row in rows for x in row.advantages])
    old = torch.cat([row.old for row in rows])
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1.0 - recipe.clip_low, 1.0 + recipe.clip_high)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if recipe.tis:
        rollout = torch.tensor([x for row in rows for x in row.rollout])
        gain = gain * torch.exp(old - rollout).clamp(max=TIS_MAX)
    return -gain.sum(), (clipped * advantage < ratio * advantage).sum()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a step saw.

    The first four are means over all tokens of MISMATCH_ANSWERS whole answers, before the updates.
    With r = log(pi_trainer / pi_rollout) on tokens that the engine sampled, k3 = exp(r) - 1 - r has
    the mean KL(pi_rollout || pi_trainer).
    """

    k3: float
    abs_dlogp: float
    tis_clipped: float  # Share of tokens with exp(r) > C, whether TIS is on or not.
    compared_tokens: int
    ratio_clipped: float = 0.0  # Share of the learned tokens whose ratio the policy's clip stopped.
    grad_norm: float = 0.0  # Mean over the updates, before it was limited.
    learned_tokens: int = 0


class Trainer:
    """FP32 masters under AdamW, in this process or sharded by FSDP2 over a process group."""

    def __init__(self, model: Qwen3, recipe: Recipe, device: str = "cpu"):
        self.model = model.to(device)
        self.device = device
        self.recipe = recipe
        self.rank, self.world = 0, 1
        if dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
            shard(model, self.world)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate,
                                           betas=(0.9, 0.95), weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, recipe.rate)

    def step(self, groups: list[list[Sample]]) -> Report:
        """All updates of one step. Every rank gets the same answers and works on its share."""
        report = self.compare([sample for group in groups for sample in group])
        rows = rows_of(groups, self.recipe.credit)
        count = self.recipe.updates_per_step
        parts = [batches_of(rows[i::count], self.recipe.micro_tokens, self.world)
                 for i in range(count)]
        if count > 1:  # Else the only update scores on its way.
            for part in parts:
                self.score(part)
        clipped, norms = 0.0, []
        for part in parts:
            clipped += self.backward(part)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.grad_norm_max)
            norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.schedule.step()
        learned = sum(row.num_scored for row in rows)
        return dataclasses.replace(report, learned_tokens=learned,
                                   ratio_clipped=self.total(torch.tensor([clipped]))[0] / learned
                                   if learned else 0.0, grad_norm=statistics.fmean(norms))

    def compare(self, samples: list[Sample]) -> Report:
        """Trainer against engine, over whole answers spread over the step's."""
        chosen = samples[:: max(1, len(samples) // MISMATCH_ANSWERS)]
        rows = [row_of(sample, [0.0] * len(sample.output_ids)) for sample in chosen]
        batches = batches_of(rows, self.recipe.micro_tokens, self.world)
        self.score(batches)
        sums = torch.zeros(4)
        for row in (row for batch in self.mine(batches) for row in batch):
            r = row.old - torch.tensor(row.rollout)
            terms = (torch.expm1(r) - r, r.abs(), r.exp() > TIS_MAX, torch.ones_like(r))
            sums += torch.stack([term.sum() for term in terms])
        k3, abs_dlogp, clipped, tokens = self.total(sums)
        return Report(k3 / tokens, abs_dlogp / tokens, clipped / tokens, int(tokens))

    def mine(self, batches: list[list[Row]]) -> list[list[Row]]:
        return batches[self.rank :: self.world]

    def total(self, sums: torch.Tensor) -> list[float]:
        """The sum over all ranks."""
        if self.world > 1:
            dist.all_reduce(sums)
        return sums.tolist()

    def logprobs(self, batch: list[Row]) -> torch.Tensor:
        """Of all scored tokens of a batch, row by row, on the CPU."""
        ids, scored = padded(batch)
        return self.model(ids.to(self.device), scored.to(self.device)).cpu()

    def score(self, batches: list[list[Row]]) -> None:
        """Fills `old` of this rank's rows."""
        with torch.no_grad():
            for batch in self.mine(batches):
                keep_old(batch, self.logprobs(batch))

    def backward(self, batches: list[list[Row]]) -> float:
        """Gradients of one update; the number of tokens whose ratio was clipped."""
        num_tokens = sum(row.num_scored for batch in batches for row in batch)
        clipped = 0.0
        for batch in self.mine(batches):
            new = self.logprobs(batch)
            if any(row.old is None for row in batch):
                keep_old(batch, new.detach())
            loss, num_clipped = policy_loss(new, batch, self.recipe)
            (loss * (self.world / num_tokens)).backward()  # FSDP2 takes the mean over ranks.
            clipped += float(num_clipped)
        return clipped

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, whole FP32 tensor) of every parameter. All ranks must iterate."""
        for name, tensor in self.model.state_dict().items():
            yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def digest(self) -> str:
        """A hash of the names and bytes of this rank's masters."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.model.state_dict().items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            digest.update(name.encode())
            digest.update(local.cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()


def shard(model: Qwen3, world: int) -> None:
    """FSDP2 over `world` processes: parameters travel in the model's compute type."""
    precision = MixedPrecisionPolicy(param_dtype=model.compute, reduce_dtype=torch.float32)
    mesh = dist.init_device_mesh("cpu", (world,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)


def keep_old(rows: list[Row], logprobs: torch.Tensor) -> None:
    """Hands each row its part of the logprobs of a batch."""
    for row, old in zip(rows, logprobs.split([row.num_scored for row in rows]), strict=False):
        row.old = old
