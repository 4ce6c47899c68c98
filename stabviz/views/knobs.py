"""Knobs: what a learner may move in a panel, and the widgets that show it.

A knob is a value with a name, a range and a unit. Its control is a number field and a slider that always
agree; the number is the truth, because it is what the learner reads and what the run is given.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from numbers import Real

import ipywidgets


@dataclass(frozen=True, slots=True)
class Knob:
    """Declare a number (or, with a bool default, a switch) that a panel hands to `run` by name.

    An int default makes an integer knob, a float default a real one: write 1.0 where you mean a real number.

    Units:  `unit` is shown beside the field, e.g. "nats"; leave it empty for a pure number
    Raises: ValueError if the range is missing or empty, leaves out the default, or is not positive with log
    Lesson: 00-start-here

    >>> Knob("lr", 3e-3, low=1e-4, high=1.0, log=True).ends_and_middle()
    (0.0001, 0.01, 1.0)
    """

    name: str
    """Keyword under which `run` receives the value."""
    default: float | int | bool
    """Value at the start and after Reset; its type decides the kind of control."""
    _: KW_ONLY
    low: float | int | None = None
    """Smallest value (included). Not used by a switch."""
    high: float | int | None = None
    """Largest value (included). Not used by a switch."""
    log: bool = False
    """True: equal slider steps are equal ratios, as rates need."""
    unit: str = ""
    """Unit in words or symbols, shown with the range."""
    step: float | int | None = None
    """Slider step: in the value, or with log=True in decades. None: about forty positions."""
    label: str = ""
    """What the learner reads; the name with spaces where this is empty."""

    def __post_init__(self):
        if isinstance(self.default, bool):
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(
                f"Knob: low and high of {self.name!r} must be numbers with low < high; "
                f"got {self.low!r} and {self.high!r}. A switch needs a bool default."
            )
        if self.log and self.low <= 0:
            raise ValueError(f"Knob: low of {self.name!r} must be > 0 with log=True; got {self.low!r}")
        if not self.low <= self.default <= self.high:
            raise ValueError(
                f"Knob: default of {self.name!r} must be in [{self.low:g}, {self.high:g}]; "
                f"got {self.default!r}"
            )

    @property
    def kind(self) -> str:
        """Say which control this is: "switch", "integer" or "real"."""
        if isinstance(self.default, bool):
            return "switch"
        return "integer" if isinstance(self.default, int) and isinstance(self.low, int) else "real"

    @property
    def title(self) -> str:
        """Name for the reader."""
        return self.label or self.name.replace("_", " ")

    @property
    def ends(self) -> tuple[float, float]:
        """The range of a number."""
        if self.low is None or self.high is None:
            raise ValueError(f"Knob: {self.name!r} is a switch, which has no range")
        return self.low, self.high

    def accept(self, value):
        """Return `value` in this knob's type, or say what it must be; never clip it."""
        if self.kind == "switch":
            if not isinstance(value, bool):
                raise ValueError(f"Knob: {self.name} must be True or False; got {value!r}")
            return value
        # a bool is an int in Python, and NaN fails the comparison
        if isinstance(value, bool) or not isinstance(value, Real) or not self.low <= value <= self.high:
            raise ValueError(f"Knob: {self.name} must be in [{self.low:g}, {self.high:g}]; got {value!r}")
        if self.kind == "integer" and value != int(value):
            raise ValueError(f"Knob: {self.name} must be a whole number; got {value!r}")
        return int(value) if self.kind == "integer" else float(value)

    def ends_and_middle(self) -> tuple:
        """Return what a test of a panel tries: both ends and the middle (in decades with log=True)."""
        if self.kind == "switch":
            return (False, True)
        low, high = self.ends
        middle = math.sqrt(low * high) if self.log else (low + high) / 2
        return tuple(self.accept(self._rounded(value)) for value in (low, middle, high))

    def _rounded(self, value):
        """Round to what the learner can read, so that the number shown is the number used."""
        if self.kind == "integer":
            value = round(value)
        else:
            value = float(f"{value:.3g}" if self.log else f"{value:.6g}")
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """Declare a choice among a few named options.

    Raises: ValueError if the default is not among the options
    Lesson: 00-start-here
    """

    name: str
    """Keyword under which `run` receives the option."""
    default: object
    """Option at the start and after Reset."""
    options: tuple | list
    """Options in the order shown."""
    _: KW_ONLY
    label: str = ""
    """What the learner reads; the name with spaces where this is empty."""

    def __post_init__(self):
        self.accept(self.default)

    @property
    def title(self) -> str:
        """Name for the reader."""
        return self.label or self.name.replace("_", " ")

    def accept(self, value):
        """Return `value` if it is one of the options."""
        if value not in tuple(self.options):
            raise ValueError(f"Choice: {self.name} must be one of {tuple(self.options)!r}; got {value!r}")
        return value

    def ends_and_middle(self) -> tuple:
        """Return every option: a test of a panel tries all of them."""
        return tuple(self.options)


class Control:
    """The widgets of one knob: `box` to show, `value` to read, `assign` to set without calling back."""

    def __init__(self, knob: Knob | Choice, on_move: Callable[[], None]):
        self.knob, self._on_move, self._assigning = knob, on_move, False
        self._slider, note = None, ""
        if isinstance(knob, Choice):
            self._field = ipywidgets.Dropdown(
                options=[(str(option), option) for option in knob.options], value=knob.default
            )
        elif knob.kind == "switch":
            self._field = ipywidgets.Checkbox(value=knob.default, indent=False)
        else:
            self._field, self._slider = _number_and_slider(knob)
            note = f"{knob.low:g} to {knob.high:g} {knob.unit}".strip()
        self._field.description = knob.title
        self._field.add_class("stabviz-field")
        self._field.observe(self._field_moved, names="value")
        shown = [self._field]
        if self._slider is not None:
            self._slider.description = knob.title
            self._slider.add_class("stabviz-slider")
            self._slider.observe(self._slider_moved, names="value")
            shown.append(self._slider)
        shown.append(ipywidgets.HTML(f'<span class="stabviz-note">{note}</span>'))
        self.box = ipywidgets.HBox(shown)
        self.box.add_class("stabviz-knob")
        self.box.add_class(f"stabviz-knob-{knob.name}")

    @property
    def value(self):
        """The value that the run is given."""
        return self._field.value

    def assign(self, value):
        """Show `value` in every widget of this knob; the caller decides what follows."""
        self._assigning = True  # the widgets call back at each of these assignments
        try:
            self._field.value = value
            if self._slider is not None:
                self._slider.value = value
        finally:
            self._assigning = False

    def _slider_moved(self, change):
        if not self._assigning:
            self._field.value = self.knob._rounded(change["new"])  # the field's own callback reports the move

    def _field_moved(self, change):
        if self._assigning:
            return
        if self._slider is not None and self.knob._rounded(self._slider.value) != change["new"]:
            self.assign(change["new"])
        self._on_move()


def _number_and_slider(knob: Knob):
    low, high = knob.ends
    bounds = {"min": low, "max": high, "value": knob.default}
    # continuous_update would start a run at every pixel that the slider passes
    quiet = {"continuous_update": False, "readout": False}
    if knob.kind == "integer" and not knob.log:
        step = knob.step or max(1, round((high - low) / 40))
        number = ipywidgets.BoundedIntText(**bounds)
        return number, ipywidgets.IntSlider(**bounds, step=step, **quiet)
    if knob.log:
        decades = {"min": math.log10(low), "max": math.log10(high), "value": knob.default}
        step = knob.step or math.log10(high / low) / 40
        slider = ipywidgets.FloatLogSlider(**decades, step=step, base=10, **quiet)
        if knob.kind == "integer":
            return ipywidgets.BoundedIntText(**bounds), slider
        return ipywidgets.BoundedFloatText(**bounds, step=float(f"{low:.0e}")), slider
    # one digit, so that the slider stops at values that one can read
    step = knob.step or float(f"{(high - low) / 40:.1g}")
    number = ipywidgets.BoundedFloatText(**bounds, step=step)
    return number, ipywidgets.FloatSlider(**bounds, step=step, **quiet)
