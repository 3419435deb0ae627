"""Names in settings, in a module without torch, so that settings are checked before torch is imported."""

from dataclasses import dataclass

from otdml._arguments import argument_error, check_known

__all__ = ["PART_NAMES", "PLACES", "REGULARISER_NAMES", "DispersionName"]

PART_NAMES = ("backbone", "head", "proxies", "flow")
REGULARISER_NAMES = ("koleo", "max-min-angle", "max-cosine", "uniformity", "riesz", "mmd", "lloyd", "sliced")
PLACES = ("embeddings", "proxies")


@dataclass(frozen=True)
class DispersionName:
    """A dispersion loss, its weight and its place, written ``NAME:WEIGHT[@PLACE]``.

    Example:
        >>> str(DispersionName.parsed("koleo:0.10@proxies"))
        'koleo:0.1@proxies'
    """

    name: str
    weight: float
    place: str = PLACES[0]

    @classmethod
    def parsed(cls, text: str) -> "DispersionName":
        """The dispersion loss that ``text`` describes.

        Raises:
            ValueError: If the text has another form, a part is unknown, or the weight is not positive.
        """
        what, at, place = text.partition("@")
        name, colon, number = what.partition(":")
        try:
            weight = float(number)
        except ValueError:
            weight = 0.0
        if not (colon and 0 < weight < float("inf")) or (at and not place):
            must = "be NAME:WEIGHT or NAME:WEIGHT@PLACE with a positive weight"
            raise argument_error("dispersion", must, repr(text), "For example koleo:0.1, or koleo:0.1@proxies.")
        check_known("dispersion", name, REGULARISER_NAMES)
        return cls(name, weight, check_known("place of dispersion", place, PLACES) if at else PLACES[0])

    def __str__(self) -> str:
        # Without the sign of an exponent: a "+" separates the parts of a method's name.
        weight = repr(self.weight).removesuffix(".0").replace("e+", "e")
        return f"{self.name}:{weight}" + (f"@{self.place}" if self.place != PLACES[0] else "")
