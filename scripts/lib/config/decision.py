"""When the packaged model answers, and when it says that it is unsure."""

from pydantic import model_validator

from lib.config.sources import Share
from lib.config.variants import Section


class Decision(Section):
    """When the packaged model gives its label, and when the answer is "unsure". The threshold on the corrected
    probability is chosen on validation rows; the test rows show what it is worth. Give one of the two keys."""

    precision: Share | None = None
    """Share of the answers that must be right; as many rows as possible are answered. Where no threshold reaches it,
    nothing is answered, and the report says so."""
    coverage: Share | None = None
    """Share of the rows that must be answered: the surest ones."""

    @model_validator(mode="after")
    def _one(self) -> "Decision":
        if (self.precision is None) == (self.coverage is None):
            raise ValueError("give precision: or coverage:, one of the two")
        return self
