"""Types and ranges of single settings, and the table that holds them."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from otdml._arguments import check_known

__all__ = [
    "NUMBER",
    "TABLE",
    "Count",
    "Magnitude",
    "Neighbours",
    "NumberOrRates",
    "OnCorrupt",
    "Positive",
    "Rates",
    "Share",
    "Table",
    "Text",
    "Whole",
    "Width",
    "one_of",
]


def one_of(what: str, names: tuple[str, ...]) -> AfterValidator:
    """A check that a text is one of the names; ``what`` it is called where it is none."""
    return AfterValidator(lambda value: check_known(what, value, names))


Text = Annotated[str, StringConstraints(min_length=1)]
# Limits beyond which a run would exhaust memory or time before any error is raised.
Count = Annotated[int, Field(ge=1, le=10**6)]
Whole = Annotated[int, Field(ge=0, le=10**6)]
Width = Annotated[int, Field(ge=1, le=2**14)]
Positive = Annotated[float, Field(gt=0)]
Magnitude = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Neighbours = Annotated[int, Field(ge=1, le=2**31 - 1)]
OnCorrupt = Annotated[str, one_of("policy", ("raise", "skip"))]


class Table(BaseModel):
    """A table of settings: no key but its fields, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Rates(Table):
    """A number for each part of the model."""

    backbone: Magnitude | None = None
    head: Magnitude | None = None
    proxies: Magnitude | None = None
    flow: Magnitude | None = None


# Pydantic's tags for a union of types, which messages leave out of the key.
NUMBER, TABLE = "<number>", "<table>"
NumberOrRates = Annotated[
    Annotated[Magnitude, Tag(NUMBER)] | Annotated[Rates, Tag(TABLE)],
    Discriminator(lambda value: TABLE if isinstance(value, Mapping | Rates) else NUMBER),
]
