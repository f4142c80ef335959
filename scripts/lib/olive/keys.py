"""What becomes of every key of a Microsoft Olive configuration: the one table that importer and docs/olive.md share.

Read in Olive's source: 0.6 (hf_config, eval_dataset_size) and 0.13 (HfModel, flat passes). A kind is a place of the
configuration, such as a training pass or its `training_args`; older names of a key have entries of their own.
"""

from types import MappingProxyType
from typing import NamedTuple


class Key(NamedTuple):
    """to: keys of slmflow that it becomes, `profile` for what a profile holds, empty where it has no counterpart.

    says: what changes on the way, or why it has none.
    """

    to: str = ""
    says: str = ""


# Keys whose values belong to the place that they stand in, or are one of their own: {kind: {key: kind of what is in}}.
_COMPONENTS = {
    "load_dataset": "load_dataset_config",
    "pre_process_data": "pre_process_data_config",
    "post_process_data": "other_data_config",
    "dataloader": "other_data_config",
}
PLACES: dict[str, dict[str, str]] = {
    "document": {"input_model": "input_model", "engine": "engine", "azureml_client": "azureml_client"},
    "engine": {},
    "input_model": {
        **{"config": "input_model", "hf_config": "input_model", "model_path": "address"},
        **dict.fromkeys(("load_kwargs", "model_loading_args", "from_pretrained_args"), "load_kwargs"),
    },
    "load_kwargs": {"extra_args": "load_kwargs"},
    "data_config": {
        **dict.fromkeys(("params_config", "load_dataset_config"), "load_dataset_config"),
        **{"pre_process_data_config": "pre_process_data_config", "components": "components"},
        **dict.fromkeys(("post_process_data_config", "dataloader_config"), "other_data_config"),
    },
    "components": _COMPONENTS,
    "load_dataset_config": {
        **dict.fromkeys(("params", "kwargs"), "load_dataset_config"),
        **{"component_kwargs": "components", "data_files": "address"},
    },
    "pre_process_data_config": dict.fromkeys(("params", "kwargs"), "pre_process_data_config"),
    "other_data_config": dict.fromkeys(("params", "kwargs"), "other_data_config"),
    "training": {"config": "training", "training_args": "training_args"},
    "training_args": {"extra_args": "training_args"},
    "merge": {"config": "merge"},
    "builder": {"config": "builder", "extra_options": "builder"},
    "system": {
        **{"config": "system", "azureml_client_config": "azureml_client", "accelerators": "accelerator"},
        **dict.fromkeys(("aml_docker_config", "aml_environment_config"), "system"),
    },
    "address": {"config": "address", "azureml_client": "azureml_client"},
    "azureml_client": {},
}

_NO_CODE = "no code of a configuration or a model is ever run"
_USER_CODE = f"{_NO_CODE}; prepare the rows as a file"
_ONE_WAY = "models are loaded in one way, and the dtype is finetune.dtype"
_TEMPLATE = "corpus.text_template, data.target"
_GRAPH = "describes the export, which the model builder needs not be told"
_DEVICE = "where and how fast it runs is the profile's matter"
_OWN_FOLDERS = "folders, caches and checkpoints are slmflow's own"
_LOGS = "logs are slmflow's own"
_PADDING = "rows are packed without padding"
_BATCHES = "batches are those of per_device_train_batch_size"
_NO_METHOD = "belongs to a method that is not here"

_MODEL = {
    "type": Key("base_model", "HfModel and PyTorchModel; others cannot be fine-tuned"),
    "model_path": Key(
        "base_model.hub, path or source", "a hub model needs its commit, and each the number of its parameters"
    ),
    "model_name": Key("base_model.hub or path", "where there is a model_path, it is the same model's name"),
    "adapter_path": Key("finetune.adapter", "only where nothing is trained"),
    "model_file_format": Key("base_model.asset_type", "PyTorch.MLflow is mlflow_model; files tell their format"),
    "task": Key("", "the base model is a causal language model; slmflow's task says what is learned"),
    "model_class": Key("", "follows from the model"),
    "feature": Key("", "follows from the model"),
    **dict.fromkeys(("io_config", "dummy_inputs_func", "components", "kv_cache"), Key("", _GRAPH)),
    **dict.fromkeys(("model_script", "script_dir", "model_loader"), Key("", _NO_CODE)),
    **dict.fromkeys(
        ("dataset", "generative", "model_attributes", "model_storage_kind", "mlflow_transformer_model_cache_dir"),
        Key("", "follows from the model"),
    ),
}  # fmt: skip
_LOAD = {
    "revision": Key("base_model.hub.revision", "a commit of 40 hex digits; a branch or tag can move"),
    "trust_remote_code": Key("", "no code of a model is ever run"),
    **dict.fromkeys(
        ("attn_implementation", "_attn_implementation", "torch_dtype", "device_map", "max_memory", "use_safetensors",
         "low_cpu_mem_usage", "sliding_window", "use_cache"),
        Key("", _ONE_WAY),
    ),
    "quantization_method": Key("", "finetune.method: qlora trains on a base in 4 bits"),
    "quantization_config": Key("", "finetune.method: qlora trains on a base in 4 bits"),
    "token": Key("", "a token comes from the environment variable HF_TOKEN"),
}  # fmt: skip
_ADDRESS = {
    "type": Key(
        "data.source, base_model.source", "azureml_datastore, azureml_registry_model, azureml_model, file, folder"
    ),
    "path": Key("data.files, base_model.path"),
    **dict.fromkeys(
        ("datastore_name", "relative_path", "datastore_url", "name", "version", "registry_name"),
        Key("data.source, base_model.source", "one azureml:// address; a label such as latest is refused, it moves"),
    ),
    "job_name": Key("", "outputs of Azure jobs are not read: register them as a model, or copy them"),
    "output_name": Key("", "outputs of Azure jobs are not read: register them as a model, or copy them"),
}  # fmt: skip
_DATA = {
    "name": Key("data", "the data of the training pass"),
    "type": Key("data", "HuggingfaceContainer; other containers hold no rows to train on"),
    "user_script": Key("", _USER_CODE),
    "script_dir": Key("", _USER_CODE),
}
_LOAD_DATASET = {
    "type": Key("", f"a loader of your own: {_USER_CODE}"),
    "data_name": Key("data.files or data.hub", "json, csv and parquet are files; else it is a dataset of the hub"),
    "data_files": Key("data.files or data.source", "a datastore's file needs its sha256, since it can change"),
    "subset": Key("data.hub.config"),
    "split": Key("data.hub.split, split.validation", "train[:70%], and train[70%:] of eval_data_config, are a share"),
    "data_dir": Key("", "name the folder in data.files"),
    "col_filters": Key("", "filter the rows beforehand"),
    "max_samples": Key("", "all rows are used; cut the file beforehand"),
    "trust_remote_code": Key("", "no code of a dataset is ever run"),
    "token": Key("", "a token comes from the environment variable HF_TOKEN"),
    "streaming": Key("", "rows are read piece by piece in any case"),
    "model_name": Key("", "it is the base model's tokenizer"),
    "task": Key("", "slmflow's task says what is learned"),
}
_PRE_PROCESS = {
    "text_template": Key(_TEMPLATE, "its last column becomes the target; a format behind a colon is left out"),
    "text_cols": Key(_TEMPLATE, "joined by a space; without effect beside a text_template, as in Olive"),
    "dataset_type": Key("finetune.loss", "pair is loss: completion, corpus is loss: all"),
    "ignore_source_in_labels": Key("finetune.loss", "true (the default of pair) is loss: completion"),
    "pair_format": Key(_TEMPLATE, "default, alpaca and custom; others need a template of yours"),
    **dict.fromkeys(("input_template", "output_template", "input_col", "output_col"), Key(_TEMPLATE)),
    **dict.fromkeys(
        ("strategy", "corpus_strategy"),
        Key(
            "finetune.corpus_strategy",
            "join is carried over; line-by-line is rows. Blocks that are drawn or overlap have no counterpart",
        ),
    ),
    **dict.fromkeys(
        ("max_seq_len", "source_max_len"),
        Key("finetune.source_max_len, corpus.max_length", "longer rows are cut (line-by-line) or set aside (join)"),
    ),
    "target_max_len": Key("corpus.max_length", "added to source_max_len: prompt and completion together"),
    "chat_template": Key("data.conversation", "the tokenizer's own; a template of yours has no counterpart"),
    "message_col": Key("data.conversation"),
    "joiner": Key("", "joined rows end in their end token, and nothing stands between them"),
    "add_special_tokens": Key("", "the prompt begins and the completion ends as the tokenizer wants it"),
    **dict.fromkeys(
        ("pad_to_max_len", "padding_side", "use_attention_mask", "drop_short_sequences", "use_eos_token_as_pad_token"),
        Key("", _PADDING),
    ),
    **dict.fromkeys(("stride", "random_seed", "random_retries"), Key("", "blocks neither overlap nor are drawn")),
    "processing_batch_size": Key("", _DEVICE),
    "max_samples": Key("", "all rows are used; cut the file beforehand"),
    **dict.fromkeys(
        (
            "text_formatting_func",
            "input_formatting_func",
            "output_formatting_func",
            "user_script",
            "script_dir",
            "type",
        ),
        Key("", _USER_CODE),
    ),
    "model_name": Key("", "it is the base model's tokenizer"),
    "task": Key("", "slmflow's task says what is learned"),
    "trust_remote_code": Key("", "no code of a tokenizer is ever run"),
}
_OTHER_DATA = {"type": Key("", _BATCHES), "batch_size": Key("", _BATCHES), "model_name": Key("", _BATCHES),
               "task": Key("", _BATCHES), "trust_remote_code": Key("", _BATCHES)}  # fmt: skip
_TRAINING = {
    "type": Key("finetune.method", "LoRA, QLoRA, DoRA; LoftQ becomes qlora, LoHa and LoKr become lora, with a comment"),
    "r": Key("finetune.r"),
    "lora_r": Key("finetune.r"),
    "alpha": Key("finetune.lora_alpha"),
    "lora_alpha": Key("finetune.lora_alpha"),
    "lora_dropout": Key("finetune.lora_dropout"),
    "target_modules": Key("finetune.target_modules", "QLoRA replaces it by all 4-bit layers, which are all-linear"),
    "quant_type": Key("finetune.quant_type"),
    "double_quant": Key("finetune.double_quant", "only for qlora; Olive ignores it in a LoRA pass"),
    "compute_dtype": Key("finetune.dtype", "float16 is auto"),
    "torch_dtype": Key("finetune.dtype", "float16 is auto; without effect beside compute_dtype"),
    "train_data_config": Key("data", "by name, or written out"),
    "eval_data_config": Key("data.files, split.validation", "other files are the split validation"),
    "eval_dataset_size": Key(
        "split.validation", "a share of the rows, of which near-duplicates stay together, instead of joined blocks"
    ),
    "bias": Key("", "adapters have no bias"),
    "modules_to_save": Key("", "only adapters are trained"),
    "save_quant_config": Key("", "both merges of a QLoRA adapter are made and the better one is kept"),
    "use_ort_trainer": Key("", "PyTorch trains"),
    "ortmodule_onnx_opset_version": Key("", "PyTorch trains"),
    **dict.fromkeys(("allow_tf32", "device_map", "ephemeral_gpu_offload"), Key("", _DEVICE)),
    **dict.fromkeys(
        ("loftq_iter", "rank_dropout", "module_dropout", "use_effective_conv2d", "decompose_both", "decompose_factor",
         "rank_dropout_scale", "target_modules_pattern"),
        Key("", _NO_METHOD),
    ),
    **dict.fromkeys(("user_script", "script_dir", "training_loop_func"), Key("", _NO_CODE)),
    "host": Key("", "all rules run where the profile says"),
    "evaluator": Key("", "every stage is scored on the same rows"),
    **dict.fromkeys(("disable_search", "clean_run_cache", "output_name"), Key("", _OWN_FOLDERS)),
}  # fmt: skip
_RENAMED = (
    *("data_seed", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("gradient_checkpointing", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "logging_steps"),
    "group_by_length",
)
_TRAINING_ARGS = {
    "seed": Key("seed", "the split and drawn rows follow from it, too"),
    **{name: Key(f"finetune.{name}") for name in _RENAMED},
    "num_train_epochs": Key("finetune.num_train_epochs", "without effect beside max_steps, as in Olive"),
    "max_steps": Key("finetune.max_steps", "-1 is left out; Olive 0.6 sets 10000 of its own accord"),
    "max_grad_norm": Key("finetune.max_grad_norm", "0, which switches it off, becomes a limit that is never reached"),
    "lr_scheduler_type": Key(
        "finetune.lr_scheduler_type", "linear, cosine, constant, constant_with_warmup; others become the nearest"
    ),
    "warmup_ratio": Key("finetune.warmup_steps", "a share below 1; constant has no warm-up"),
    "warmup_steps": Key("finetune.warmup_steps", "constant has no warm-up"),
    **dict.fromkeys(
        ("evaluation_strategy", "eval_strategy"),
        Key("finetune.eval_steps", "slmflow always validates, and by steps"),
    ),
    "eval_steps": Key("finetune.eval_steps", "at most max_steps: later ones would never come"),
    "load_best_model_at_end": Key("finetune.metric_for_best_model", "true is loss; the best one is always kept"),
    "metric_for_best_model": Key("finetune.metric_for_best_model", "eval_loss is loss"),
    "greater_is_better": Key("", "follows from the metric"),
    "optim": Key("", "the optimizer is AdamW; its paged and 8-bit variants save memory only"),
    "adam_epsilon": Key("", "it is 1e-8, as in transformers"),
    **dict.fromkeys(
        ("save_steps", "save_strategy", "save_total_limit"), Key("", "each validation writes a training checkpoint")
    ),
    **dict.fromkeys(("output_dir", "overwrite_output_dir", "resume_from_checkpoint"), Key("", _OWN_FOLDERS)),
    **dict.fromkeys(
        ("report_to", "run_name", "logging_dir", "logging_strategy", "logging_first_step", "disable_tqdm", "log_level",
         "push_to_hub", "hub_model_id", "hub_token"),
        Key("", _LOGS),
    ),
    **dict.fromkeys(
        ("bf16", "fp16", "tf32", "bf16_full_eval", "fp16_full_eval", "half_precision_backend"),
        Key("", "finetune.dtype is auto"),
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "ddp_backend", "ddp_find_unused_parameters", "local_rank", "no_cuda",
         "use_cpu", "use_ipex", "torch_compile", "auto_find_batch_size", "dataloader_num_workers",
         "dataloader_pin_memory", "gradient_checkpointing_kwargs", "eval_accumulation_steps", "full_determinism"),
        Key("", _DEVICE),
    ),
    **dict.fromkeys(
        ("remove_unused_columns", "label_names", "length_column_name", "dataloader_drop_last"), Key("", _PADDING)
    ),
    **dict.fromkeys(("label_smoothing_factor", "neftune_noise_alpha"), Key("", "the loss is the plain cross entropy")),
    "use_module_with_loss": Key("", "PyTorch trains"),
    "eval_delay": Key("", "the first validation comes after eval_steps"),
}  # fmt: skip
_ALGORITHM = "k_quant_mixed, k_quant_last, rtn_last become k_quant or rtn with matmul_mixed_precision"
_BUILDER_NAMES = (
    *("block_size", "accuracy_level", "is_symmetric", "op_types_to_quantize", "nodes_to_exclude"),
    *("matmul_mixed_precision", "use_qdq", "prune_lm_head", "shared_embeddings"),
)
_BUILDER = {
    "type": Key("variants"),
    "precision": Key("variants.NAME.precision"),
    **{name: Key(f"variants.NAME.{name}") for name in _BUILDER_NAMES},
    **{f"int4_{name}": Key(f"variants.NAME.{name}") for name in _BUILDER_NAMES[:5]},
    "int4_tied_embeddings": Key("variants.NAME.shared_embeddings"),
    "algo_config": Key("variants.NAME.algo_config", _ALGORITHM),
    "int4_algo_config": Key("variants.NAME.algo_config", _ALGORITHM),
    "metadata_only": Key("", "a model is always built with its configuration"),
    "search": Key("", "whoever runs the model chooses how it generates; genai_config.json can be edited"),
    **dict.fromkeys(
        ("exclude_embeds", "exclude_lm_head", "include_hidden_states"), Key("", "a model has all its parts")
    ),
    **dict.fromkeys(
        ("enable_cuda_graph", "enable_GQA_on_CPU", "use_cuda_bf16", "use_8bits_moe", "use_webgpu_fp32", "hf_token",
         "enable_webgpu_graph", "disable_qkv_fusion", "qmoe_block_size"),
        Key("", "the builder's default is used"),
    ),
    "host": Key("", "all rules run where the profile says"),
    "evaluator": Key("", "every variant is scored on the same rows"),
    **dict.fromkeys(("disable_search", "clean_run_cache", "output_name"), Key("", _OWN_FOLDERS)),
}  # fmt: skip
_MERGE = {
    "type": Key("", "every adapter is merged, and the merge is compared with the adapter"),
    **dict.fromkeys(("host", "evaluator", "disable_search", "clean_run_cache", "output_name"), Key("", _OWN_FOLDERS)),
}
_TARGET = "of the target of a ModelBuilder; a GPU for training is a profile's"
_ACCELERATOR = {
    **dict.fromkeys(("device", "execution_providers"), Key("variants.NAME.execution_provider", _TARGET)),
    "memory": Key("", "memory of each rule follows from the size of the model"),
}
_OWN_ENVIRONMENT = "slmflow brings its locked environment, profiles/azureml/conda.yaml"
_SYSTEM = {
    "type": Key("profile", "AzureML is profiles/azureml; LocalSystem needs none, or profiles/gpu"),
    "accelerators": Key("variants.NAME.execution_provider", _TARGET),
    "aml_compute": Key("profile: azureml-compute"),
    "base_image": Key("profile: azureml-image"),
    "conda_file_path": Key("profile: azureml-conda-file", _OWN_ENVIRONMENT),
    "hf_token": Key("profile: SLMFLOW_HF_TOKEN_SECRET", "the address of a Key Vault secret; locally HF_TOKEN"),
    **dict.fromkeys(
        ("dockerfile", "build_context_path", "image_name", "name", "version", "label", "olive_managed_env", "is_dev",
         "requirements_file", "python_environment_path", "prepend_to_path", "local_docker_config", "work_dir",
         "build_args", "run_params", "clean_image"),
        Key("", _OWN_ENVIRONMENT),
    ),
    "environment_variables": Key("", "what a job needs is the profile's matter"),
    "resources": Key("profile: set-resources"),
    "instance_count": Key("", "each rule is a job on one node"),
    "tags": Key("", "jobs bear the name of their rule"),
    "datastores": Key("profile: default-storage-prefix", "results are kept in a container of Blob storage"),
}  # fmt: skip
_CLIENT = {
    "subscription_id": Key("profile: azureml-subscription-id"),
    "resource_group": Key("profile: azureml-resource-group"),
    "workspace_name": Key("profile: azureml-workspace"),
    "keyvault_name": Key("profile: SLMFLOW_HF_TOKEN_SECRET", "the address of a secret in that vault"),
    "aml_config_path": Key("profile", "config.json beside the project is found"),
    **dict.fromkeys(
        ("read_timeout", "max_operation_retries", "operation_retry_interval", "default_auth_params"),
        Key("", "the executor has its own"),
    ),
}
_SEARCH = "sweep tries values; false is what slmflow does without one"
_SCORED = "every stage and variant is scored; selection and gate say what counts"
_ENGINE = {
    "host": Key("profile", "where rules run is said by a profile alone"),
    "target": Key("variants.NAME.execution_provider", "its accelerators say what a model is built for"),
    "execution_providers": Key("variants.NAME.execution_provider", "a variant for each, and one for the CPU"),
    "output_dir": Key("results", "its last part, below the working folder"),
    "search_strategy": Key("sweep", _SEARCH),
    **dict.fromkeys(
        ("cache_dir", "clean_cache", "clean_evaluation_cache", "cache_config", "enable_shared_cache", "output_name",
         "no_artifacts", "workflow_id", "data_root"),
        Key("", _OWN_FOLDERS),
    ),
    **dict.fromkeys(
        ("log_severity_level", "ort_log_severity_level", "ort_py_log_severity_level", "log_to_file", "verbose"),
        Key("", _LOGS),
    ),
    **dict.fromkeys(("evaluator", "evaluators", "evaluate_input_model", "plot_pareto_frontier"), Key("", _SCORED)),
    "packaging_config": Key("", "the folder results/model is the package"),
    "pass_flows": Key("", "the order of the stages is fixed"),
    "auto_optimizer_config": Key("variants", "name the builds to compare; nothing is searched"),
    "workflow_host": Key("profile", "the run itself stays on your machine"),
}  # fmt: skip

KEYS: dict[str, dict[str, Key]] = {
    "input_model": _MODEL,
    "load_kwargs": _LOAD,
    "data_config": _DATA,
    "load_dataset_config": _LOAD_DATASET,
    "pre_process_data_config": _PRE_PROCESS,
    "other_data_config": _OTHER_DATA,
    "training": _TRAINING,
    "training_args": _TRAINING_ARGS,
    "merge": _MERGE,
    "builder": _BUILDER,
    "engine": _ENGINE,
    "system": _SYSTEM,
    "accelerator": _ACCELERATOR,
    "address": _ADDRESS,
    "azureml_client": _CLIENT,
    "components": {},
}
METHODS = MappingProxyType(
    {
        "lora": ("lora", ""),
        "qlora": ("qlora", ""),
        "dora": ("dora", ""),
        "loftq": ("qlora", "LoftQ is not here; qlora is the nearest: it trains on the base as nf4 rounds it"),
        "loha": ("lora", "LoHa is not here; lora is the nearest"),
        "lokr": ("lora", "LoKr is not here; lora is the nearest"),
    }
)
"""Training passes by lower-case type: finetune.method, and what differs."""
_ONNX = "the model builder makes the ONNX model: see variants"
_TORCH_INT4 = "weights are rounded when the ONNX model is built: variants.NAME.algo_config, gptq and auto_round by rows"
OTHER_PASSES = MappingProxyType(
    {
        "extractadapters": "the merged model is packaged; the adapter stays in runs/",
        **dict.fromkeys(
            ("onnxconversion", "optimumconversion", "optimummerging", "orttransformersoptimization", "ortperftuning",
             "ortsessionparamstuning", "onnxpeepholeoptimizer", "onnxfloattofloat16", "onnxmodeloptimizer",
             "onnxopversionconversion", "onnxscriptfusion", "ortmixedprecision", "graphsurgeries",
             "dynamictofixedshape",
             "capturesplitinfo", "splitmodel", "composetoonnxmodel"),
            _ONNX,
        ),
        **dict.fromkeys(
            ("onnxmatmul4quantizer", "onnxbnb4quantization", "onnxblockwisertnquantization", "onnxhqqquantization",
             "onnxquantization", "onnxdynamicquantization", "onnxstaticquantization", "incquantization",
             "incdynamicquantization", "incstaticquantization", "nvmodeloptquantization", "vitisaiquantization",
             "quarkquantization", "matmulnbitstoqdq"),
            "weights are rounded by the model builder: variants.NAME.algo_config, block_size, is_symmetric",
        ),
        **dict.fromkeys(
            ("gptqquantizer", "gptq", "gptqmodel", "autoawqquantizer", "rtn", "kquant", "hqq", "quarot", "spinquant",
             "selectivemixedprecision", "quantizationawaretraining", "torchtrtconversion"),
            _TORCH_INT4,
        ),
        **dict.fromkeys(("slicegpt", "sparsegpt"), "nothing is pruned"),
        **dict.fromkeys(
            ("openvinoconversion", "openvinoquantization", "openvinooptimumconversion", "openvinoencapsulation",
             "openvinoioupdate", "snpeconversion", "snpequantization", "qnnconversion", "qnnmodellibgenerator",
             "epcontextbinarygenerator"),
            "OpenVINO, QNN and SNPE are not built for: variants.NAME.execution_provider has the others",
        ),
    }
)  # fmt: skip
"""Passes that have no counterpart, by lower-case type, and why."""
