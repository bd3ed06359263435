"""The hyperparameters of one evaluation job: names, types, ranges, defaults and spellings.

Reads three spellings (the SDK's, the nested one of the developer guide, the flat one of the hosted API) and writes one. Keeps
every value that was set.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from heldout.errors import HyperparameterError, did_you_mean, shown

Value = int | float | bool | str | tuple[int, ...]
_MOST = 2**31 - 1
"""The upper limit of an integer without a limit of its own: model servers read token counts and seeds into 32 bits."""
_DIGITS = len(str(_MOST))


@dataclass(frozen=True, slots=True)
class Specification:
    """Name, type, range and meaning of one hyperparameter."""

    name: str
    """The canonical spelling."""
    default: Value
    meaning: str
    low: float | None = None
    high: float | None = None
    is_low_excluded: bool = False
    choices: tuple[str, ...] = ()
    spellings: tuple[str, ...] = ()
    """The other spellings; a dot separates the levels of the nested one."""

    @property
    def expected(self) -> str:
        """Type and range in words, for error messages."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"a name, such as {self.default}"
        if isinstance(self.default, tuple):
            return "a list of integers from 1 up, such as [1, 4, 16]"
        kind = "an integer" if isinstance(self.default, int) else "a number"
        if self.low is None:
            return f"{kind} that is finite"
        if self.is_low_excluded:
            return f"{kind} above {self.low:g}" + ("" if self.high is None else f" and up to {self.high:.10g}")
        return f"{kind} from {self.low:g} " + ("up" if self.high is None else f"to {self.high:.10g}")

    def parse(self, value: object) -> Value:
        """Converts `value`, or its text as the SDK sends it, to this hyperparameter's type.

        Raises HyperparameterError for a value of another type or out of range.
        """
        parsed = self._converted(_from_text(value) if not self.choices else value)
        if parsed is None:
            raise HyperparameterError(
                f"hyperparameter {self.name!r} is {shown(value)}; it must be {self.expected} ({self.meaning})"
            )
        return parsed

    def _converted(self, value: object) -> Value | None:
        if self.choices:
            return value if isinstance(value, str) and value in self.choices else None
        if isinstance(self.default, bool):
            return value if isinstance(value, bool) else None
        if isinstance(self.default, str):
            return value if isinstance(value, str) and value.strip() else None
        if isinstance(self.default, tuple):
            return _counts(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        try:
            number = float(value)
        except OverflowError:  # an integer beyond what a float can hold, and beyond every range
            return None
        if not math.isfinite(number) or not self._is_in_range(number):
            return None
        if isinstance(self.default, int):
            return int(number) if number.is_integer() else None
        return number

    def _is_in_range(self, value: float) -> bool:
        if self.low is not None and (value <= self.low if self.is_low_excluded else value < self.low):
            return False
        return self.high is None or value <= self.high


def _from_text(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        parsed: object = json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        parts = [part.strip() for part in text.strip("()").split(",")]
        are_counts = len(parts) > 1 and all(part.isdecimal() and len(part) <= _DIGITS for part in parts)
        return [int(part) for part in parts] if are_counts else value
    return parsed


def _counts(value: object) -> tuple[int, ...] | None:
    values = [value] if isinstance(value, int) else value
    if not isinstance(values, list | tuple) or not values:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int) or not 1 <= v <= _MOST for v in values):
        return None
    return tuple(sorted(set(values)))


SAMPLING = ("sampling_temperature", "top_p", "max_tokens", "enforce_sampling", "seed")
"""The hyperparameters that decide how replies are sampled."""

SPECIFICATIONS: Mapping[str, Specification] = {
    s.name: s
    for s in (
        Specification(
            "eval_group_size", 1, "how many rollouts each prompt gets", 1, 4096, spellings=("batch.eval_group_size",)
        ),
        Specification(
            "sampling_temperature",
            0.0,
            "0 is greedy",
            0,
            2,
            spellings=("eval_sampling_params.temperature", "temperature"),
        ),
        Specification(
            "top_p",
            1.0,
            "nucleus sampling",
            0,
            1,
            is_low_excluded=True,
            spellings=("eval_sampling_params.sampling_top_p", "sampling_top_p"),
        ),
        Specification(
            "max_tokens",
            4096,
            "most tokens of one reply",
            1,
            _MOST,
            spellings=("eval_sampling_params.sampling_max_tokens", "sampling_max_tokens"),
        ),
        Specification(
            "pass_k_values",
            (1, 2, 4, 8, 16, 32),
            "the k of pass@k and pass^k",
            spellings=("eval_metrics_config.pass_k_values",),
        ),
        Specification(
            "success_threshold",
            1.0,
            "a rollout succeeds when its reward is at least this",
            spellings=("eval_metrics_config.success_threshold",),
        ),
        Specification(
            "rollout_timeout",
            600.0,
            "seconds one attempt may take",
            0,
            is_low_excluded=True,
            spellings=("rollout.timeout",),
        ),
        Specification(
            "rollout_max_concurrency",
            96,
            "how many rollouts play at once",
            1,
            65536,
            spellings=("rollout.max_concurrency",),
        ),
        Specification(
            "rollout_max_retries",
            3,
            "further attempts after one that failed",
            0,
            100,
            spellings=("rollout.max_retries",),
        ),
        Specification(
            "retry_agent_failures",
            True,
            "retry attempts that the agent or the model failed; false retries only failures of machines and servers",
        ),
        Specification("enforce_sampling", False, "overwrite the sampling parameters an agent sends by the job's"),
        Specification(
            "isolate_attempts", False, "play each attempt in a process of its own, as AgentCore's sessions are"
        ),
        Specification("logprobs", False, "ask the policy for log-probabilities and report their metrics"),
        Specification(
            "failed_rollouts",
            "zero",
            "what a rollout that failed for good counts as: reward 0, or nothing",
            choices=("zero", "exclude"),
        ),
        Specification(
            "max_failed_share",
            0.1,
            "the largest share of failed rollouts with which the numbers are complete; an incomplete run gets no verdict",
            0,
            1,
        ),
        Specification(
            "primary_metric",
            "pass@1",
            "the metric that a comparison's verdict is about, by any of its names",
        ),
        Specification("seed", 0, "what every rollout's sampling seed is drawn from", 0, _MOST),
    )
}

_SECTIONS = frozenset(
    spelling.split(".")[0] for s in SPECIFICATIONS.values() for spelling in s.spellings if "." in spelling
)
_CANONICAL = {
    spelling: s.name for s in SPECIFICATIONS.values() for spelling in (s.name, *s.spellings, s.name.replace("_", "-"))
}


class Hyperparameters:
    """The hyperparameters of one job. Checks each value when it is set.

    Attributes have the canonical names; any other spelling reads and writes the same value. Raises HyperparameterError for an
    unknown name (with the nearest known one), a value of another type or out of range, and two different values of one name.
    """

    eval_group_size: int
    sampling_temperature: float
    top_p: float
    max_tokens: int
    pass_k_values: tuple[int, ...]
    success_threshold: float
    rollout_timeout: float
    rollout_max_concurrency: int
    rollout_max_retries: int
    retry_agent_failures: bool
    enforce_sampling: bool
    isolate_attempts: bool
    logprobs: bool
    failed_rollouts: str
    max_failed_share: float
    primary_metric: str
    seed: int

    def __init__(self, values: Mapping[str, object] | None = None) -> None:
        self.__dict__["_set"] = {}
        for name, value in _flattened(values or {}):
            canonical = canonical_name(name)
            parsed = SPECIFICATIONS[canonical].parse(value)
            if self._set.get(canonical, parsed) != parsed:
                raise HyperparameterError(
                    f"hyperparameter {canonical!r} is given twice: {self._set[canonical]!r} and, as {name!r}, {parsed!r}"
                )
            self._set[canonical] = parsed

    _set: dict[str, Value]

    def __getattr__(self, name: str) -> Value:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            canonical = canonical_name(name)
        except HyperparameterError as error:
            raise AttributeError(str(error)) from error
        return self._set.get(canonical, SPECIFICATIONS[canonical].default)

    def __setattr__(self, name: str, value: object) -> None:
        canonical = canonical_name(name)
        self._set[canonical] = SPECIFICATIONS[canonical].parse(value)

    def __dir__(self) -> list[str]:
        return sorted([*SPECIFICATIONS, "get_info", "set_values", "to_dict"])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hyperparameters) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"Hyperparameters({inside})"

    def to_dict(self) -> dict[str, Value]:
        """Returns every value by canonical name, defaults included."""
        return {name: self._set.get(name, s.default) for name, s in SPECIFICATIONS.items()}

    def set_values(self) -> dict[str, Value]:
        """Returns only the values that were set, by canonical name."""
        return dict(self._set)

    def get_info(self) -> dict[str, dict[str, Value]]:
        """Prints and returns a line for each hyperparameter: value, default, expected values, meaning."""
        info: dict[str, dict[str, Value]] = {
            name: {
                "value": self._set.get(name, s.default),
                "default": s.default,
                "expected": s.expected,
                "meaning": s.meaning,
            }
            for name, s in SPECIFICATIONS.items()
        }
        width = max(map(len, info))
        for name, entry in info.items():
            print(f"{name:<{width}}  {entry['value']!s:<22} {entry['meaning']}; {entry['expected']}")
        return info


def canonical_name(name: str) -> str:
    """Returns the canonical spelling of a hyperparameter's name. Raises HyperparameterError for an unknown name."""
    if name in _CANONICAL:
        return _CANONICAL[name]
    nearest = did_you_mean(name, _CANONICAL)
    raise HyperparameterError(
        f"no hyperparameter {name!r}.{nearest or ' There are: ' + ', '.join(SPECIFICATIONS) + '.'}"
    )


def _flattened(values: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            if name not in _SECTIONS:
                raise HyperparameterError(
                    f"hyperparameter {name!r} is {shown(value)}; only these have nested ones: {', '.join(sorted(_SECTIONS))}."
                    + did_you_mean(name, _SECTIONS)
                )
            for inner, inner_value in value.items():
                yield f"{name}.{inner}", inner_value
        else:
            yield name, value
