"""The methods that round weights by training rows, beside those of the onnxruntime-genai builder."""

# By the name of `algo_config`: settings of `calibration` where none are given. A method has no other settings.
CALIBRATED: dict[str, dict[str, int]] = {
    "gptq": {"rows": 256},
    "auto_round": {"rows": 128, "length": 128, "iterations": 50},
}
