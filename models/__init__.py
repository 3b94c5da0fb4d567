"""Networks. `create_model` builds any of them by name; nothing here knows about files or data.

Every file of this folder is imported, so an architecture that registers itself is known by being
here. What networks are made of is in `layers`; kernels are imported where they run.
"""
from __future__ import annotations

import importlib
import pkgutil

from models.network import Execution, Network, Window
from models.registry import create_model, list_models, matching_models, name_forms, register

__all__ = ["Execution", "Network", "Window", "create_model", "list_models", "matching_models",
           "name_forms", "register"]

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg:
        importlib.import_module(f"{__name__}.{_module.name}")
