"""Score a PyTorch checkpoint, with or without an adapter, on the rows of one split.

Classification: each label's probability as the answer, end token included, and the most probable
one; the prompt is computed once, whatever the number of labels. Generation: probability of the
reference. Both: free greedy answers on the first rows, which show whether the model stops.
"""

import argparse
from pathlib import Path

from lib.core.cli import build_parser, parse_settings, report_loaded, run
from lib.core.layout import SPLITS
from lib.data.corpus import load_template, read_corpus
from lib.data.tokenizer import load_tokenizer
from lib.evaluation.scoring import write_score
from lib.evaluation.torch_scorer import add_answers, score_labels, score_references
from lib.hardware.device import use_threads
from lib.hardware.onednn import use_onednn
from lib.models.loading import load_adapter, load_model
from lib.provenance.manifests import read_manifest


def main(args: argparse.Namespace) -> None:
    use_threads(args.threads)
    for folder in filter(None, (args.model, args.adapter)):
        read_manifest(folder)
    template, tokenizer = load_template(args.template), load_tokenizer(args.model)
    rows = read_corpus(args.rows)
    # An adapter of a 4-bit base is scored on that base, as it was trained.
    quantization = read_manifest(args.adapter)["quantization"] if args.adapter else None
    model = load_model(args.model, quantization=quantization)
    if args.adapter:
        model = load_adapter(model, args.adapter)
    use_onednn(model.requires_grad_(False))
    report_loaded()
    evaluate = args.settings["evaluate"]
    score = score_labels if template["task"] == "classification" else score_references
    predictions = score(model, tokenizer, template, rows, evaluate["batch_size"])
    add_answers(model, tokenizer, template, rows, predictions, evaluate)
    write_score(
        output=args.output,
        predictions_file=args.predictions,
        predictions=predictions,
        stage=args.stage,
        split=args.split,
        settings=args.settings,
        template=template,
        inputs={"rows": args.rows, "model": args.adapter or args.model, "template": args.template},
    )


if __name__ == "__main__":
    arguments = build_parser(__doc__)
    arguments.add_argument("--settings", type=parse_settings, required=True, help="task, seed, evaluate, versions")
    arguments.add_argument("--model", type=Path, required=True, help="folder of the model")
    arguments.add_argument("--adapter", type=Path, help="folder of an adapter to put on it")
    arguments.add_argument("--rows", type=Path, required=True, help="corpus/SPLIT.jsonl")
    arguments.add_argument("--template", type=Path, required=True, help="corpus/template.json")
    arguments.add_argument("--stage", required=True, help="name of the stage, for the score file")
    arguments.add_argument("--split", required=True, choices=SPLITS)
    arguments.add_argument("--output", type=Path, required=True, help="score to write")
    arguments.add_argument("--predictions", type=Path, required=True, help="predictions of every row, to write")
    arguments.add_argument("--threads", type=int, default=2)
    run(arguments, main)
