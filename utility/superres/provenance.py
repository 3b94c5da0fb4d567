"""What a result's file says: its pixels are computed, by what, from what and when."""
from __future__ import annotations

from datetime import datetime
from typing import Any

from models import Network
from utility.checkpoints import checksum
from utility.cubes.cube import Scene
from utility.names import UNTRAINED
from utility.superres.problem import Problem
from utility.superres.spectrum import band_step
from utility.system.environment import project_version


def weights_hash(net: Network | None) -> str | None:
    """SHA-256 of names, types, shapes and values of the weights, whatever file they came from."""
    return (net
            and checksum({name: tensor.detach().cpu()
                          for name, tensor in net.state_dict().items()}))


def provenance(net: Network | None, problem: Problem, scene: Scene,
               more: str = "") -> dict[str, Any]:
    """The metadata of a `Scene` by which every writer marks its file as computed from `scene`; the
    scene's own description follows."""
    method = (f"the network {net.name} (SHA-256 of its weights {weights_hash(net)}) from the "
              f"{UNTRAINED[problem.start]}" if net else UNTRAINED[problem.method])
    step = band_step(net, problem, len(scene.cube)) if net else 1
    method += f", computed on one of {step} bands and interpolated between" * (step > 1)
    ensemble = ", mean over 8 rotations and flips" * problem.self_ensemble
    steps = f", then {problem.backproject} steps of back-projection" if problem.backproject else ""
    header, tags = (scene.metadata.get(name, {}) for name in ("header", "tags"))
    own = tags.get("TIFFTAG_IMAGEDESCRIPTION") or header.get("description")
    own = f" Input: {own if isinstance(own, str) else ', '.join(own)}" if own else ""
    name = scene.path.name if scene.path else scene.name
    assumed = problem.sharp or not problem.mtf_known
    sensor = ("the cube is aliased" if problem.aliased else
              f"degradation {problem.degradation}{' (assumed)' * assumed}")
    text = (f"Computed pixels, not measured: x{problem.scale} super-resolution of {name}{more} by "
            f"{method}{ensemble}{steps}, {sensor}, {datetime.now():%Y-%m-%d}.{own}")
    return {"provenance": {"software": f"bi3dqrnn {project_version()}", "description": text}}
