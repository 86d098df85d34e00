"""Registers, memory and instructions of a compiled kernel, read by tools that Triton brings."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Resources", "read_resources"]

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
#: The matrix instructions of capability 8 and 9 (wgmma).
MATRIX = ("HMMA", "HGMMA")
#: The instruction of PTX that waits until no more than a number of groups of copies are under way.
LABEL = re.compile(r"^\$\w+:")
WAIT = r"cp\.async\.wait_group\s+(\d+)"


@dataclass(frozen=True)
class Resources:
    """Registers and memory of a compiled kernel, and the instructions of its loop over scores."""

    registers: int
    stack_bytes: int
    spills: int
    local_bytes: int
    shared_bytes: int
    matrix_instruction: str
    epilogue_per_score: float
    """Instructions on scores (minimum, maximum, multiply-add, logic) for each score."""
    epilogue: dict[str, float]
    loop_instructions_per_score: float
    copies_in_flight: int
    """Copies to shared memory that the screening loop leaves under way while it waits for one."""
    product_waits: int
    """Waits for a product in the loop: more than one if the assembler made products take turns."""

    @property
    def leaves_registers(self) -> bool:
        """Whether anything spills, or lies in local memory."""
        return (self.spills, self.stack_bytes, self.local_bytes) != (0, 0, 0)


def read_resources(
    asm: Mapping[str, Any], shared: int, options: Mapping[str, int], constants: Mapping[str, Any]
) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = run_tool("cuobjdump", "--dump-resource-usage", file.name)
        code = run_tool("nvdisasm", "-c", file.name)
    figures = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", usage)}
    instructions, loops = parse(code)
    spills = sum(name.startswith(("STL", "LDL")) for name in instructions)
    # Kernels with a row in each lane use no matrix instruction.
    in_lanes = "WIDTH" in constants
    loop = longest_loop(instructions, loops, "FFMA" if in_lanes else MATRIX)
    names = Counter(loop)
    threads = 32 * options.get("num_warps", 4)
    # The kernels of one read score a tile of rows against all centroids at once.
    is_one_read = in_lanes or "SLAB_D" in constants
    width = constants.get("BLOCK_K" if is_one_read else "BLOCK_N", 0)
    scores = constants.get("BLOCK_M", 0) * width / threads
    counted = ("FMNMX", "FFMA", "FADD", "FMUL", "LOP3", "SEL", "FSEL", "FSETP", "MOV")
    epilogue = {
        name: sum(n for key, n in names.items() if key.split(".")[0] == name) / scores
        for name in (counted if loop else ())
    }
    kinds = {name.split(".")[0] for name in loop if name.startswith(MATRIX)}
    return Resources(
        registers=figures["REG"],
        stack_bytes=figures["STACK"],
        spills=spills,
        local_bytes=figures["LOCAL"],
        shared_bytes=shared,
        matrix_instruction="+".join(sorted(kinds)),
        epilogue_per_score=round(sum(epilogue.values()), 2),
        epilogue={name: round(n, 3) for name, n in epilogue.items() if n},
        loop_instructions_per_score=round(len(loop) / scores, 2) if loop else 0.0,
        copies_in_flight=copies_in_flight(asm["ptx"]),
        product_waits=sum(name.startswith("WARPGROUP.DEPBAR") for name in loop),
    )


def copies_in_flight(ptx: str) -> int:
    """The least that a wait for copies leaves under way, in the shortest loop that multiplies."""
    lines = ptx.splitlines()
    labels = {line.split(":")[0].strip(): at for at, line in enumerate(lines) if LABEL.match(line)}
    loops: list[tuple[int, list[int]]] = []
    for at, line in enumerate(lines):
        target = re.search(r"\bbra(?:\.uni)?\s+(\$\w+)", line)
        if target and (first := labels.get(target[1], at + 1)) <= at:
            body = "\n".join(lines[first : at + 1])
            waits = [int(n) for n in re.findall(WAIT, body)]
            if waits and ("wgmma.mma_async" in body or "mma.sync" in body):
                loops.append((at - first, waits))
    return min(min(loops)[1]) if loops else 0


def run_tool(name: str, *arguments: str) -> str:
    return subprocess.run(
        [TOOLS / name, *arguments], check=True, capture_output=True, text=True
    ).stdout


def parse(code: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Names of the instructions, and the numbers of the first and last of every loop."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in code.splitlines():
        if found := re.match(r"^(\.L\w+):", line):
            labels[found[1]] = len(names)
        if found := re.match(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)(.*)", line):
            if target := re.search(r"`\((\.L\w+)\)", found[2]):
                jumps.append((len(names), target[1]))
            names.append(found[1].rstrip(";"))
    loops = [(labels[name], at) for at, name in jumps if labels.get(name, at + 1) <= at]
    return names, loops


def longest_loop(
    instructions: list[str], loops: list[tuple[int, int]], sought: str | tuple[str, ...]
) -> list[str]:
    """The longest loop with an instruction `sought`: all that happens to a tile of scores."""
    bodies = [instructions[first : last + 1] for first, last in loops]
    multiplying = [body for body in bodies if any(name.startswith(sought) for name in body)]
    return max(multiplying, key=len, default=[])
