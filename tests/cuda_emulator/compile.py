"""What the software NVRTC of fake_cuda calls: compile.py <text> <library> <options of NVRTC>. Makes a library that runs the kernels of a
text on the CPU (machine.h), each as run_<name>(arguments, grid, threads, shared bytes). No package is needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parent.parent / "src"
_FUNCTION = re.compile(r"^(?:template <int (\w+)>\n)?FA_FN ([\w ]+?) (\w+)\((.*?)\) \{([^\n]*\}|.*?\n\})$", re.M | re.S)
_ENTRY = re.compile(r'extern "C" __global__ void __launch_bounds__\([^;{]*?\)\s+(\w+)\(const __grid_constant__ (\w+) p, ')


def on_the_cpu(text: str) -> str:
    """A kernel text as C++: inline assembly calls emulator:: instead, every kernel gets an entry for the launcher."""

    def replaced(function: re.Match) -> str:
        whole, template, result, name, parameters, body = function.group(0, 1, 2, 3, 4, 5)
        if "asm" not in body:
            return whole
        names = [re.search(r"\(&(\w+)\)|(\w+)$", part.strip()) for part in parameters.split(",") if part.strip()]
        given = ", ".join(one.group(1) or one.group(2) for one in names)
        called = f"emulator::{name}{f'<{template}>' if template else ''}({given})"
        return f"{whole[: whole.index('{', whole.index(name))]}{{ {'' if result == 'void' else 'return '}{called}; }}"

    # machine.h has included platform.h, as C++
    text = re.sub(r'#line 1 "semantics/platform.h"\n.*?(?=#line)', "", text, flags=re.S)
    text = _FUNCTION.sub(replaced, text).replace("extern __shared__", "extern")
    if match := re.search(r"\basm\b[^\n]*", text):
        raise SystemExit(f"compile.py: no word of machine.h stands for {match.group(0)}")
    for name, params in _ENTRY.findall(text):
        text += f"""
namespace fa::cuda {{
extern "C" void run_{name}(void** given, const unsigned* grid, unsigned threads, unsigned shared_bytes) {{
  static {params} p;
  static Arrays a;
  std::memcpy(&p, given[0], sizeof p), std::memcpy(&a, given[1], sizeof a);
  emulator::launch(grid, threads, shared_bytes, [] {{ {name}(p, a); }});
}}
}}
"""
    return text


def main(source: str, library: str, options: list[str]) -> int:
    definitions = [option for option in options if option.startswith("-D")]
    (arch,) = (int(found.group(1)) for option in options if (found := re.search(r"arch\w*=sm_(\d+)", option)))
    text = f'#define FA_ARCH {arch}\n#include "machine.h"\n#define __CUDA_ARCH__ {arch * 10}\n' + on_the_cpu(Path(source).read_text())
    made = Path(source).with_suffix(".cpp")
    made.write_text(text)
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    command = [compiler, "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-ffp-contract=off", f"-I{HERE}", f"-I{SOURCES}", *definitions]
    return subprocess.run([*command, made, "-o", library], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
