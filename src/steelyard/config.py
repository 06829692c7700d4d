"""Every configuration section.  Imports no torch, so that planning a study and reading a report are instant.

A run is one :class:`RunConfig`; a study (:mod:`steelyard.study.axes`) is the same file plus ``axes:``.
Precedence: defaults < file(s) < flags.  Unknown keys are errors with a suggestion.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, model_serializer, model_validator

from steelyard.algorithms.catalogue import resolve, resolve_hyperparameters

Probability = Annotated[float, Ge(0.0), Le(1.0)]
Positive = Annotated[int, Gt(0)]


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class ModelConfig(Section):
    """Which model is trained, and where its tokenizer and template come from."""

    name_or_path: str = "builtin:0.1m"
    """A local Hugging Face directory, or `builtin:SIZE` for the shipped ladder (0.1m, 0.5m, ...)."""
    tokenizer: str | None = None
    """Tokenizer directory; default: the model's own."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` keeps only the shape (config.json) and draws fresh weights from the seed."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Weights' type; log-probabilities are always float32 (or float64)."""
    attn: Literal["auto", "packed", "padded"] = "auto"
    """`packed` shares prompts and pads nothing; `padded` is the slow reference; `auto` picks packed where possible."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's."""
    train_tokenizer: TokenizerConfig | None = None
    """Train a small BPE tokenizer on the training data first (only with `init: random`)."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name_or_path": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _tokenizer_fits(self) -> ModelConfig:
        if self.train_tokenizer is not None and self.init != "random":
            raise ValueError(
                "model.train_tokenizer needs `init: random`: loaded embeddings know another tokenizer's ids"
            )
        return self


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer trained on the training rows."""

    vocab_size: Positive = 2048
    """Number of entries, special tokens included."""


class AlgorithmConfig(Section):
    """The algorithm and its hyperparameters; which ones exist is read from the algorithm's signature."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    """A key of `steelyard algorithms`, or one of oxRL's names (`steelyard algorithms --oxrl`)."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            given = {key: item for key, item in value.items() if key != "name"}
            name = resolve(value["name"])
            return {"name": name, **resolve_hyperparameters(name, given)}
        return value

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter with its value (defaults filled in)."""
        return dict(self.model_extra or {})


class GenerateConfig(Section):
    """Self-play data (oxRL's protocol): sample completions from the model under study, verify, select."""

    prompts: Positive = 256
    """How many training prompts are sampled."""
    num_generations: Positive = 8
    """Completions per prompt (k)."""
    temperature: Annotated[float, Gt(0.0)] = 1.0
    """Sampling temperature."""
    top_p: Probability = 1.0
    """Nucleus sampling."""
    max_completion_length: Positive = 96
    """Tokens at most; longer completions count as truncated."""
    max_pairs_per_prompt: Positive = 2
    """Preference pairs (one verified right, one verified wrong) kept per prompt."""
    max_correct_per_prompt: Positive = 4
    """Distinct right completions kept per prompt (rejection sampling)."""
    max_list_length: Annotated[int, Ge(2)] = 4
    """Completions of a ranked list at most (listwise methods)."""


class DataConfig(Section):
    """Where the rows come from, and how they are rendered."""

    task: str | None = None
    """A built-in task (`arithmetic`): gold rows, prompts and a verifier."""
    path: str | None = None
    """A JSON, JSONL(.gz), CSV or Parquet file of rows; relative to the recipe, or `data:NAME` for shipped data."""
    split: str = "train"
    """Split of the built-in task."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames: our column name -> the file's."""
    limit: Positive | None = None
    """Use only the first N rows."""
    holdout: Annotated[float, Ge(0.0), Lt(1.0)] = 0.0
    """Share of a file's rows that is kept out of training, by a hash of their prompt; reward models report on them."""
    max_length: Positive = 512
    """Tokens of a prompt with one completion; longer rows follow `overlong`."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """`drop` leaves the row out, `truncate` cuts completions at the end; both are counted and reported."""
    max_dropped: Probability = 0.5
    """Stop when more than this share of the rows is dropped or truncated."""
    completion_only_loss: bool = True
    """False trains on prompt tokens too (supervised methods)."""
    generate: GenerateConfig | None = None
    """Set for methods that learn from the model's own verified samples."""

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.task is None) == (self.path is None):
            raise ValueError("data needs exactly one of `task` (built-in) and `path` (a file)")
        return self


class TeacherConfig(Section):
    """The model that a method learns from (distillation)."""

    name_or_path: str
    """A local Hugging Face directory, or `builtin:SIZE`; it must have the policy's tokenizer."""
    top_k: Positive | None = None
    """Keep the teacher's k most probable tokens at every position, renormalised; null: the whole vocabulary."""
    tail: bool = False
    """With `top_k`: one more entry for all other tokens together, instead of renormalising."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name_or_path": value} if isinstance(value, str) else value


class LoraConfig(Section):
    """Low-rank adapters through peft; absent: full fine-tuning."""

    r: Positive = 16
    """Rank."""
    lora_alpha: Annotated[float, Gt(0.0)] = 32.0
    """Scale; the update is multiplied by lora_alpha / r."""
    lora_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """Module names, or `all-linear`."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r)."""


class OptimConfig(Section):
    """AdamW and its schedule."""

    learning_rate: Annotated[float, Ge(0.0)] = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after the warm-up; linear and cosine reach zero one step after the last."""
    warmup_ratio: Probability = 0.1
    """Share of the steps with a linear warm-up."""
    weight_decay: Annotated[float, Ge(0.0)] = 0.0
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's momentum coefficients."""
    eps: Annotated[float, Gt(0.0)] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[float, Gt(0.0)] | None = 1.0
    """Global gradient norm at most; null: no clipping (the norm is logged either way)."""


class TrainConfig(Section):
    """The loop: how much of what per optimizer step."""

    prompts_per_step: Positive = 32
    """Groups (rows, pairs, prompts) in one optimizer step, over all micro-batches and ranks."""
    max_steps: Positive | None = None
    """Optimizer steps; default: from `num_train_epochs`."""
    num_train_epochs: Annotated[float, Gt(0.0)] = 1.0
    """Passes over the rows, when `max_steps` is not given."""
    tokens_per_microbatch: Positive = 16384
    """Token budget of one forward pass; changes memory and speed, never the result beyond rounding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    logging_steps: Positive = 1
    """Steps between rows of metrics.jsonl."""
    save_steps: Positive | None = None
    """Steps between checkpoints; null: none but the final model."""
    save_total_limit: Positive | None = 2
    """Checkpoints kept."""
    eval_steps: Positive | None = None
    """Steps between evaluations on the development tasks' selection split; null: only at the end."""


class RolloutConfig(Section):
    """Online sampling, from the whole distribution: truncating it would bias the ratios to the sampling policy."""

    num_generations: Annotated[int, Ge(2)] = 8
    """Completions per prompt (the group size G)."""
    temperature: Annotated[float, Gt(0.0)] = 1.0
    """Sampling temperature; log-probabilities are taken at the same temperature."""
    max_completion_length: Positive = 96
    """Tokens at most."""
    max_sampler_mismatch: Annotated[float, Gt(0.0)] = 0.05
    """Stop when the mean |log p(sampler) - log p(trainer)| of a rollout batch exceeds this."""


class RewardConfig(Section):
    """One reward function; several are summed with weights."""

    name: str
    """A registered reward; `model` for a trained reward model."""
    weight: float = 1.0
    """Its weight."""
    path: str | None = None
    """Of the reward `model`: its directory (a run, or the `model/` in it)."""
    reference: str | None = None
    """Of an implicit reward `model`: the model that its training started from, where that is not known."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_a_model(self) -> RewardConfig:
        if self.name == "model" and self.path is None:
            raise ValueError("the reward `model` needs `path`, the directory of a trained reward model")
        if self.name != "model" and (self.path is not None or self.reference is not None):
            raise ValueError(f"`path` and `reference` belong to the reward `model`, not to '{self.name}'")
        return self


class EvalConfig(Section):
    """What is measured after (and during) training."""

    tasks: list[str] = Field(default_factory=list)
    """Task names; generative tasks are decoded greedily, multiple choice is scored by log-likelihood."""
    split: Literal["selection", "test"] = "test"
    """`selection` for choosing anything, `test` for reporting only."""
    limit: Positive | None = None
    """Items per task at most."""
    max_completion_length: Positive = 128
    """Tokens at most; longer answers are counted as truncated."""
    preference_path: str | None = None
    """Held-out preference rows, scored by log-prob and by log-ratio (or by the reward head)."""
    quality_path: str | None = None
    """Held-out rows in the form that a reward model learns from (pairs, labels, steps), for its quality report."""
    best_of: Positive = 8
    """Reward heads answer tasks by picking one of this many samples of the start, drawn at temperature 1."""


class RunConfig(Section):
    """One training run, or (with `algorithm: base`) the evaluation of an untrained model."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    """Version of this file format."""
    model: ModelConfig = ModelConfig()
    """The policy."""
    algorithm: AlgorithmConfig
    """What is optimised."""
    profile: Literal["paper", "oxrl"] = "paper"
    """Hyperparameters that a recipe does not give: those of each method's paper, or oxRL's shared beta of 0.1."""
    data: DataConfig
    """What it learns from."""
    sft: StageConfig | None = None
    """A supervised stage before the method: its result is the method's start and reference."""
    teacher: TeacherConfig | None = None
    """The teacher of distillation methods."""
    lora: LoraConfig | None = None
    """Adapters; absent: full fine-tuning."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    rollout: RolloutConfig = RolloutConfig()
    """Online sampling (online methods only)."""
    rewards: list[RewardConfig] = Field(default_factory=list)
    """Reward functions (online methods only); default: the task's own verifier."""
    eval: EvalConfig = EvalConfig()
    """Evaluation."""
    seed: Annotated[int, Ge(0)] = 0
    """Reaches data order, generated data, the sampler, and the initialisation of new heads and adapters."""
    threads: Positive = 1
    """Threads of the tensor library; part of the run's identity, since results are bit-exact per thread count."""

    @model_serializer(mode="wrap")
    def _plain(self, handler: Any) -> dict[str, Any]:
        plain = handler(self)
        if "schema_" in plain:
            plain = {"schema": plain.pop("schema_"), **plain}
        return plain


class StageConfig(Section):
    """A supervised stage on the chosen completions (or gold rows) before the method."""

    optim: OptimConfig = OptimConfig()
    """Its optimizer."""
    train: TrainConfig = TrainConfig()
    """Its loop."""
    seed: Annotated[int, Ge(0)] | None = None
    """Default: the run's seed."""


for _section in (ModelConfig, RunConfig):
    _section.model_rebuild()
