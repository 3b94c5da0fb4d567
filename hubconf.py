"""The networks for torch.hub, by their names.

    net = torch.hub.load("FOLDER_OR_REPOSITORY", "lowgrid_x4", source="local")     # shipped weights
    net = torch.hub.load("FOLDER_OR_REPOSITORY", "biqrnn_16_5", source="local")    # untrained

What a network takes is in models/network.py; docs/own-cubes.md shows how an array is enlarged.
"""
from models import Network as _Network
from models import create_model as _create_model
from models import list_models as _list_models
from utility import weights as _weights
from utility.checkpoints import model_from_checkpoint as _model_from_checkpoint
from utility.names import DEFAULT_KIND as _DEFAULT_KIND

dependencies = ["numpy", "scipy", "torch", "tqdm"]


def _entry(name):
    def entry(pretrained: bool = False, scale: int = 4, degradation: str = _DEFAULT_KIND,
              **options) -> _Network:
        if not pretrained:
            return _create_model(name, **options)
        found = _weights.choose(name, scale, degradation)
        if found is None:
            raise ValueError(
                f"no shipped weights of {name} fit x{scale}, {degradation}: {_weights.listing()}")
        return _model_from_checkpoint(found.path, **options)[0]

    entry.__name__ = name
    entry.__doc__ = f"""{name}; with `pretrained` the shipped weights that fit `scale` and
    `degradation`, in eval mode.

    Options of the network (`long_skip`) and of its execution (`pooling`, ...) may follow.
    """
    return entry


def _weights_entry(one):
    def entry(**execution) -> _Network:
        one.check()
        return _model_from_checkpoint(one.path, **execution)[0]

    entry.__name__ = one.path.stem
    entry.__doc__ = f"""The shipped weights {one.describe()}, in eval mode."""
    return entry


globals().update({_one.path.stem: _weights_entry(_one) for _one in _weights.shipped()})
globals().update({_name: _entry(_name)
                  for _name in {*_list_models(),
                                *(one.card["arch"] for one in _weights.shipped())}})
