"""Rows as training batches: what is supervised, how much it counts, in which order, padded on the left.

Left padding puts all answers at the end, so the vocabulary head, a third of a small model's work,
runs on the last positions only (`logits_to_keep`), through the model's own forward.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch

from lib.core.cli import fail
from lib.data.tokenizer import Tokenizer, encode_pairs, is_cut_between_tokens

IGNORED = -100  # label of a position without loss, as in torch.nn.functional.cross_entropy


class Example(TypedDict):
    """One sequence: ids and, position by position, the same id where it is supervised.

    weight: how much the loss of its tokens counts; left out where all sequences count the same.
    """

    input_ids: list[int]
    labels: list[int]
    weight: NotRequired[float]


def encode_rows(tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], *, loss: str, max_length: int) -> list[Example]:
    """Return each row as a sequence of its own. loss: `completion` (answer and end token) or `all`.

    Raises `UserError` for a row without a supervised token or longer than the model's `max_length`.
    """
    examples: list[Example] = []
    for row, (prompt, completion) in zip(
        rows, encode_pairs(tokenizer, [(row["prompt"], row["completion"]) for row in rows]), strict=True
    ):
        ids = prompt + completion
        if not completion or completion[-1] not in tokenizer.end_ids:
            fail(f"row {row['id'][:12]}: the answer does not end with an end token", "make the corpus again")
        if len(ids) > max_length:
            fail(f"row {row['id'][:12]} has {len(ids)} tokens, the model takes {max_length}", "lower corpus.max_length")
        # Nothing predicts the first token of a sequence, so it is never supervised.
        earlier = _label_spans(tokenizer, row, prompt) if "spans" in row else [IGNORED] * len(prompt)
        labels = [IGNORED, *ids[1:]] if loss == "all" else earlier + completion
        examples.append({"input_ids": ids, "labels": labels})
    return examples


def _label_spans(tokenizer: Tokenizer, row: dict[str, Any], ids: Sequence[int]) -> list[int]:
    """Return the labels of a prompt: the ids within the row's spans, which are earlier supervised turns.

    Raises `UserError` when a span begins or ends inside a token.
    """
    if not is_cut_between_tokens(tokenizer, row["prompt"], row["spans"]):
        fail(f"row {row['id'][:12]}: a supervised turn begins or ends inside a token", "make the corpus again")
    offsets = tokenizer.backend.encode(row["prompt"], add_special_tokens=False).offsets
    within = [any(first <= start and end <= last for first, last in row["spans"]) for start, end in offsets]
    return [id_ if inside else IGNORED for id_, inside in zip(ids, within, strict=True)]


def join_rows(examples: Sequence[Example], length: int) -> list[Example]:
    """Return rows joined in their order and cut into blocks of `length` tokens, as Olive's `join` does.

    Unlike there the last, shorter block is kept: no token is lost.
    """
    stream = [id_ for example in examples for id_ in example["input_ids"]]
    blocks = [stream[start : start + length] for start in range(0, len(stream), length)]
    return [{"input_ids": block, "labels": [IGNORED, *block[1:]]} for block in blocks if len(block) > 1]


def compute_class_weights(labels: Sequence[str]) -> dict[str, float]:
    """Weight of a row of each class, n / (k * n_class), so that all k classes count the same.

    As scikit-learn's "balanced" (King & Zeng 2001); the mean over the n rows is 1. Sorted by class.
    """
    counts = Counter(labels)
    return {label: len(labels) / (len(counts) * counts[label]) for label in sorted(counts)}


def weight_examples(examples: Sequence[Example], labels: Sequence[str]) -> list[Example]:
    """Return each example with the weight of its class; `labels`: the class of each."""
    weights = compute_class_weights(labels)
    return [{**example, "weight": weights[label]} for example, label in zip(examples, labels, strict=True)]


@dataclass(frozen=True)
class Collator:
    """Pads a batch on the left.

    Returns input_ids, attention_mask, position_ids and labels, each [rows, longest row],
    `logits_to_keep`: number of last positions whose logits are needed (one more than supervised,
    since position t is predicted at t - 1), and `real_tokens`, which are not padding. Of examples with
    a weight also `weights` [rows, longest row]: it, where a label is supervised, else 0.
    """

    pad_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        longest = max(len(example["input_ids"]) for example in examples)
        input_ids = torch.full((len(examples), longest), self.pad_id)
        labels = torch.full((len(examples), longest), IGNORED)
        mask = torch.zeros((len(examples), longest), dtype=torch.long)
        for index, example in enumerate(examples):
            size = len(example["input_ids"])
            input_ids[index, longest - size :] = torch.tensor(example["input_ids"])
            labels[index, longest - size :] = torch.tensor(example["labels"])
            mask[index, longest - size :] = 1
        supervised = (labels != IGNORED).any(dim=0).nonzero()
        if len(supervised) == 0:
            raise ValueError("a batch without a supervised token")
        batch = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "labels": labels,
            "logits_to_keep": longest - int(supervised[0]) + 1,
            "real_tokens": int(mask.sum()),
        }
        if "weight" in examples[0]:
            of_rows = torch.tensor([example["weight"] for example in examples])
            batch["weights"] = (labels != IGNORED) * of_rows[:, None]
        return batch


def compute_completion_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return cross entropy summed over supervised tokens, divided by their number in the whole optimizer step.

    outputs.logits: [rows, logits_to_keep, vocabulary], each predicting the label behind it, the last
    nothing; labels and weights: [rows, tokens]. With weights each token's loss is multiplied by its own,
    and their sum stands for the number. Dividing by the step's own number makes gradient accumulation
    equal to one large batch.
    """
    kept = outputs.logits.shape[1] - 1
    logits = outputs.logits[:, :-1].float().flatten(0, 1)
    targets = labels[:, -kept:].flatten()
    if weights is None:
        total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())
    losses = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    total = (losses * weights[:, -kept:].flatten()).sum()
    return total / (num_items_in_batch if num_items_in_batch is not None else weights.sum())


class EpochOrder(torch.utils.data.Sampler[int]):
    """Shuffled order of the rows, the same for the same seed and epoch whatever was drawn before.

    So a resumed run continues with exactly the rows that are left. With `lengths`, rows of like length
    stand together: within 50 shuffled batches rows are sorted by length, then the batches are shuffled
    again; the longest comes first, so that memory runs out at once or never.

    With `classes`, the class of each row, rows of smaller classes come more than once in an epoch, so
    that each class comes as often as the largest; which rows come once more than others is drawn again
    in each epoch.
    """

    def __init__(
        self,
        rows: int,
        *,
        seed: int,
        batch: int,
        lengths: Sequence[int] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.rows, self.seed, self.batch, self.lengths, self.epoch = rows, seed, batch, lengths, 0
        self.members: dict[str, list[int]] = {}
        for row, label in enumerate(classes or ()):
            self.members.setdefault(label, []).append(row)
        self.largest = max(map(len, self.members.values()), default=0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Return rows drawn in an epoch."""
        return self.largest * len(self.members) or self.rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        if self.members:
            drawn = self._drawn(generator)
            order = [drawn[place] for place in order]
        if self.lengths is None:
            return iter(order)
        lengths = self.lengths
        window = 50 * self.batch
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda row: -lengths[row])
            batches += [near[place : place + self.batch] for place in range(0, len(near), self.batch)]
        full = [batch for batch in batches if len(batch) == self.batch]
        rest = [batch for batch in batches if len(batch) < self.batch]
        shuffled = [full[place] for place in torch.randperm(len(full), generator=generator).tolist()]
        shuffled.sort(key=lambda batch: lengths[batch[0]] < max(lengths))  # stable: the longest first
        return iter([row for batch in [*shuffled, *rest] for row in batch])

    def _drawn(self, generator: torch.Generator) -> list[int]:
        """Return the rows of an epoch, class by class: each as often as all can be, some once more."""
        drawn: list[int] = []
        for rows in self.members.values():
            often, rest = divmod(self.largest, len(rows))
            once_more = torch.randperm(len(rows), generator=generator)[:rest].tolist()
            drawn += rows * often + [rows[place] for place in once_more]
        return drawn


class DistributedBatchSampler(torch.utils.data.Sampler[list[int]]):
    """Batches of row numbers for one of `size` processes: of every `size` batches of the order one.

    Where an epoch's rows run out, the batch is `[filler]`, the number of a row that counts nothing, so that all
    processes take the same number of batches.
    """

    def __init__(self, order: EpochOrder, batch: int, *, rank: int, size: int, filler: int) -> None:
        self.order, self.batch, self.rank, self.size, self.filler = order, batch, rank, size, filler

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // (self.batch * self.size))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        batches = [rows[start : start + self.batch] for start in range(0, len(rows), self.batch)]
        batches += [[self.filler]] * (-len(batches) % self.size)
        return iter(batches[self.rank :: self.size])


def split_batch(batch: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Batch and accumulation of each process, so that all together take the same rows a step as one process does.

    The batch is as large as it may be, at most `batch`. Raises `UserError` when the rows of a step cannot be divided.
    """
    rows = batch * accumulation
    if rows % processes:
        fail(
            f"{rows} rows a step cannot be divided among {processes} processes",
            "let per_device_train_batch_size times gradient_accumulation_steps be a multiple, or take fewer GPUs",
            at="finetune",
        )
    own = rows // processes
    times = next(times for times in range(1, own + 1) if own % times == 0 and own // times <= batch)
    return own // times, times
