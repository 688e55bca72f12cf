"""Turns a model's source into a local folder of safetensors with its tokenizer: downloaded, converted once, reused.

As a program (`python -m maveriq_worker.checkpoints <source> <precision> <target>`) it converts: in a process of its
own, because that takes a while and the peak of its memory ends with it.
"""

# torch, transformers and safetensors are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import asyncio
import fcntl
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maveriq.contracts import FULL_PRECISIONS, Precision
from maveriq_worker.oom_kills import OomKills, ended

_DTYPE_NAMES = {Precision.FP32: "float32", Precision.BF16: "bfloat16", Precision.FP16: "float16"}
_PARTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")  # weights, configuration, tokenizer
_STORED_OTHERWISE = (".experts.0.", "embed_out.", ".block_sparse_moe.input_linear.")
"""Mixtures whose experts stand one by one, GPT-NeoX's head, Granite's mixtures."""
_TAIL_LINES = 12  # of what a failed conversion said


class CheckpointFailed(Exception):
    """The source cannot be made into a checkpoint; says why and what to do."""


async def prepare(source: str, precision: Precision, cache_dir: Path) -> Path:
    """The folder to load from. Two workers that want the same at once: one converts, the other waits.

    Args:
        source: Hugging Face id, local folder with config.json, or path of a .gguf file.
        precision: what is computed in; a conversion is stored in it, and quantised while loading where that is asked.
            Other sources are cast while loading.

    Raises:
        CheckpointFailed
    """
    if precision not in FULL_PRECISIONS:
        raise CheckpointFailed(f"the torch engine computes in {', '.join(FULL_PRECISIONS)}, not {precision}")
    found = await asyncio.to_thread(_locate, source)
    if found.is_dir() and any(found.glob("*.safetensors")):
        _check_whole(found)
        if not is_stored_otherwise(found):
            return found
    target = cache_dir / "checkpoints" / _name(found, precision)
    if not target.exists():
        await _convert_elsewhere(found, precision, target)
    return target


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.suffix == ".gguf" or path.exists():
        if not path.exists():
            raise CheckpointFailed(f"{source} does not exist on this node; copy it there or register another source")
        if path.is_dir() and not (path / "config.json").exists():
            raise CheckpointFailed(f"{source} has no config.json; give a folder as save_pretrained writes it")
        return path.resolve()
    if source.startswith(("/", ".", "~")):
        raise CheckpointFailed(f"{source} does not exist on this node; copy it there or register another source")
    return _download(source)


def _check_whole(folder: Path) -> None:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config or (folder / "hf_quant_config.json").exists():
        raise CheckpointFailed(
            f"{folder} holds quantised weights, and the torch engine reads whole ones and quantises them itself: "
            "register the variant without a source, or serve it with TensorRT-LLM"
        )


def is_stored_otherwise(folder: Path) -> bool:
    """Whether names or shapes are not those of the text model's modules, so that transformers itself must read it."""
    if "text_config" in json.loads((folder / "config.json").read_text()):
        return True
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, Any] = json.loads(index.read_text())["weight_map"]
    else:
        with next(folder.glob("*.safetensors")).open("rb") as file:
            names = json.loads(file.read(int.from_bytes(file.read(8), "little")))  # as the format begins
    return any(mark in name for name in names for mark in _STORED_OTHERWISE)


def _download(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model_id, allow_patterns=list(_PARTS)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(model_id, allow_patterns=[*_PARTS, "*.bin"]))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointFailed(
            f"{model_id} could not be downloaded ({error}); check the id, the network and HF_TOKEN, "
            "or register a local folder or .gguf file"
        ) from error


def _name(found: Path, precision: Precision) -> str:
    """Changes with the file's content as far as size and time tell."""
    stat = found.stat()
    identity = f"{found}|{stat.st_size}|{stat.st_mtime_ns}"
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", found.stem)[:80]
    return f"{stem}-{precision}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def eos_ids(checkpoint: Path) -> tuple[int, ...]:
    """Tokens that end an answer: the generation config's, else the model's; () where neither names one."""
    for name in ("generation_config.json", "config.json"):
        file = checkpoint / name
        config: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
        eos = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
        if eos is not None:
            return (eos,) if isinstance(eos, int) else tuple(eos)
    return ()


async def _convert_elsewhere(found: Path, precision: Precision, target: Path) -> None:
    oom_kills = OomKills()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "maveriq_worker.checkpoints", str(found), precision, str(target),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )  # fmt: skip
    try:
        _, said = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code := process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() if code > 0 else [f"its process {ended(code)}"]
        tail = oom_kills.explained("\n".join(lines[-_TAIL_LINES:]))
        raise CheckpointFailed(f"{found} could not be converted to {precision} safetensors: {tail}")


def convert(found: Path, precision: Precision, target: Path) -> None:
    """Write `target` whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _alone(target.with_suffix(target.suffix + ".lock")):
        if target.exists():
            return
        unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            _write(found, precision, unfinished)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Generator[None]:
    """The kernel lets go of the lock when its holder dies."""
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _write(found: Path, precision: Precision, folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from maveriq.torch_layers import loader_of, text_half

    dtype = getattr(torch, _DTYPE_NAMES[precision])
    where, options = (found.parent, {"gguf_file": found.name}) if found.is_file() else (found, {})
    loader = loader_of(AutoConfig.from_pretrained(where, **options))
    loaded = loader.from_pretrained(where, dtype=dtype, **options)
    config, generation = loaded.config.get_text_config(decoder=True), loaded.generation_config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # what was read is dequantised, and save_pretrained refuses it otherwise
    config.dtype = dtype
    plain = text_half(loaded, dtype)
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    if generation is None or generation.eos_token_id is None:
        generation = GenerationConfig.from_model_config(config)
    if generation.eos_token_id is None:
        generation.eos_token_id = tokenizer.eos_token_id
    plain.generation_config = generation
    plain.save_pretrained(folder, save_original_format=False)  # named as the modules that read it
    tokenizer.save_pretrained(folder)


def _read_headers_once() -> None:
    """transformers reads a GGUF's header four times over, and each takes seconds."""
    import gguf

    library: Any = gguf
    library.GGUFReader = functools.cache(library.GGUFReader)


if __name__ == "__main__":
    _read_headers_once()
    convert(Path(sys.argv[1]), Precision(sys.argv[2]), Path(sys.argv[3]))
