#!/bin/sh
# The first ten minutes on a GPU: tests, gradients against float64, the benchmark, a profiled epoch, file to file with and
# without the reading thread, scaling over processes.
#
#     sh benchmarks/gpu.sh [FOLDER]        writes FOLDER.tar.gz (default: gpu_report.tar.gz), the one file to send back
#     sh benchmarks/gpu.sh quick [FOLDER]  two minutes at most: tests of the kernels, gradients, the benchmark of a training step
#
# A part that fails costs no other part. PYTHON names the interpreter (default: .venv/bin/python where it is there).
quick=
[ "$1" != quick ] || { quick=yes && shift; }
out=${1:-gpu_report}
case $out in /*) ;; *) out=$PWD/$out ;; esac
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
command -v "$python" >/dev/null || python=python3

found=$("$python" -c "import torch; print(torch.__version__, torch.cuda.device_count() * torch.cuda.is_available())") || exit 1
gpus=${found#* }
if [ "$gpus" -eq 0 ]; then
    echo "torch ${found% *} finds no GPU on this machine, so nothing was measured; run benchmarks/gpu.sh where nvidia-smi lists \
one, with a CUDA build of torch."
    exit 0
fi

mkdir -p "$out" || exit 1
part() {  # part NAME SECONDS COMMAND...: its output goes to NAME.txt
    name=$1 limit=$2
    shift 2
    echo "$name: $*"
    began=$(date +%s)
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1
    code=$?
    echo "$name: exit $code after $(($(date +%s) - began)) s" | tee -a "$out/summary.txt"
}

part machine 20 sh -c 'nvidia-smi; nvidia-smi topo -m; "$0" -m torch.utils.collect_env; git log -1 --oneline' "$python"
pack() {
    rm -rf "$out"/sample.lmdb "$out"/run_*/*.pth "$out"/*.npy
    tar -czf "$out.tar.gz" -C "$(dirname "$out")" "$(basename "$out")" && echo "send back $out.tar.gz"
}

if [ "$quick" ]; then
    part tests 50 "$python" -m pytest tests/test_pooling_gpu.py tests/test_upsampling.py tests/test_gpu.py
    part gradients 25 "$python" benchmarks/run.py --only accuracy --out "$out"
    part benchmark 25 "$python" benchmarks/run.py --repeats 3 --only training --out "$out"
    pack
    exit
fi
part tests 240 "$python" -m pytest tests/test_pooling.py tests/test_upsampling.py tests/test_gpu.py tests/test_models.py \
    tests/test_pooling_gpu.py tests/test_tiling.py tests/test_overlap.py tests/test_loader.py
part gradients 120 "$python" benchmarks/run.py --only accuracy --out "$out"
part benchmark 300 "$python" benchmarks/run.py --repeats 5 --only inference training memory pooling profile --out "$out"
part database 120 sh -c '"$0" data/make_samples.py && "$0" utility/lmdb_data.py --out "$1/sample.lmdb" --force' "$python" "$out"
part epoch 180 "$python" - "$out" <<'EOF'
import sys
from pathlib import Path

import torch

from utility.training.configuration import configure
from utility.training.loop import train

out = Path(sys.argv[1])
for amp in ("bf16", "off"):
    config = configure({"data": str(out / "sample.lmdb"), "recipe": "fast", "epochs": 1, "amp": amp,
                        "run_dir": str(out / f"run_{amp}"), "tensorboard": False})
    with torch.profiler.profile() as recorded:
        train(config)
    print(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=80))
EOF
part overlap 120 "$python" - "$out" <<'EOF'
import sys
import time
from pathlib import Path

import numpy as np

from models import create_model
from utility.superres import overlap
from utility.superres import tiling

side = 2048
low, high = (Path(sys.argv[1]) / name for name in ("low.npy", "high.npy"))
np.save(low, np.random.default_rng(0).random((31, side // 4, side // 4), dtype=np.float32))
net = create_model("biqrnn_16_5").eval().to("cuda")
for thread in (True, True, False):  # the first one warms up
    tiling.Ahead = lambda read, thread, wanted=thread: overlap.Ahead(read, wanted)
    began = time.perf_counter()
    written = np.lib.format.open_memmap(high, "w+", np.float32, (31, side, side))

    def sink(top, left, block):
        written[:, top:top + block.shape[1], left:left + block.shape[2]] = block

    start = tiling.interpolated(np.load(low, mmap_mode="r"), 4, "gaussian", 0.0, 1.0)
    tiling.super_resolve(net, start, written.shape, sink, tile=side // 4 + 32, amp="bf16")
    written.flush()
    print(f"{'with' if thread else 'without'} a reading thread: {time.perf_counter() - began:.2f} s")
EOF
count=1
while [ "$count" -le "$gpus" ] && [ "$gpus" -gt 1 ]; do
    part "processes_$count" 180 "$python" -m torch.distributed.run --standalone --nproc-per-node="$count" hsi_sr.py \
        --data "$out/sample.lmdb" --recipe fast -n 3 --amp bf16 -b $((16 * gpus)) --run-dir "$out/run_processes_$count"
    count=$((count * 2))
done

pack
