"""Count the instructions of the pooling kernels, a lane and band, from offline compilation: no GPU
is needed.

    python benchmarks/instructions.py                    f-pooling in both directions, this checkout
    python benchmarks/instructions.py --against ../before     and another checkout beside it

A number is that of the machine instructions (SASS) in the loop that writes, divided by the bands
that one turn of it computes and by the lanes of a thread (two in half precision). `special` are
those of the special-function unit, a quarter as many a clock or fewer.
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = (80, 86, 89, 90)
# in a turn of the loop: whatever this is, a band costs as many instructions, and few compile
# quickly
BANDS = 8
CASES = [(way, dtype) for way in ("forward", "backward") for dtype in ("fp32", "bf16", "fp16")]
POINTERS = ("gates", "written", "read", "carry")


def compiled(way: str, dtype: str, target: int, bands: int = BANDS):
    """The kernel of f-pooling in both directions, `way` forward or backward, compiled for compute
    capability `target`, with the number of lanes that a thread has. A turn of its loop computes
    `bands` bands."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from models.layers.pooling import gpu

    kernel = {"forward": gpu._forward, "backward": gpu._backward}[way]
    lanes = 2 if dtype != "fp32" and "PAIR" in kernel.arg_names else 1
    fixed = {"KIND": 0, "BOTH": True, "SKIP": way == "backward", "WIDE": False, "U": bands,
             "BLOCK": 128 * lanes, "NARROW": True, "FAST": 2 if dtype == "bf16" else 1,
             "PAIR": lanes == 2}
    fixed = {name: fixed[name] for name in kernel.arg_names if name in fixed}
    types = {name: "constexpr" if name in fixed else "i32" for name in kernel.arg_names}
    types |= {name: f"*{dtype}" for name in types if name in POINTERS}
    if "carry" in types:
        types["carry"] = "*fp32"
    source = ASTSource(kernel, types,
                       {(kernel.arg_names.index(name),): value for name, value in fixed.items()})
    options = {"num_warps": 4, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", target, 32), options=options), lanes


def count(root: Path) -> list[str]:
    """A line for each kernel, dtype and target: instructions, special ones, loads and stores."""
    sys.path.insert(0, str(root))
    lines = []
    for way, dtype in CASES:
        for target in TARGETS:
            made, lanes = compiled(way, dtype, target)
            body = loop_that_writes(disassemble(made.asm["cubin"]))
            counts = (len(body), sum("MUFU" in line for line in body),
                      sum("LDG" in line for line in body), sum("STG" in line for line in body))
            lines.append("  ".join([f"{way:<8}  {dtype}  sm_{target}",
                                    *(f"{n / BANDS / lanes:7.2f}" for n in counts)]))
    return lines


def disassemble(cubin: bytes) -> list[str]:
    """Instructions and labels of a binary."""
    import triton
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True,
                              check=True).stdout
    return re.findall(r"^(\.L_x_\d+:|\s+/\*[0-9a-f]{4,}\*/.*;)", text, flags=re.MULTILINE)


def loop_that_writes(lines: list[str]) -> list[str]:
    """The instructions of the longest stretch that a branch goes back over and that stores."""
    labels = {line[:-1]: k for k, line in enumerate(lines) if line.startswith(".L")}
    jumps = [(k, target) for k, line in enumerate(lines)
             for target in re.findall(r"\bBRA\b.*?(\.L_x_\d+)", line)]
    loops = [lines[labels[to]:k + 1] for k, to in jumps if labels.get(to, k) < k]
    loops = [[line for line in loop if "/*" in line and "NOP" not in line] for loop in loops]
    return max((loop for loop in loops if any("STG" in line for line in loop)), key=len)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="DIR",
                        help="another checkout of this project")
    parser.add_argument("--lines-of", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.lines_of:
        print("\n".join(count(options.lines_of)))
        return
    print(f"{'kernel':<8}  {'':<4}  {'GPU':<5}  {'all':>7}  special    loads   stores   (a lane "
          "and band)")
    for root in [root.resolve() for root in (options.against, ROOT) if root]:
        print(root.name, flush=True)  # a process each: both checkouts have the same module names
        subprocess.run([sys.executable, __file__, "--lines-of", str(root)], check=True)


if __name__ == "__main__":
    main()
