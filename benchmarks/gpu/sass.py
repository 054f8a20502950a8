"""The machine code (SASS) of the kernels: instructions, loops, and the cycles that a warp spends on them, estimated.

Needs cuobjdump, which is part of the CUDA toolkit and of the package triton, and no GPU. Cycles are those of a
scheduler, a quarter of a multiprocessor, which issues one instruction of one warp a cycle.
"""
# SPDX-License-Identifier: MIT

import importlib.util
import itertools
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cubins import Instance, find_tool, parse_name

# Cycles that one instruction of a warp keeps a pipe of its scheduler busy (CUDA programming guide, results per cycle
# and multiprocessor: 32 a cycle keep it for 4). The memory pipe serves all four schedulers, a conflict-free access of
# 4 bytes a lane in a cycle; wider ones and conflicts take longer, so that it is a lower bound.
PIPES = {
    "80": {"float": 2, "integer": 2, "multiply": 2, "special": 8, "memory": 4, "tensor": 8},
    "90": {"float": 1, "integer": 2, "multiply": 2, "special": 8, "memory": 4, "tensor": 4},
}
OPCODES = {
    "float": "FFMA FADD FMUL",
    "multiply": "IMAD",
    "integer": "IADD3 VIADD LOP3 LEA SHF ISETP FSETP SEL FSEL VIMNMX VIADDMNMX FMNMX PRMT PLOP3 P2R R2P MOV I2FP",
    "special": "MUFU F2F F2I I2F",
    "memory": "LDS STS SHFL LDG STG",
    "tensor": "HMMA",
}
PIPE_OF = {opcode: pipe for pipe, opcodes in OPCODES.items() for opcode in opcodes.split()}

# Assumed cycles until a result is there, of instructions that take an unknown time. Loads from global memory are those
# of partial distances, from the L2 cache: those of the maps are under way while positions before them are worked on.
LATENCY = defaultdict(lambda: 25, {"LDS": 30, "SHFL": 25, "MUFU": 25, "LDG": 300, "BAR": 25, "HMMA": 26, "LDC": 40})
OPERANDS_READ = 12  # cycles until a store has read its operands

# Of another path than that of float32 maps: half precision, diverged warps, calls of divisions; and, within a loop,
# the division itself, of positions of two dimensions.
OTHER_PATH = re.compile(r"LDG\.E\.U16|HADD2|^CALL|WARPSYNC\.COLLECTIVE")
EXIT = re.compile(r"^EXIT")
OTHER_PATH_IN_LOOP = re.compile(rf"{OTHER_PATH.pattern}|F2I")


def find_cuobjdump() -> Path:
    found = find_tool("cuobjdump")
    if found:
        return found
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations if triton else ():
        packaged = Path(folder) / "backends/nvidia/bin/cuobjdump"
        if packaged.exists():
            return packaged
    raise FileNotFoundError(
        "cuobjdump must be on PATH, in CUDA_HOME/bin or in the package triton (which comes with CUDA builds of torch), "
        "found in none of them"
    )


@dataclass(frozen=True)
class Instruction:
    address: int
    text: str
    opcode: str  # without modifiers and predicate
    target: int | None  # of a branch
    conditional: bool  # guarded by a predicate
    # What the compiler tells the scheduler: cycles to the next instruction, the barriers to wait for, and those to
    # raise until the result is written and until the operands are read, where these take an unknown time.
    stall: int
    wait: tuple[int, ...]
    result_barrier: int | None
    operand_barrier: int | None


def machine_code(cubin: Path) -> dict[Instance, list[Instruction]]:
    """Return the instructions of every kernel in a cubin."""
    done = subprocess.run([find_cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True)
    code: dict[Instance, list[Instruction]] = {}
    lines = iter(done.stdout.splitlines())
    for line in lines:
        if found := re.search(r"Function : (\w+)", line):
            current = code.setdefault(parse_name(found[1]), [])
        elif found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(\S.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/", line):
            control = int(re.search(r"/\* 0x([0-9a-f]{16}) \*/", next(lines))[1], 16)
            current.append(parse_instruction(int(found[1], 16), found[2], control))
    if not code:
        raise ValueError(f"cuobjdump found no machine code in {cubin}")
    return code


def parse_instruction(address: int, text: str, control: int) -> Instruction:
    """Return an instruction; ``control`` is the second half of its encoding."""
    guarded = re.match(r"@!?U?P\w+\s+", text)
    body = text[guarded.end() :] if guarded else text
    opcode, _, operands = body.partition(" ")
    # A guarded call is how the compiler leaves a loop for sm_80: it is never returned from.
    jumps = opcode.startswith("BRA") or (opcode.startswith("CALL") and guarded)
    target = re.search(r"0x([0-9a-f]+)$", operands) if jumps else None
    # A branch may also name its predicate among the operands.
    second = target is not None and operands[: target.start()].strip() != ""
    barriers = [control >> 46 & 7, control >> 49 & 7]
    return Instruction(
        address,
        text,
        opcode.split(".")[0],
        int(target[1], 16) if target else None,
        bool(guarded) or second,
        max(1, control >> 41 & 15),
        tuple(_bits(control >> 52 & 63)),
        *(None if b == 7 else b for b in barriers),
    )


def _bits(mask: int) -> Iterator[int]:
    return (bit for bit in range(6) if mask >> bit & 1)


@dataclass
class Work:
    """Of one warp, in cycles of its scheduler."""

    issue: float = 0
    pipe: float = 0
    alone: float = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.issue + other.issue, self.pipe + other.pipe, self.alone + other.alone)

    def __mul__(self, times: float) -> "Work":
        return Work(self.issue * times, self.pipe * times, self.alone * times)


def total(parts: Iterable[Work]) -> Work:
    return sum(parts, Work())


# --- control flow -----------------------------------------------------------------------------------------------------


@dataclass
class Block:
    first: int  # index of an instruction
    last: int  # past it
    successors: list[int] = field(default_factory=list)


class Graph:
    """The basic blocks of a kernel, and its natural loops."""

    def __init__(self, code: Sequence[Instruction]) -> None:
        self.code = code
        index = {instruction.address: i for i, instruction in enumerate(code)}
        ends = [i for i, x in enumerate(code) if x.target is not None or x.opcode in ("EXIT", "RET", "BRX", "JMP")]
        starts = {0, *(i + 1 for i in ends), *(index[code[i].target] for i in ends if code[i].target is not None)}
        bounds = [*sorted(start for start in starts if start < len(code)), len(code)]
        self.blocks = [Block(first, last) for first, last in itertools.pairwise(bounds)]
        self.of = {block.first: number for number, block in enumerate(self.blocks)}
        for number, block in enumerate(self.blocks):
            end = code[block.last - 1]
            # Warps that have diverged take another path.
            never, always = end.text.startswith("BRA.DIV"), end.text.startswith("BRA.CONV")
            if end.target is not None and not never:
                block.successors.append(self.of[index[end.target]])
            falls_through = end.target is None and end.opcode not in ("EXIT", "RET", "BRX", "JMP")
            if (falls_through or (end.conditional and not always)) and number + 1 < len(self.blocks):
                block.successors.append(number + 1)
        self.order = self._order()
        self.place = {number: i for i, number in enumerate(self.order)}
        self.dominator = self._dominators()
        self.loops = self._loops()

    def _order(self) -> list[int]:
        """Reachable blocks, each before its successors but for the way back in a loop."""
        seen, done, stack = {0}, [], [(0, iter(self.blocks[0].successors))]
        while stack:
            number, successors = stack[-1]
            successor = next((s for s in successors if s not in seen), None)
            if successor is None:
                done.append(number)
                stack.pop()
            else:
                seen.add(successor)
                stack.append((successor, iter(self.blocks[successor].successors)))
        return done[::-1]

    def _dominators(self) -> dict[int, int]:
        """The immediate dominator of every reachable block (Cooper, Harvey, Kennedy)."""
        before = defaultdict(list)
        for number in self.order:
            for successor in self.blocks[number].successors:
                before[successor].append(number)
        self.before, immediate, changed = before, {0: 0}, True
        while changed:
            changed = False
            for number in self.order[1:]:
                known = [b for b in before[number] if b in immediate]
                new = known[0]
                for other in known[1:]:
                    while new != other:
                        if self.place[new] > self.place[other]:
                            new = immediate[new]
                        else:
                            other = immediate[other]
                if immediate.get(number) != new:
                    immediate[number], changed = new, True
        return immediate

    def dominates(self, first: int, second: int) -> bool:
        while self.place[second] > self.place[first]:
            second = self.dominator[second]
        return first == second

    def _loops(self) -> "list[Loop]":
        latches = defaultdict(list)
        for number in self.order:
            for successor in self.blocks[number].successors:
                if self.dominates(successor, number):
                    latches[successor].append(number)
        loops = []
        for header, ends in latches.items():
            body, stack = {header}, list(ends)
            while stack:
                number = stack.pop()
                if number not in body:
                    body.add(number)
                    stack += self.before[number]
            loops.append(Loop(self, header, tuple(ends), frozenset(body)))
        return sorted(loops, key=lambda loop: self.blocks[loop.header].first)

    def path(
        self,
        start: int,
        ends: Iterable[int],
        avoid: Iterable[int] = (),
        skip: Iterable[int] = (),
        *,
        longest: bool = True,
    ) -> list[Instruction]:
        """The longest or shortest way from a block to one of others, each loop gone through once; without ``skip``."""
        avoided, skipped = set(avoid), set(skip)
        best: dict[int, tuple[int, int | None]] = {start: (0, None)}
        for number in self.order[self.place[start] :]:
            if number in best and number not in avoided:
                length = best[number][0] + (0 if number in skipped else len(self.instructions(number)))
                for successor in self.blocks[number].successors:
                    ahead = self.place[successor] > self.place[number] and successor not in avoided
                    if ahead and (successor not in best or (length > best[successor][0]) == longest):
                        best[successor] = (length, number)
        reached = [end for end in ends if end in best]
        if not reached:
            raise LookupError(f"no way from {self.code[self.blocks[start].first].address:x} to where it should lead")
        at, blocks = (max if longest else min)(reached, key=lambda end: best[end][0]), []
        while at is not None:
            blocks.append(at)
            at = best[at][1]
        return [x for number in reversed(blocks) if number not in skipped for x in self.instructions(number)]

    def instructions(self, number: int) -> Sequence[Instruction]:
        return self.code[self.blocks[number].first : self.blocks[number].last]

    def blocks_with(self, pattern: re.Pattern) -> set[int]:
        return {number for number in self.order if any(pattern.search(x.text) for x in self.instructions(number))}


@dataclass(frozen=True)
class Loop:
    graph: Graph
    header: int
    latches: tuple[int, ...]
    body: frozenset[int]

    @property
    def inner(self) -> "list[Loop]":
        return [loop for loop in self.graph.loops if loop.body < self.body]

    @property
    def outer(self) -> "Loop | None":
        """The loop right around this one."""
        around = [loop for loop in self.graph.loops if self.body < loop.body]
        return min(around, key=lambda loop: len(loop.body), default=None)

    @property
    def exits(self) -> set[int]:
        return {s for number in self.body for s in self.graph.blocks[number].successors} - self.body

    def once(self, without: Iterable["Loop"] = ()) -> list[Instruction]:
        """The longest float32 path through the loop, but for the loops within it that are named."""
        inner = {number for loop in without for number in loop.body}
        avoid = (set(self.graph.order) - self.body) | self.graph.blocks_with(OTHER_PATH_IN_LOOP) - inner
        return self.graph.path(self.header, self.latches, avoid, inner)


# --- cycles -----------------------------------------------------------------------------------------------------------


def busiest_pipe(instructions: Sequence[Instruction], architecture: str) -> float:
    counts = Counter(PIPE_OF.get(x.opcode) for x in instructions)
    busy = {pipe: counts[pipe] * cycles for pipe, cycles in PIPES[architecture].items()}
    busy["float"] += counts["multiply"] * PIPES[architecture]["float"]  # on lanes of the float pipe
    return max(len(instructions), *busy.values())


def cycles_alone(instructions: Sequence[Instruction], passes: int = 1, latency: Mapping[str, float] = LATENCY) -> float:
    """Cycles of the last of some passes through the instructions, by what the compiler tells the scheduler."""
    now, raised, written, begin = 0.0, [0.0] * 6, {}, 0.0
    for _ in range(passes):
        begin = now
        for x in instructions:
            now = max([now, *(raised[b] for b in x.wait)])
            if x.opcode == "DEPBAR":
                now = max(now, *raised)
            if written:  # results of the tensor core, for which no barrier stands
                now = max([now, *(written[r] for r in _registers(x) if r in written)])
            if x.result_barrier is not None:
                raised[x.result_barrier] = max(raised[x.result_barrier], now + latency[x.opcode])
            if x.operand_barrier is not None:
                raised[x.operand_barrier] = max(raised[x.operand_barrier], now + OPERANDS_READ)
            if x.opcode == "HMMA":
                first = int(re.search(r"\bR(\d+)", x.text)[1])
                written.update({first + i: now + LATENCY["HMMA"] for i in range(4)})
            now += LATENCY["BAR"] if x.opcode == "BAR" else x.stall
    return now - begin


def _registers(x: Instruction) -> list[int]:
    return [int(r) for r in re.findall(r"\bR(\d+)", x.text)]


def work(
    instructions: Sequence[Instruction],
    architecture: str,
    *,
    repeated: bool = False,
    latency: Mapping[str, float] = LATENCY,
) -> Work:
    """The work of instructions; of a loop in its steady state where they are repeated."""
    alone = cycles_alone(instructions, 2 if repeated else 1, latency)
    return Work(len(instructions), busiest_pipe(instructions, architecture), alone)
