"""The recipes of a training, read before torch is: the command line shows them."""
from __future__ import annotations

from typing import Any

# What a recipe sets where the configuration does not. On an airborne scene of 100 x 100 x 189, 2e-4
# of `finetune` measured below the weights that it began with, and 5e-5 above.
RECIPES: dict[str, dict[str, Any]] = {"released": {"batch": 16, "lr": 1e-4, "min_lr": 5e-5,
                                                   "last_lr": 1.0, "warmup": 0,
                                                   "start": "interpolation", "epochs": 50,
                                                   "iterations": None, "epoch_steps": 1,
                                                   "patience": 0},
                                      "fast": {"batch": 4, "lr": 1e-3, "min_lr": 0.0,
                                               "last_lr": 0.005, "warmup": 30,
                                               "start": "backprojection", "epochs": 50,
                                               "iterations": None, "epoch_steps": 1, "patience": 0},
                                      "finetune": {"batch": 4, "lr": 5e-5, "min_lr": 0.0,
                                                   "last_lr": 0.2, "warmup": 50,
                                                   "start": "backprojection", "epochs": None,
                                                   "iterations": 1000, "epoch_steps": 25,
                                                   "patience": 10}}
