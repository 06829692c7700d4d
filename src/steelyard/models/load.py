"""A policy: model, tokenizer and template, loaded with clear errors and saved as a Hugging Face directory.

Whatever is drawn at random (fresh weights, a score head, adapters) is drawn from the seed, so that loading twice
gives the same bits.  Nothing but safetensors is read, and no code that a model directory may contain is run.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from steelyard.config import LoraConfig, ModelConfig
from steelyard.errors import ModelError
from steelyard.files import atomic_directory, canonical_json, sha256_json
from steelyard.models.attention import (
    PACKED,
    base_of,
    standard_attention,
    standard_implementation,
    supports_packing,
)
from steelyard.models.heads import HEADS, MODULES, Head, attach_lm_head, check_token_head, prepare_saving
from steelyard.models.logprobs import check_head

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass
class Policy:
    """A model with everything that is needed to train, sample and save it.

    Attributes:
        model: a transformers model, or a peft wrapper around one; in eval mode when loaded.
        tokenizer: with an EOS token, and a chat template where the model has one.
        packed: whether batches are packed prefix trees (else padded rows).
        why_not_packed: the reason, or "".
        identity: of what was loaded: hashes of weights, tokenizer and template, type and adapter.
        path: the directory (or hub name) that the weights came from.
        adapter: how the adapter began, or None without one.
        adapter_disabled: this policy is its model *without* the adapter (the reference of LoRA training).
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    packed: bool
    why_not_packed: str
    identity: dict[str, Any]
    path: Path
    adapter: Literal["fresh", "loaded"] | None = None
    adapter_disabled: bool = False
    _adapter_config: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end a completion: the tokenizer's EOS and those of the generation config."""
        config = getattr(base_of(self.model), "generation_config", None)
        declared = getattr(config, "eos_token_id", None)
        declared = declared if isinstance(declared, list) else [declared]
        ids = [self.tokenizer.eos_token_id, *declared]
        return tuple(sorted({i for i in ids if isinstance(i, int)}))

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id, or its EOS where it has none."""
        pad: Any = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else pad

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @contextmanager
    def measuring(self) -> Iterator[nn.Module]:
        """The model as it is measured: eval mode, no gradients, and without the adapter if it is disabled."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if self.adapter_disabled:
                    with self.model.disable_adapter():  # type: ignore[operator]
                        yield self.model
                else:
                    yield self.model
        finally:
            self.model.train(training)

    def check_trainable(self) -> None:
        """Refuse a policy without a parameter to train; :class:`ModelError` says what to do about it."""
        if any(parameter.requires_grad for parameter in self.model.parameters()):
            return
        if self.adapter == "loaded":
            raise ModelError(f"{self.path}: this directory holds adapters; give `lora:` to continue training them")
        raise ModelError(f"{self.path}: no parameter of this model can be trained")

    def fingerprint(self) -> dict[str, Any]:
        """:attr:`identity` of the weights as they are now (they may have been trained since)."""
        adapter = None
        if self.adapter is not None and not self.adapter_disabled:
            adapter = {"config": self._adapter_config, "weights": weights_sha256(self.model, part="adapter")}
        return {
            **self.identity,
            "weights": weights_sha256(self.model, part="base" if self.adapter else "all"),
            "adapter": adapter,
        }


# --------------------------------------------------------------------------------------------------
# Loading


def load_policy(
    cfg: ModelConfig,
    lora: LoraConfig | None = None,
    *,
    head: Head = "lm",
    lm_head: bool = False,
    seed: int,
    directory: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Policy:
    """Load (or, with ``init: random``, make) the model that ``cfg`` names.

    Args:
        cfg: the ``model:`` section.
        lora: put adapters on it; adapters stored in ``directory`` are continued.
        head: ``lm``; or that of a reward model, drawn from the seed if it is new: ``score`` (one per completion),
            ``token_score`` (one per token) or ``token_labels`` (two per token).
        lm_head: of a model with a token head, keep the LM head beside it.
        seed: of everything that is drawn.
        directory: a checkpoint or a stage's result, used in place of ``cfg.name_or_path``; if it holds
            adapters, the base still comes from ``cfg``.
        tokenizer: a ready tokenizer in place of a stored one (its vocabulary gives the size of random weights).

    Raises:
        ModelError: what is missing or does not fit, in one sentence.
    """
    source: Path | str = Path(directory) if directory is not None else _resolve(cfg)
    adapters = source if _is_adapter(source) else None
    if adapters is not None:
        source = _base_of_adapters(Path(adapters)) if directory is None else _resolve(cfg)
    for place in (adapters, source):
        _check_json(place)
    tokenizer = _tokenizer(cfg, tokenizer, adapters, source)

    random = cfg.init == "random" and (directory is None or adapters is not None)
    with _seeded(seed), _quiet():
        make = (lambda h: _random_model(cfg, source, tokenizer, h)) if random else None
        make = make or (lambda h: _pretrained_model(cfg, source, h))
        model = make(head)
        tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
        other = make("lm") if lm_head and head != "lm" and not tied else None
    _check_fit(model, tokenizer, source)
    packed, why_not = _choose_attention(model, cfg.attn)
    if head == "lm":
        check_head(model)
    else:
        prepare_saving(model, tokenizer)
        if head != "score":
            check_token_head(model)

    wrapped, adapter, adapter_config = _with_adapters(model, lora, adapters, head, seed)
    if lm_head and head != "lm":
        if other is not None and adapter is not None:
            other.requires_grad_(False)  # adapters are all that is trained, and all that is saved
        attach_lm_head(model, other)
    identity = {
        "dtype": cfg.dtype,
        "head": head,
        "tokenizer": tokenizer_sha256(tokenizer),
        "template": hashlib.sha256(_template_text(tokenizer).encode()).hexdigest(),
    }
    policy = Policy(
        model=wrapped.eval(),
        tokenizer=tokenizer,
        packed=packed,
        why_not_packed=why_not,
        identity=identity,
        path=Path(adapters or source),
        adapter=adapter,
        _adapter_config=adapter_config,
    )
    policy.identity = policy.fingerprint()
    return policy


def load_tokenizer(cfg: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer (and chat template) that :func:`load_policy` would give the model, without the model."""
    source = _resolve(cfg)
    _check_json(source)
    return _tokenizer(cfg, None, source)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no report of missing weights: what matters of it is raised as an error."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _resolve(cfg: ModelConfig) -> Path | str:
    """The directory that ``cfg.name_or_path`` means, or a hub name."""
    name = cfg.name_or_path
    if name.startswith("builtin:"):
        from steelyard.builtin import ladder

        size = name.removeprefix("builtin:")
        return ladder.directory(size) if cfg.init == "random" else ladder.path(size)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"{path}: no config.json, so this is not a model directory")
        return path
    if path.exists():
        raise ModelError(f"{path}: a file, where a model directory is expected")
    if _HUB_NAME.match(name) and not name.startswith("."):
        return name
    raise ModelError(
        f"model.name_or_path: '{name}' is no directory; expected a model directory, a hub name "
        "(owner/name) or builtin:SIZE"
    )


def _is_adapter(source: Path | str) -> bool:
    return isinstance(source, Path) and (source / "adapter_config.json").is_file()


def _check_json(place: Path | str | None) -> None:
    """The configs of a directory must be JSON objects; otherwise whoever reads them first would be blamed."""
    if not isinstance(place, Path):
        return
    for name in ("config.json", "adapter_config.json"):
        if (place / name).is_file():
            _read_json(place / name)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: expected a JSON object")
    return content


def _base_of_adapters(directory: Path) -> Path | str:
    base = _read_json(directory / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{directory}: adapter_config.json does not name its base model")
    return Path(base) if Path(base).is_dir() else base


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _tokenizer(
    cfg: ModelConfig, ready: PreTrainedTokenizerBase | None, *places: Path | str | None
) -> PreTrainedTokenizerBase:
    """``ready``, or the one that ``cfg`` names, or that of the first place which has one; with ``cfg``'s template."""
    tokenizer = ready or _load_tokenizer([cfg.tokenizer] if cfg.tokenizer else [p for p in places if p is not None])
    if tokenizer is None and cfg.tokenizer is None and cfg.name_or_path.startswith("builtin:"):
        from steelyard.builtin.tokenizer import build  # the shape of a size whose weights are not shipped

        tokenizer = build()
    if tokenizer is None:
        where = cfg.tokenizer or cfg.name_or_path
        raise ModelError(f"{where}: no tokenizer (tokenizer.json) in this directory; name one in model.tokenizer")
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{tokenizer.name_or_path}: the tokenizer has no EOS token, so no completion could ever end")
    if cfg.chat_template is not None:
        tokenizer.chat_template = _read_template(Path(cfg.chat_template))
    return tokenizer


def _load_tokenizer(places: Sequence[Path | str]) -> PreTrainedTokenizerBase | None:
    for place in places:
        path = Path(place)
        if path.is_absolute() or path.is_dir():
            if not any((path / file).is_file() for file in _TOKENIZER_FILES):
                continue
        elif not _HUB_NAME.match(str(place)) or str(place).startswith("."):
            raise ModelError(f"model.tokenizer: '{place}' is neither a directory nor a hub name (owner/name)")
        try:
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        except Exception as error:  # the tokenizers library raises bare exceptions for damaged files
            raise ModelError(f"{place}: its tokenizer cannot be loaded ({_first_line(error)})") from error
    return None


def _read_template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"model.chat_template: {path} cannot be read ({error.strerror})") from error


def _pretrained_model(cfg: ModelConfig, source: Path | str, head: Head) -> PreTrainedModel:
    try:
        model, info = HEADS[head].auto.from_pretrained(
            source,
            dtype=getattr(torch, cfg.dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **HEADS[head].options,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{source}: the model cannot be loaded ({_first_line(error)})") from error
    missing = {name for name in info["missing_keys"] if head == "lm" or name.split(".")[0] not in MODULES}
    if missing:
        raise ModelError(f"{source}: {len(missing)} weights are missing, among them '{min(missing)}'")
    return model


def _random_model(
    cfg: ModelConfig, source: Path | str, tokenizer: PreTrainedTokenizerBase, head: Head
) -> PreTrainedModel:
    """Fresh weights of the shape that ``source`` has, for the tokenizer's vocabulary."""
    if cfg.name_or_path.startswith("builtin:"):
        from steelyard.builtin import ladder

        config = ladder.config(cfg.name_or_path.removeprefix("builtin:"))
    else:
        try:
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"{source}: its config.json cannot be loaded ({_first_line(error)})") from error
    text = config.get_text_config()
    text.vocab_size = max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    for name, value in HEADS[head].options.items():
        setattr(config, name, value)
    try:
        return HEADS[head].auto.from_config(config, dtype=getattr(torch, cfg.dtype), trust_remote_code=False)
    except ValueError as error:
        raise ModelError(f"{source}: no such model can be made ({_first_line(error)})") from error


def _check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: Path | str) -> None:
    entries = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    largest = max(tokenizer.get_vocab().values())
    if largest >= entries:
        raise ModelError(
            f"{source}: the tokenizer has ids up to {largest}, but the model has only {entries} embeddings"
        )


def _choose_attention(model: PreTrainedModel, attn: str) -> tuple[bool, str]:
    if attn == "padded":
        packed, reason = False, "model.attn is 'padded'"
    else:
        packed, reason = supports_packing(model)
        if attn == "packed" and not packed:
            raise ModelError(f"model.attn: this model cannot be packed ({reason}); use 'auto' or 'padded'")
    wanted = PACKED if packed else standard_implementation(model)
    if model.config._attn_implementation != wanted and model._can_set_attn_implementation():
        model.set_attn_implementation(wanted)
    return packed, reason


def _with_adapters(
    model: PreTrainedModel, lora: LoraConfig | None, adapters: Path | str | None, head: Head, seed: int
) -> tuple[nn.Module, Literal["fresh", "loaded"] | None, dict[str, Any] | None]:
    if lora is None and adapters is None:
        return model, None, None
    import peft

    if adapters is not None:
        try:
            wrapped = peft.PeftModel.from_pretrained(model, str(adapters), is_trainable=lora is not None)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{adapters}: its adapters cannot be loaded ({_first_line(error)})") from error
        return wrapped, "loaded", _plain_adapter_config(wrapped)
    assert lora is not None
    config = peft.LoraConfig(
        task_type=HEADS[head].task,
        r=lora.r,
        lora_alpha=lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        exclude_modules=list(MODULES) if head != "lm" else None,  # heads are trained whole
    )
    try:
        with _seeded(seed):
            wrapped = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora: adapters cannot be put on this model ({_first_line(error)})") from error
    return wrapped, "fresh", _plain_adapter_config(wrapped)


def _plain_adapter_config(wrapped: Any) -> dict[str, Any]:
    """What changes an adapter's function, as JSON; no paths."""
    config = wrapped.peft_config["default"]
    names = ("r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "modules_to_save", "bias")
    values = {name: getattr(config, name, None) for name in names}
    return {k: sorted(v) if isinstance(v, set | list | tuple) else v for k, v in values.items()}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0]}"


# --------------------------------------------------------------------------------------------------
# Saving, freezing


def save_policy(policy: Policy, directory: Path) -> None:
    """Write a Hugging Face directory (an adapter directory for LoRA), all or nothing.

    Plain ``AutoModelForCausalLM.from_pretrained`` (peft's ``AutoPeftModelForCausalLM``; the classification classes
    for reward heads) loads it with the same weights; no trace of our attention is left in its config.
    """
    options = {"save_embedding_layers": False} if policy.adapter else {}
    with atomic_directory(directory) as temporary, standard_attention(policy.model), _quiet():
        policy.model.save_pretrained(temporary, **options)  # type: ignore[operator]
        policy.tokenizer.save_pretrained(temporary)


def freeze_copy(policy: Policy) -> Policy:
    """The reference of training: this policy as it is now, frozen.

    With a fresh adapter it is the same model with the adapter disabled, which costs no memory; otherwise a
    deep copy.
    """
    if policy.adapter == "fresh":
        reference = replace(policy, adapter_disabled=True)
    else:
        reference = replace(policy, model=copy.deepcopy(policy.model).requires_grad_(False).eval())
    reference.identity = reference.fingerprint()
    return reference


# --------------------------------------------------------------------------------------------------
# Hashes


def weights_sha256(model: nn.Module, *, part: Literal["all", "base", "adapter"] = "all") -> str:
    """SHA-256 over names, types, shapes and bytes of the parameters, sorted by name.

    Args:
        part: of a model with adapters: everything, the base without its adapters (the same hash as the bare
            model), or the adapters alone.
    """
    digest = hashlib.sha256()
    tensors = {}
    for name, parameter in model.named_parameters():
        adapter = "lora_" in name or ".modules_to_save." in name
        if part == "all" or adapter == (part == "adapter"):
            tensors[_bare_name(name)] = parameter
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _bare_name(name: str) -> str:
    """A parameter's name without what peft's wrapping adds."""
    for wrapping in (".base_layer", ".original_module"):
        name = name.replace(wrapping, "")
    return name.removeprefix("base_model.model.")


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what the tokenizer does: tokenizer.json, less padding and truncation."""
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return sha256_json({"vocabulary": tokenizer.get_vocab(), "special": special})
    content = json.loads(backend.to_str())
    for state in ("padding", "truncation"):
        content.pop(state, None)
    return sha256_json({"tokenizer": content, "special": special})


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    return template if isinstance(template, str) else canonical_json(template) if template else ""
