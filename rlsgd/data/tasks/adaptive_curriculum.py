"""The difficulties of a data set of reasoning_gym: the levels of the library's own curriculum."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from rlsgd.rewards.reasoning_gym import build_dataset


class Curriculum:
    """From a difficulty to the options of a data set.

    A curriculum has attributes, such as the number of digits, each with a list of levels. At
    difficulty d every attribute is at level d alone, or at its last one. An attribute of which an
    option is set in `config` does not rise.

    Args:
        name: the data set.
        config: options that are the same at every difficulty.

    Attributes:
        last: the highest difficulty that differs from the one before.

    Raises:
        ValueError: there is no such data set, it has no curriculum, or nothing of it can rise.
    """

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        from reasoning_gym.factory import create_curriculum, has_curriculum

        build_dataset(name, config, seed=0, size=1)
        if not has_curriculum(name):
            raise ValueError(
                f"--data.task.name: reasoning_gym has no curriculum for {name}; use --data.task "
                "ReasoningGym, whose difficulty stays the same"
            )
        self.name = name
        self.config = dict(config)
        attributes = create_curriculum(name).attributes
        self.rising = {
            attribute.name: _options(attribute)
            for attribute in attributes.values()
            if not _options(attribute) & config.keys()
        }
        levels = [len(attributes[attribute].levels) for attribute in self.rising]
        self.last = max(levels, default=1) - 1
        # at the end of an attribute that needs an interval two levels give the same options
        while self.last and self.options(self.last) == self.options(self.last - 1):
            self.last -= 1
        if not self.last:
            rise = ", ".join(sorted(set().union(*map(_options, attributes.values()))))
            raise ValueError(
                f"--data.task.config: nothing of {name} can rise; leave out some of {rise}"
            )

    def options(self, difficulty: int) -> dict[str, Any]:
        """The data set's options at a difficulty; others keep reasoning_gym's defaults."""
        risen = set().union(*self.rising.values())
        levels = _levels(self.name, difficulty)
        return {**self.config, **{option: levels[option] for option in sorted(risen)}}


@lru_cache(maxsize=1024)
def _levels(name: str, difficulty: int) -> dict[str, Any]:
    """Every option that the curriculum sets at a difficulty."""
    from reasoning_gym.coaching.base_curriculum import DefaultCurriculumContext, RangeAttributeMode
    from reasoning_gym.factory import create_curriculum

    curriculum = create_curriculum(name)
    curriculum.set_global_level(difficulty)
    # the level itself; by default a curriculum takes all levels up to it
    context = DefaultCurriculumContext(RangeAttributeMode.UPPER_BOUND)
    return dict(vars(curriculum.generate_configuration(context=context)))


def _options(attribute: Any) -> set[str]:
    """The options that an attribute sets: one, or the two ends of a range."""
    fields = ("field_name", "lower_field_name", "upper_field_name")
    return {getattr(attribute, field) for field in fields if hasattr(attribute, field)}
