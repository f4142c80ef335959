"""Olive's data configurations: where the rows come from, and the template that makes text of them."""

import re
from pathlib import PurePath

from lib.azure.machine_learning import parse_data
from lib.config.training import Corpus, Split
from lib.data.readers import is_readable
from lib.olive.addresses import add_client_lines, find_datastore
from lib.olive.document import Block, Entry
from lib.olive.draft import FILL_IN, ZEROS, Draft
from lib.olive.templates import Converted, convert_template, join_columns

_FILES = ("json", "csv", "parquet", "pandas", "text", "arrow", "xml", "webdataset")  # loaders of datasets, not names
_LABELS = re.compile(
    r"(^|[_ .-])(tone|labels?|category|class|sentiment|emotion|intent|topic|type|genre|rating|stars|lang(uage)?)$",
    re.IGNORECASE,
)
_SLICE = re.compile(r"(\w+)\[(\d+)?%?:(\d+)?%?\]")
_CUT = "all rows are used; cut the file beforehand"
_NO_SPLITS = "a file has one split"
_QUESTION, _ANSWER = "question", "answer"
_ALPACA = (
    "Below is an instruction that describes a task{?input}, paired with an input that provides further context{/input}."
    " Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
    "{?input}### Input:\n{input}\n\n{/input}### Response: {output}"
)
_RANDOM = {
    "line-by-line-random": "rows are not drawn: each is trained in each epoch",
    "join-random": "blocks are not drawn",
    "join-sliding-window": "blocks do not overlap",
}


def convert_rows(draft: Draft, training: Block | None) -> None:
    """Set the sections data, corpus and split, and what of the training follows from the shape of the rows."""
    block = _find_rows(draft, training)
    if block is None:
        draft.set("data.files", ["data/mine.json"], f"{FILL_IN}: Olive's file names no rows")
        _set_template(draft, Converted("", [], []), "")
        if training is not None:
            draft.set(
                "finetune.loss",
                "completion",
                "Olive trains on all tokens, by default of joined rows: loss: all, corpus_strategy: join",
            )
    else:
        draft.take_entry(block, "data_config", "name")
        kind = draft.take_entry(block, "data_config", "type")
        if kind is not None and block.type != "huggingfacecontainer":
            draft.leave(kind, "read as HuggingfaceContainer, the only one with rows to train on")
        _convert_source(draft, block)
        _convert_text(draft, block)
    _convert_validation(draft, training, block)
    for other in draft.document.select("data_config"):
        if other is not block and not any(entry.path in draft.taken for entry in other.entries):
            draft.leave_block(other, "the training pass does not use it")


def _find_rows(draft: Draft, training: Block | None) -> Block | None:
    """Return the data configuration of the training pass, or the first one that holds rows."""
    every = [one for one in draft.document.select("data_config") if "dummy" not in one.type]
    entry = draft.take_entry(training, "training", "train_data_config") if training else None
    if entry is not None:
        if (found := draft.document.find_block("data_config", entry.value)) is not None:
            return found
        draft.leave(entry, "no data configuration has this name")
    return every[0] if every and entry is None else None


def _convert_source(draft: Draft, block: Block) -> None:
    name = draft.take_typed(block, str, "load_dataset_config", "data_name")
    split = draft.take_typed(block, str, "load_dataset_config", "split")
    if split and "[" in split:
        draft.leave(block.find("load_dataset_config", "split"), _CUT)  # type: ignore[arg-type]
    suffix = name if name in ("json", "csv", "parquet") else "json"
    whole = (split or "train").partition("[")[0]
    if block.find("address", "type") is not None:
        _convert_datastore(draft, block, suffix)
        if name and name not in _FILES:
            draft.leave(block.find("load_dataset_config", "data_name"), "read as a file")  # type: ignore[arg-type]
        if whole != "train":
            draft.leave(block.find("load_dataset_config", "split"), _NO_SPLITS)  # type: ignore[arg-type]
    elif name and name not in _FILES:
        _set_hub(draft, block, name, split)
        if (entry := block.find("load_dataset_config", "data_files")) is not None:
            draft.leave(entry, "of a dataset of the hub all files of the split are read")
    elif (entry := draft.take_entry(block, "load_dataset_config", "data_files")) is not None:
        _convert_files(draft, entry, whole, suffix)
        if whole != "train" and not isinstance(entry.value, dict):
            draft.leave(block.find("load_dataset_config", "split"), _NO_SPLITS)  # type: ignore[arg-type]
    else:
        draft.set("data.files", ["data/mine.json"], f"{FILL_IN}: Olive's file names no rows")


def _set_hub(draft: Draft, block: Block, name: str, split: str | None) -> None:
    draft.set("data.hub.id", name)
    draft.set(
        "data.hub.revision", ZEROS, f"{FILL_IN}: the commit of the dataset, 40 hex digits; Olive takes the latest"
    )
    whole = (split or "validation").partition("[")[0]  # load_dataset of Olive takes validation by default
    draft.set("data.hub.split", whole, "Olive's own choice" if split is None else "")
    if subset := draft.take_typed(block, str, "load_dataset_config", "subset"):
        draft.set("data.hub.config", subset)


def _convert_datastore(draft: Draft, block: Block, suffix: str) -> None:
    """Set data.source from the address of a datastore's file, or data.files from that of a local one."""
    add_client_lines(draft, block)
    address, shown = find_datastore(draft, block)
    if address is not None and not address.startswith("azureml:"):
        draft.set("data.files", [address])
        return
    try:
        usable = address is not None and is_readable(PurePath(parse_data(address).path))
    except ValueError:
        usable = False
    if usable:
        draft.set("data.source", address)
    else:
        store = draft.take(block, "address", "datastore_name")
        store = store if isinstance(store, str) and re.fullmatch(r"[\w-]+", store) else "workspaceblobstore"
        draft.set(
            "data.source",
            f"azureml://datastores/{store}/paths/rows.{suffix}",
            f"{FILL_IN}: the path in the datastore; Olive's file has {shown}",
        )
    draft.set("data.sha256", "0" * 64, f"{FILL_IN}: sha256sum of the file, since a datastore's files can change")


def _convert_files(draft: Draft, entry: Entry, split: str, suffix: str) -> None:
    value = entry.value
    if isinstance(value, dict) and split in value:
        others = [name for name in value if name != split]
        if others:
            draft.comment("data.files", f"those of Olive's split {split}; it also has {', '.join(map(str, others))}")
        value = value[split]
    files = [value] if isinstance(value, str) else value
    if isinstance(files, list) and files and all(isinstance(one, str) and one for one in files):
        if any(one.startswith("azureml://") for one in files):
            draft.set("data.source", files[0], *(f"{FILL_IN}: one file is read, not {one}" for one in files[1:]))
            draft.set("data.sha256", "0" * 64, f"{FILL_IN}: sha256sum of the file")
            if find_address_fault(files[0]) is None:
                return
            del draft.values["data.source"], draft.values["data.sha256"]
        elif not any("://" in one for one in files):
            draft.set("data.files", list(dict.fromkeys(files)))
            return
    draft.leave(entry, "rows come from files, the hub or a datastore")
    draft.set("data.files", [f"data/mine.{suffix}"], f"{FILL_IN}: the file with the rows")


def find_address_fault(uri: str) -> str | None:
    """Return why a datastore's address cannot be the source of rows, or None."""
    try:
        found = parse_data(uri)
    except ValueError as error:
        return str(error)
    return None if is_readable(PurePath(found.path)) else "no format that can be read"


def _convert_text(draft: Draft, block: Block) -> None:
    """Set the template, the target and the shape of the training sequences."""
    kind = "pre_process_data_config"
    shape = draft.take_entry(block, kind, "dataset_type")
    is_pair = shape is not None and shape.value == "pair"
    if shape is not None and shape.value not in ("corpus", "pair"):
        draft.leave(shape, "corpus or pair; read as corpus")
    if _convert_conversation(draft, block):
        draft.set("finetune.loss", "all", "As Olive trains.")
    elif is_pair:
        _convert_pair(draft, block)
        return
    else:
        _convert_template_keys(draft, block)
        draft.set("finetune.loss", "all", "As Olive trains.")
    _convert_strategy(draft, block)


def _convert_conversation(draft: Draft, block: Block) -> bool:
    entry = draft.take_entry(block, "pre_process_data_config", "chat_template")
    if entry is None or entry.value is False:
        return False
    if entry.value is not True:
        draft.leave(entry, "the tokenizer's own chat template is used")
    column = draft.take_typed(block, str, "pre_process_data_config", "message_col") or "messages"
    draft.set("task", "generation", "conversations; classification where the last turn is a label")
    draft.set("data.conversation", column)
    return True


def _convert_template_keys(draft: Draft, block: Block) -> None:
    kind = "pre_process_data_config"
    text = draft.take_typed(block, str, kind, "text_template")
    columns = draft.take_typed(block, (str, list), kind, "text_cols")
    names = [columns] if isinstance(columns, str) else columns or []
    if not all(isinstance(one, str) and one.strip() for one in names):
        draft.leave(block.find(kind, "text_cols"), "names of columns are texts")  # type: ignore[arg-type]
        names = []
    if text:
        template = convert_template(text)
        _set_template(draft, template, text)
        if not {*names} <= {*template.columns}:
            draft.leave(block.find(kind, "text_cols"), "the text_template has no such column")  # type: ignore[arg-type]
    else:
        _set_template(draft, join_columns(names or ["text"]), "the column " + ", ".join(names or ["text"]))


def _set_template(draft: Draft, template: Converted, original: str) -> None:
    """Set corpus.text_template, data.target and task; a text that is no template is filled in by a person."""
    for fault in template.faults:
        draft.comment("corpus.text_template", f"left out of Olive's template: {fault}")
    target = template.columns[-1] if template.columns else _ANSWER
    if len(set(template.columns)) < 2:
        template, target = Converted(f"{{{_QUESTION}}}\n{{{_ANSWER}}}", [_QUESTION, _ANSWER], []), _ANSWER
        whole = (
            f"Olive trains on {original or 'a text'} as a whole"
            if original
            else "Olive's file has no template of columns"
        )
        draft.comment("corpus.text_template", f"{FILL_IN}: {whole}; name the columns of question and answer")
        draft.comment("data.target", FILL_IN)
    elif template.columns.count(target) > 1:
        draft.comment("corpus.text_template", f"{FILL_IN}: it names the target {target} twice; only the last may stay")
    draft.set("corpus.text_template", template.text)
    draft.set("data.target", target, "the last column of the template: what stands before it is the prompt")
    _guess_task(draft, target)


def _guess_task(draft: Draft, target: str) -> None:
    if _LABELS.search(target):
        draft.set("task", "classification", f"guessed from the name {target}; generation if its values are free texts")
    else:
        draft.set("task", "generation", f"guessed from the name {target}; classification if its values are labels")


def _convert_pair(draft: Draft, block: Block) -> None:
    """Set the template of `dataset_type: pair`, which trains on the answer only."""
    kind = "pre_process_data_config"
    form = str(draft.take(block, kind, "pair_format") or "default").lower()
    if form == "alpaca":
        draft.set("corpus.text_template", _ALPACA)
        draft.set("data.target", "output")
        draft.set("data.optional_columns", ["input"])
        _guess_task(draft, "output")
    elif form in ("default", "custom"):
        halves = [_find_half(draft, block, half) for half in ("input", "output")]
        text = "".join(half.text for half in halves)
        columns = [name for half in halves for name in half.columns]
        _set_template(draft, Converted(text, columns, [fault for half in halves for fault in half.faults]), "")
    else:
        _set_template(draft, Converted("", [], [f"the format {form}"]), "")
    ignored = draft.take(block, kind, "ignore_source_in_labels")
    draft.set("finetune.loss", "all" if ignored is False else "completion")
    lengths = [draft.take_typed(block, int, kind, name) or 0 for name in ("source_max_len", "target_max_len")]
    if (total := sum(lengths)) >= 8:
        draft.set("corpus.max_length", min(total, 2**31 - 1), "source_max_len and target_max_len")


def _find_half(draft: Draft, block: Block, half: str) -> Converted:
    kind = "pre_process_data_config"
    text = draft.take_typed(block, str, kind, f"{half}_template")
    column = draft.take_typed(block, str, kind, f"{half}_col")
    return convert_template(text) if text else join_columns([column or half])


def _convert_strategy(draft: Draft, block: Block) -> None:
    """Set whether rows are joined to blocks, and how long a row or block may be."""
    kind = "pre_process_data_config"
    length_entry = draft.take_entry(block, kind, "max_seq_len", "source_max_len")
    entry = draft.take_entry(block, kind, "strategy", "corpus_strategy")
    is_old = length_entry is not None and length_entry.key == "source_max_len"
    strategy = str(entry.value) if entry is not None else "line-by-line" if is_old else "join"
    if entry is not None and strategy not in ("join", "line-by-line", *_RANDOM):
        draft.leave(entry, "a strategy that Olive does not have")
        strategy = "join"
    if entry is not None and strategy in _RANDOM:
        draft.leave(entry, f"{_RANDOM[strategy]}; {'join' if 'join' in strategy else 'rows'} is the nearest")
    length = 1024
    if length_entry and draft.set_checked("corpus.max_length", Corpus, length_entry, length_entry.value):
        length = length_entry.value
    if "corpus.max_length" not in draft.values:
        draft.set("corpus.max_length", length, "Olive's default")
    if strategy.startswith("join"):
        draft.set("finetune.corpus_strategy", "join")
        draft.comment(
            "finetune.loss",
            "For slmflow's own way (each row packed as a sequence, loss on the target only) delete loss,"
            " corpus_strategy and source_max_len; a batch then counts rows, not blocks of"
            f" {length} tokens, so choose steps and batch sizes anew",
        )
        draft.set("finetune.source_max_len", length)
        draft.comment("corpus.max_length", "longer rows are set aside; Olive cuts them where a block ends")
    elif "data.conversation" not in draft.values:  # which is never shortened
        draft.comment("finetune.loss", "slmflow's own way, completion, trains the target only")
        draft.set("corpus.truncation", "right", "as Olive cuts, but only the longest column")


def _convert_validation(draft: Draft, training: Block | None, rows: Block | None) -> None:
    """Set split.validation from eval_dataset_size, or from a second data configuration."""
    if training is None:
        return
    size = draft.take_entry(training, "training", "eval_dataset_size")
    named = draft.take_entry(training, "training", "eval_data_config")
    if named is not None and rows is not None:
        _convert_evaluation_rows(draft, named, rows)
        if size is not None:
            draft.leave(size, "without effect beside eval_data_config, as in Olive")
    elif size is not None:
        _convert_share(draft, size)


def _convert_share(draft: Draft, size: Entry) -> None:
    value = size.value
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1:
        draft.leave(size, "a number of blocks; slmflow sets a share of the rows aside: split.validation")
        draft.set("split.validation", 0.1, f"{FILL_IN}: Olive sets {value:g} blocks aside; this is a share of the rows")
        return
    if draft.set_checked("split.validation", Split, size, value, "a share of the rows; Olive's is of joined blocks"):
        _leave_room(draft, value)


def _leave_room(draft: Draft, share: float) -> None:
    """Make the test split smaller where validation leaves no rows for training."""
    if share + Split().test > 0.9:
        draft.set("split.test", round((1 - share) / 2, 4), "Olive has no test rows; they decide the gate here")


def _convert_evaluation_rows(draft: Draft, named: Entry, rows: Block) -> None:
    other = draft.document.find_block("data_config", named.value)
    if other is None or other is rows:
        draft.leave(named, "no data configuration of its own has this name")
        return
    files = [one.find("load_dataset_config", "data_files") for one in (rows, other)]
    splits = [one.find("load_dataset_config", "split") for one in (rows, other)]
    share = _find_share(*(str(entry.value) if entry else "" for entry in splits))
    if all(files) and files[0].value != files[1].value and _is_another_file(draft, files[1].value):  # type: ignore[union-attr]
        draft.values["data.files"] = {"train": draft.values["data.files"], "validation": [files[1].value]}  # type: ignore[union-attr]
        draft.comment("data.files", "the test rows are a share of those for training")
    elif share is not None:
        draft.set("split.validation", share, f"{splits[1].value} of Olive's rows")  # type: ignore[union-attr]
        _leave_room(draft, share)
        draft.left.pop(splits[0].path)  # type: ignore[union-attr]
    else:
        draft.leave(named, "slmflow makes its own splits: split.validation, or files by split")
        draft.leave_block(other, "see eval_data_config")
        return
    _settle_evaluation_rows(draft, rows, other)


def _is_another_file(draft: Draft, name: object) -> bool:
    return (
        isinstance(name, str)
        and bool(name)
        and "://" not in name
        and name not in draft.values.get("data.files", [name])
    )


def _settle_evaluation_rows(draft: Draft, rows: Block, other: Block) -> None:
    """Take what the two data configurations have in common, and leave out what only the other one says."""
    same = {(entry.kind, entry.key): entry.value for entry in rows.entries}
    for entry in other.entries:
        if same.get((entry.kind, entry.key)) == entry.value or entry.key in ("name", "split", "data_files"):
            draft.taken.add(entry.path)
        else:
            draft.leave(entry, "the rows for training are read in another way, which holds for both")


def _find_share(train: str, evaluation: str) -> float | None:
    """Return the share of validation rows where both are parts of one split: train[:70%] and train[70%:]."""
    found = [_SLICE.fullmatch(text) for text in (train, evaluation)]
    if not all(found) or "%" not in evaluation or found[0][1] != found[1][1]:  # type: ignore[index]
        return None
    start, end = (int(found[1][group] or default) for group, default in ((2, 0), (3, 100)))  # type: ignore[index]
    return round((end - start) / 100, 4) if 0 < end - start < 100 else None
