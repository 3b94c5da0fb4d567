"""The names that options take. What they stand for is imported when it is needed: a command line is read before torch is."""
from __future__ import annotations

SCALES = (2, 3, 4, 8)
DEGRADATIONS = ("mtf", "area", "gaussian", "bicubic", "spatial", "reference")
"""Of `utility.degradation.KINDS`."""
DEFAULT_KIND = "gaussian"
STARTS = ("interpolation", "backprojection")
"""What a network is given and adds its residual to; see `utility.degradation.Degradation.start`."""

UNTRAINED = {"interpolation": "interpolation", "backprojection": "back-projection"}
"""The methods that stand beside every network: {name in metrics.json: what a reader sees}."""
METHODS = (*UNTRAINED, "network")
PRESETS = ("standard", "reference", "sspsr")
"""Of `utility.indexes.PRESETS`."""

PRECISIONS = ("off", "bf16", "fp16")
"""Of mixed precision; see `utility.system.devices.AMP`."""
POOLING = ("loop", "cpu", "triton")
"""Of `models.layers.pooling.BACKENDS`."""

STORED = ("float32", "float16")
"""The data types of a database's values."""
LOSSES = ("mse", "l1", "band")
"""Of `utility.training.configuration.LOSSES`."""
